// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/models/transformer_runner.hpp"
#include "programs/options/settings.hpp"
#include "programs/run/audit.hpp"
#include "programs/run/oddities.hpp"
#include "programs/run/trace.hpp"

namespace programs {

/// What a generation cost and said; rows and forwards are summed over all sequences of the batch.
struct GenerationResult {
  std::vector<std::vector<std::int32_t>> tokens;  ///< Response ids, one list a prompt.
  /// Prompts with their masks filled and responses; empty where no prompt held a mask.
  std::vector<std::vector<std::int32_t>> sequences;
  Oddities odd;
  Index steps = 0;  ///< Denoising steps of the longest sequence.
  Index forwards = 0;
  double operations = 0.0;
  dllm_cache::DecodingCounts rows;
  Index cache_bytes = 0;
  double seconds = 0.0;
  std::vector<AuditStep> audit;  ///< Empty without an auditor.
  bool cancelled = false;
};

/// Called after each step of each sequence; return false to cancel.
using OnStep = std::function<bool(const dllm_cache::StepReport&)>;

/// What looks on while a request is answered; null: nothing.
struct Watchers {
  Trace* trace = nullptr;
  /// Another runner of the same model: it computes the uncached logits of every step, see Audit.
  dllm_cache::models::TransformerRunner* auditor = nullptr;
};

/// What settings come to.
struct Plan {
  dllm_cache::DecodingOptions decoding;
  dllm_cache::AnyPolicy policy;
};

/// The options and the policy of settings; names the policy where they do not. Throws
/// std::invalid_argument naming the key.
[[nodiscard]] Plan resolve(Settings& settings);

/// Generates the answers to prompts; what looks on changes neither answers nor costs. Throws
/// BadRequest for a plan or prompts that do not fit the model or the audit, and what the library
/// throws.
[[nodiscard]] GenerationResult generate(dllm_cache::models::TransformerRunner& runner,
                                        const std::vector<std::vector<std::int32_t>>& prompts,
                                        const Plan& plan, const Watchers& watchers,
                                        const OnStep& on_step,
                                        FeatureType features = FeatureType::Float32);

/// Steps that a sequence takes at most, for progress bars.
[[nodiscard]] Index planned_steps(const std::vector<std::vector<std::int32_t>>& prompts,
                                  const dllm_cache::DecodingOptions& options, std::int32_t mask);

}  // namespace programs
