// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dllm_cache/policies/block_verify.hpp"
#include "dllm_cache/policies/dual_cache.hpp"
#include "dllm_cache/policy.hpp"

// Policies by what is wanted of them, as measured on the bundled model (bench/RESULTS.md). Each is
// a value: vary its options.
namespace dllm_cache::inline v0_1 {

/// Answers first: nothing is cached, every answer is the model's own.
[[nodiscard]] inline NoCache exact_policy() { return {}; }

/// Both: the active block is recomputed in every step, and of the other rows those whose values
/// changed. Of 2,000 questions it answered 98.9 % exactly as the uncached model does and as many
/// rightly (9 gained, 3 lost), with 6.5 times fewer operations. Wants decoding by blocks.
[[nodiscard]] inline BlockVerifyPolicy balanced_policy() {
  return {.prompt_interval = 100,
          .response_interval = 32,
          .ratio = 0.25,
          .similarity_threshold = 0.99,
          .recompute_block = true,
          .refresh_first_layer = true};
}

/// balanced_policy() with a count of rows that is known when a step is planned: a fixed share of
/// the rows outside the block is recomputed, however similar their values are. For devices and
/// captured graphs, which would have to wait for the host to learn a count. Of 500 questions
/// with threshold decoding it answered 98.6 % as the uncached model does (2 gained, none lost),
/// with 4.5 times fewer operations; docs/choose-a-policy.md says when a smaller ratio will do.
/// Wants decoding by blocks.
[[nodiscard]] inline BlockVerifyPolicy balanced_fixed_policy() {
  BlockVerifyPolicy policy = balanced_policy();
  policy.similarity_threshold = no_similarity_threshold;
  return policy;
}

/// Cost first: a full forward a block, then the block alone. Of 2,000 questions it answered 97.7 %
/// as the uncached model does (11 gained, 18 lost), with 9.5 times fewer operations. Wants decoding
/// by blocks.
[[nodiscard]] inline DualCachePolicy fastest_policy() { return {}; }

}  // namespace dllm_cache::inline v0_1
