// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "dllm_cache/models/checkpoint/checkpoint_folder.hpp"
#include "dllm_cache/models/family.hpp"
#include "dllm_cache/models/load_transformer.hpp"
#include "dllm_cache/models/transformer_model.hpp"

namespace dllm_cache::inline v0_1::models {

/// Reads a LLaDA checkpoint (LLaDA-8B-Base/Instruct, LLaDA-1.5 and their kin; the text part of
/// MMaDA and LLaDA-V). Where config.json has `d_model`, its keys and the tensors have LLaDA's
/// names, otherwise those of Llama. Weights stay mapped; norms and biases are read, absent biases
/// are zero.
///
/// `tokens` are what the caller knows better than the checkpoint. Throws std::runtime_error naming
/// file, key or tensor, what was expected and what was found: an absent or illegal key, one that
/// asks for what is not computed (see config_keys), a checkpoint that is quantised, a missing or
/// misshapen tensor; and std::invalid_argument for a token outside the vocabulary and for options
/// that can_compute() denies.
[[nodiscard]] inline std::shared_ptr<const TransformerModel> load_llada(
    const CheckpointFolder& folder, const ComputeOptions& options = {},
    const TokenChoice& tokens = {}) {
  return detail::load_transformer(
      folder, required_family(folder.config_reader(), Computation::LLaDA), options, tokens);
}

}  // namespace dllm_cache::inline v0_1::models
