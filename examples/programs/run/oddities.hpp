// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/models/transformer_model.hpp"
#include "programs/text/vocabulary.hpp"
#include "programs/text/warnings.hpp"

namespace programs {

using dllm_cache::Index;

/// What is odd about answers that were asked for and given; all zero in the usual run.
struct Oddities {
  Index masks_left = 0;   ///< Tokens that are still the mask.
  Index empty_steps = 0;  ///< Steps that committed nothing, or were not taken for that reason.
  bool too_many_steps = false;  ///< More were asked for than there were tokens to fill.
  Index unknown_tokens = 0;     ///< Tokens that the model's vocab.txt does not have.
};

/// Refuses prompts and options that the model cannot serve, in the words of requests; throws
/// BadRequest. Nothing has been computed then.
void check_prompts(const std::vector<std::vector<std::int32_t>>& prompts,
                   const dllm_cache::DecodingOptions& options,
                   const dllm_cache::models::TransformerConfig& config);

/// Warns of a sequence that is longer than the model was made for.
void warn_of_length(Index longest, const dllm_cache::models::TransformerConfig& config,
                    Warnings& warnings);

/// Warns of what the counts say.
void warn_of(const Oddities& odd, Warnings& warnings);

/// Tokens that a vocabulary does not have; 0 without one.
[[nodiscard]] Index count_unknown(const std::vector<std::vector<std::int32_t>>& tokens,
                                  const Vocabulary* vocabulary);

}  // namespace programs
