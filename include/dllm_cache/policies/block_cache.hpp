// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "dllm_cache/policy.hpp"

namespace dllm_cache::inline v0_1 {

/// Exact cache for models with block-causal attention (SDAR, LLaDA2, BD3LM, Fast-dLLM v2): finished
/// blocks keep their keys and values for ever, the active one is recomputed in every step.
///
/// A finished block is recomputed once more where one of its tokens changed in its last step; with
/// the first step of the next block, unless a step of its own (StepInput::block_done) came first.
/// Where attention is bidirectional nothing is ever final, and every row is recomputed.
/// Source: the loops of JetAstra/SDAR at c2041a8 (`block_diffusion_generate`) and of Fast-dLLM v2
/// (arXiv 2509.26328; modeling.py of Efficient-Large-Model/Fast_dLLM_v2_7B), which spend a forward
/// of its own on every finished block.
struct BlockCachePolicy {
  /// Within a block of attention recompute the active sub-block alone once the token of its first
  /// row is known, and read what the block's other rows had last: Fast-dLLM v2's `use_block_cache`.
  /// Approximate.
  bool use_block_cache = false;

  static void visit_options(auto& self, auto&& visit) {
    visit("use_block_cache", self.use_block_cache, yes_or_no,
          "within a block recompute the active sub-block alone (approximate)");
  }

  [[nodiscard]] PolicyTraits traits(const SequenceShape& shape) const {
    return {.name = "block",
            .needs_block = true,
            .needs_masked = use_block_cache || shape.prediction_shift > 0};
  }

  void plan(const StepContext& context, StepPlan& plan) const {
    const Range active = context.block;
    const auto is_masked = [&](Index row) {
      return context.masked[static_cast<std::size_t>(row)] != 0;
    };
    // The whole block flows when a sub-block begins, for which the head of the row before it
    // counts.
    if (use_block_cache && !context.block_done && context.block_step > 0 &&
        context.to_settle().empty() && !is_masked(active.begin))
      return plan.recompute(active);
    // Of a done block at least its last rows, for what they predict.
    plan.recompute({std::min(context.settled, active.begin), context.live().end});
    // With a shifted head the row before the block predicts its first token.
    const Index shift = context.shape.prediction_shift;
    if (shift > 0 && !context.block_done && is_masked(active.begin))
      plan.recompute({std::max<Index>(0, active.begin - shift), active.begin});
  }
};

}  // namespace dllm_cache::inline v0_1
