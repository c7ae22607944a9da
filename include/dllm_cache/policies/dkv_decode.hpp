// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dllm_cache/policy.hpp"

namespace dllm_cache::inline v0_1 {

/// dKV-Cache-Decode (Ma et al., arXiv 2505.15781; repository horseee/dKV-Cache at 49a76fc,
/// llada_dkv_cache_decode.py and dream_generation_utils.py).
///
/// A decoded token is in the pass once more as itself, then its keys and values are kept; masked
/// rows always are. Without a shifted head the first two steps of a block and every
/// `refresh_interval`-th recompute everything; with one (variant `un`) every `refresh_interval`-th
/// step of the generation, and a row is kept once the token that it predicts is unmasked (the last
/// row, which predicts none, always). Differs in work only: keys and values lie in place, so the
/// repository's delayed store is one more pass of the row. Its prefill, PD and greedy variants
/// are not here.
/// With block-causal attention it works within the active block: finished blocks are exact.
struct DkvDecodePolicy {
  /// Steps between full forwards, at least 1 (nothing is reused), or `never`;
  /// `cache_reloading_step` for LLaDA (default 1, scripts 2 to 8), `cache_steps` for Dream.
  Index refresh_interval = 4;

  static void visit_options(auto& self, auto&& visit) {
    visit("refresh_interval", self.refresh_interval, steps_or_never, "steps between full forwards");
  }

  [[nodiscard]] PolicyTraits traits(const SequenceShape& shape) const {
    return {.name = "dkv",
            .needs_block = shape.prediction_shift == 0,
            .needs_masked = true,
            .needs_changed = true};
  }

  void plan(const StepContext& context, StepPlan& plan) const {
    const Index shift = context.shape.prediction_shift;
    const bool full = shift == 0
                          ? context.block_step <= 1 || context.block_step % refresh_interval == 0
                          : context.step % refresh_interval == 0;
    const Range live = context.live();
    if (full) {
      plan.recompute(context.unsettled());
      return;
    }
    plan.recompute(context.to_settle());
    for (Index row = shift; row < live.end; ++row) {
      const auto token = static_cast<std::size_t>(row);
      if (context.masked[token] != 0 || context.changed[token] != 0)
        plan.recompute({row - shift, row - shift + 1});
    }
  }
};

}  // namespace dllm_cache::inline v0_1
