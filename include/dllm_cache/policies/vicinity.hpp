// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "dllm_cache/policy.hpp"

namespace dllm_cache::inline v0_1 {

/// Vicinity refresh of dInfer (Ma et al., arXiv 2510.08666; repository inclusionAI/dInfer at
/// fce4e32, `VicinityCacheDiffusionLLM` in python/dinfer/decoding/generate_uniform.py).
///
/// Some full forwards first; then every block but the first begins with a full forward, and all
/// other steps recompute the block and a few rows on either side of it. Differs: with a shifted
/// head at least the row before the block is in the pass (the repository moves the whole block by
/// one row); one forward a step, where the repository decodes twice after a refresh.
/// With block-causal attention it works within the active block: finished blocks are exact.
struct VicinityPolicy {
  /// Rows before the block that are recomputed with it, at least 0; `prefix_look` (class default 0,
  /// serving 16).
  Index prefix_look = 16;
  /// Rows after the block, at least 0; `after_look` (class default 0, serving 16).
  Index after_look = 16;
  /// Full forwards at the start of a generation, at least 0; `warmup_steps` (serving 4). One more
  /// follows, which fills the cache.
  Index warmup_steps = 4;
  /// Steps of the sequence between full forwards inside blocks, at least 1, or `never`;
  /// `cache_update_freq` (default None: per block only). Not in the first block, as there.
  Index refresh_interval = never;

  static void visit_options(auto& self, auto&& visit) {
    visit("prefix_look", self.prefix_look, at_least(0), "rows before the block");
    visit("after_look", self.after_look, at_least(0), "rows after the block");
    visit("warmup_steps", self.warmup_steps, at_least(0), "full forwards at the start");
    visit("refresh_interval", self.refresh_interval, steps_or_never, "steps between full forwards");
  }

  [[nodiscard]] PolicyTraits traits(const SequenceShape&) const {
    return {.name = "vicinity", .needs_block = true};
  }

  void plan(const StepContext& context, StepPlan& plan) const {
    const Range live = context.live();
    const bool first_block = context.block.begin == context.shape.prompt;
    const bool due = context.block_step == 0 || context.step % refresh_interval == 0;
    if (context.step <= warmup_steps || (due && !first_block)) {
      plan.recompute(context.unsettled());
      return;
    }
    plan.recompute(context.to_settle());
    const Index before = std::max(prefix_look, context.shape.prediction_shift);
    plan.recompute(
        {std::max<Index>(0, context.block.begin - before),
         after_look < live.end - context.block.end ? context.block.end + after_look : live.end});
  }
};

}  // namespace dllm_cache::inline v0_1
