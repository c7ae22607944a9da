// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <span>
#include <variant>

#include "dllm_cache/decoding/prediction.hpp"

namespace dllm_cache {

/// Where a sequence stands within its active block.
struct BlockProgress {
  Index step = 0;          ///< Steps done in this block.
  Index steps = 1;         ///< Steps planned for this block.
  Index first_masked = 0;  ///< Masked rows of the block when it began.
};

/// LLaDA's counted schedule: the block's masked rows are spread evenly over its steps, the
/// remainder over the first ones (`get_num_transfer_tokens`). The block takes all its steps,
/// whatever happens.
struct CountedCommit {
  static constexpr bool counted = true;
  [[nodiscard]] Index count(std::span<const Prediction>, const BlockProgress& block) const {
    const Index base = block.first_masked / block.steps;
    return base + (block.step < block.first_masked % block.steps ? 1 : 0);
  }
};

/// How many of the ordered predictions a step commits; `counted` rules end a block by their steps,
/// the others when nothing in it is masked any more.
using CommitRule = std::variant<CountedCommit>;

/// Whether blocks end after a fixed number of steps under this rule.
[[nodiscard]] inline bool is_counted(const CommitRule& rule) {
  return std::visit([](const auto& held) { return held.counted; }, rule);
}

/// Orders predictions by confidence, ties to the lower row, and returns how many of them, from the
/// front, the rule commits (0 to all).
[[nodiscard]] inline Index choose_commits(std::span<Prediction> predictions, const CommitRule& rule,
                                          const BlockProgress& block) {
  std::sort(predictions.begin(), predictions.end(), [](const Prediction& a, const Prediction& b) {
    return a.confidence != b.confidence ? a.confidence > b.confidence : a.row < b.row;
  });
  const Index wanted = std::visit(
      [&](const auto& held) { return held.count(std::span<const Prediction>(predictions), block); },
      rule);
  return std::clamp<Index>(wanted, 0, static_cast<Index>(predictions.size()));
}

}  // namespace dllm_cache
