// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "dllm_cache/policies/given_rows.hpp"
#include "dllm_cache/policy.hpp"

namespace dllm_cache::inline v0_1 {

/// Dynamic-dLLM (ICLR 2026, openreview SdnkB5pGbq; repository TianyiWu233/DYNAMIC-DLLM at 43cb93b,
/// dynamic_dllm_cache/hooks/cache_hook_LLaDA.py), as released.
///
/// Values of all response rows are computed; recomputed are the rows around the last one that was
/// decoded and, of the others, the `layer_budget` whose values changed most. Layer 0 is recomputed,
/// nothing else is ever refreshed.
/// Differs: every layer has the same budget, `layer_budget` (there 32 / layers times that: the same
/// for the 32 layers that it was written for). So it has there: the weights that should share it
/// out by layer are softmax(1e-8 x) at that commit, and the code that would make them another is
/// never called. The threshold that goes with it there drifts down step by step until everything is
/// committed: it is not offered. Prompt rows are not in the pass after the first step.
/// Bidirectional attention only.
struct DynamicDllmPolicy {
  Index layer_budget = 32;  ///< Rows recomputed for their values, at least 0; `layer_budget` (32).
  /// The rows around the last decoded one that are recomputed are this many and one; 0: that one;
  /// `window_size` (32).
  Index window_size = 32;

  static void visit_options(auto& self, auto&& visit) {
    visit("layer_budget", self.layer_budget, at_least(0),
          "rows recomputed in each layer for their values");
    visit("window_size", self.window_size, at_least(0), "rows recomputed around the last decoded");
  }

  struct Memory {
    Index last = 0;  ///< The row that was decoded last.

    static void visit_fields(auto& self, auto&& visit) { visit("last", self.last); }
    [[nodiscard]] bool fits(const SequenceShape& shape, Index) const { return last < shape.rows(); }
  };

  [[nodiscard]] PolicyTraits traits(const SequenceShape& shape) const {
    return {.name = "dynamic",
            .stored_deltas = {shape.prompt - shape.prediction_shift, shape.rows()},
            .needs_changed = true};
  }

  void plan(const StepContext& context, Memory& memory, StepPlan& plan) const {
    const SequenceShape& shape = context.shape;
    const Range response = context.response();
    if (context.step == 0) memory.last = std::max<Index>(0, shape.prompt - 1);
    for (Index row = 0; row < shape.rows(); ++row)
      if (context.changed[static_cast<std::size_t>(row)] != 0) memory.last = row;
    if (context.stale) return;
    plan.reuse({shape.prompt - shape.prediction_shift, shape.prompt});
    // The window is moved into the response where it hangs over its ends.
    Index begin = memory.last - window_size / 2, end = memory.last + window_size / 2 + 1;
    if (window_size >= response.size()) begin = response.begin, end = response.end;
    if (begin < response.begin) end += response.begin - begin, begin = response.begin;
    if (end > response.end) begin -= end - response.end, end = response.end;
    const Range window{std::max(begin, response.begin), std::min(end, response.end)};
    plan.verify(response, 0);
    plan.recompute(window);
    detail::rest_given_rows(context, false, plan);
    plan.verify_count = std::min<Index>(
        layer_budget, std::count(plan.rows.begin(), plan.rows.end(), RowAction::Verify));
    plan.cached_layers.begin = 1;
  }
};

}  // namespace dllm_cache::inline v0_1
