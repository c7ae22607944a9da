// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dllm_cache/policies/dllm_cache.hpp"
#include "dllm_cache/policies/dual_cache.hpp"
#include "dllm_cache/policy.hpp"

// Policies by what is wanted, as measured on the bundled model (bench/RESULTS.md).
namespace dllm_cache::inline v0_1 {

/// Answers first: nothing is cached, every answer is the model's own.
[[nodiscard]] inline NoCache exact_policy() { return {}; }

/// Both: dLLM-Cache that recomputes the active block in every step, and of the other rows those
/// whose values turned. Of 2,000 questions it answered 98.9 % exactly as the uncached model does
/// and as many rightly (9 gained, 3 lost), with 6.5 times fewer operations. Wants decoding by
/// blocks: a response of one block is recomputed whole.
[[nodiscard]] inline DllmCachePolicy balanced_policy() {
  return {.prompt_interval = 100,
          .response_interval = 32,
          .ratio = 0.25,
          .refresh_first_layer = true,
          .recompute_block = true,
          .similarity_threshold = 0.99};
}

/// Cost first: a full forward a block, then the block alone. Of 2,000 questions it answered 97.7 %
/// as the uncached model does (11 gained, 18 lost), with 9.5 times fewer operations. Wants decoding
/// by blocks.
[[nodiscard]] inline DualCachePolicy fastest_policy() { return {}; }

}  // namespace dllm_cache::inline v0_1
