// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "dllm_cache/policy.hpp"

namespace dllm_cache::inline v0_1 {

/// The rule of diffuse-cpp (repository iafiscal1212/diffuse-cpp at 1d2bd6a, src/diffuse-cache.h,
/// `compute_active_set`): a row is in the pass while it is masked, when its token has changed, and
/// for a few steps after that; all else keeps its keys and values.
///
/// Differs: with a shifted head the row that predicts a masked token is in the pass too (the
/// repository would read logits of a row that rests); a change seen by a full forward counts as a
/// change; keys are kept per key head, not per query head.
/// With block-causal attention it works within the active block: finished blocks are exact.
struct ChangedRowsPolicy {
  /// Steps for which a changed row stays in the pass, 0 to 65534; `cache_keep_active` (default 0).
  Index keep_active = 0;
  /// Steps between full forwards, at least 1, or `never`; `cache_refresh` (0 there means never, the
  /// default).
  Index refresh_interval = never;

  static void visit_options(auto& self, auto&& visit) {
    visit("keep_active", self.keep_active, between(0, 65534),
          "steps for which a changed row stays in the pass");
    visit("refresh_interval", self.refresh_interval, steps_or_never, "steps between full forwards");
  }

  [[nodiscard]] PolicyTraits traits(const SequenceShape&) const {
    return {.name = "changed-rows",
            .needs_masked = true,
            .needs_changed = true,
            .needs_unchanged_steps = keep_active > 0};
  }

  void plan(const StepContext& context, StepPlan& plan) const {
    const Range live = context.live();
    if (context.step % refresh_interval == 0) {
      plan.recompute(context.unsettled());
      return;
    }
    plan.recompute(context.to_settle());
    for (Index row = 0; row < live.end; ++row) {
      const auto token = static_cast<std::size_t>(row);
      const bool masked = context.masked[token] != 0;
      const bool recent = keep_active > 0 && context.unchanged_steps[token] <= keep_active;
      if (masked || recent || context.changed[token] != 0) plan.recompute({row, row + 1});
      if (masked) plan.recompute({std::max<Index>(0, row - context.shape.prediction_shift), row});
    }
  }
};

}  // namespace dllm_cache::inline v0_1
