// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "dllm_cache/decoding/commit_rule.hpp"

namespace dllm_cache::inline v0_1 {

/// How one sequence is decoded.
struct DecodingOptions {
  Index response = 128;      ///< Response rows, at least 1 (`gen_length`).
  Index block_length = 0;    ///< Divides `response`; 0: the whole response is one block.
  Index steps = 0;           ///< Steps in all, a multiple of the number of blocks; 0: one a row.
                             ///< Read by counted commit rules only.
  double temperature = 0.0;  ///< At least 0; 0: the likeliest token.
  Sampling sampling = Sampling::GumbelNoise;  ///< How temperature works; see SamplingRule.
  double top_p = 1.0;                         ///< In (0, 1]; see SamplingRule.
  Index top_k = 0;                            ///< At least 0; see SamplingRule.
  Confidence confidence = Confidence::Probability;
  CommitRule commit = CountedCommit{};
  double order_temperature = 0.0;  ///< At least 0: noise on the order in which rows are committed,
                                   ///< for counted rules; Dream's `alg_temp`.
  double guidance_scale = 0.0;     ///< `cfg_scale`, at least 0; 0: no guidance.
  Index guidance_interval = 1;  ///< Steps between refreshes of the guidance residual, at least 1.
  bool early_stop = false;      ///< A finished block with end-of-text ends the sequence.
  std::uint64_t seed = 0;
  std::uint64_t sequence = 0;  ///< Number of the sequence for random numbers.
};

}  // namespace dllm_cache::inline v0_1
