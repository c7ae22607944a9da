// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dllm_cache/policies/largest_rows.hpp"
#include "dllm_cache/policy.hpp"

namespace dllm_cache::inline v0_1 {

/// EntropyCache (Cheong et al., arXiv 2603.18489), by the paper's rule: its code is not published,
/// so nothing proves this equal to it, and the options' defaults are ours.
///
/// Everything is recomputed where a token was just committed of whose prediction the entropy was
/// above `entropy_threshold`; else the rows that may be committed and the `recent_tokens` rows that
/// were decoded last. Bidirectional attention only.
struct EntropyCachePolicy {
  double entropy_threshold = 0.5;  ///< In nats, at least 0.
  Index recent_tokens = 16;        ///< At least 0.

  static void visit_options(auto& self, auto&& visit) {
    visit("entropy_threshold", self.entropy_threshold, not_negative,
          "entropy of a committed token above which all is recomputed, in nats");
    visit("recent_tokens", self.recent_tokens, at_least(0),
          "rows decoded last that are recomputed");
  }

  struct Memory {
    std::vector<Index> rows;  // scratch
    std::vector<float> age;

    static void visit_fields(auto&, auto&&) {}
    [[nodiscard]] static bool fits(const SequenceShape&, Index) { return true; }
  };

  [[nodiscard]] PolicyTraits traits(const SequenceShape&) const {
    return {.name = "entropy",
            .needs_changed = true,
            .needs_unchanged_steps = true,
            .needs_candidates = true,
            .needs_entropy = true};
  }

  void plan(const StepContext& context, Memory& memory, StepPlan& plan) const {
    const Index rows = context.shape.rows();
    double highest = 0.0;
    for (Index row = 0; row < rows; ++row)
      if (const auto at = static_cast<std::size_t>(row); context.changed[at] != 0)
        highest = std::max(highest, static_cast<double>(context.entropy[at]));
    if (context.step == 0 || highest > entropy_threshold) return plan.recompute(context.live());
    memory.age.clear();
    for (const std::uint16_t steps : context.unchanged_steps)
      memory.age.push_back(-static_cast<float>(steps));
    detail::take_largest(
        std::span<const float>(memory.age), recent_tokens,
        [&](Index row) { return context.unchanged_steps[static_cast<std::size_t>(row)] < 65535; },
        memory.rows);
    for (const Index row : memory.rows) plan.recompute(row);
    for (Index row = 0; row < rows; ++row)
      if (context.candidates[static_cast<std::size_t>(row)] != 0) {
        plan.recompute(row);
        plan.recompute(std::max<Index>(0, row - context.shape.prediction_shift));
      }
  }
};

}  // namespace dllm_cache::inline v0_1
