// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "dllm_cache/policy.hpp"

namespace dllm_cache::inline v0_1 {

/// FreeCache of FlashDLM (Hu et al., arXiv 2505.21467; repository ZhanqiuHu/flash-dlm-experimental
/// at 387beab, src/model/dream_flash/generation_utils.py).
///
/// One full forward at the start; after it everything before the active block is frozen for ever,
/// and the block and everything after it are recomputed in every step. No options. A block's keys
/// and values are frozen as its last step left them, its last tokens still masked. Differs: written
/// for Dream there; without a shifted head the row before the block rests.
/// With block-causal attention it works within the active block: finished blocks are exact.
struct FreeCachePolicy {
  [[nodiscard]] PolicyTraits traits(const SequenceShape&) const {
    return {.name = "freecache", .needs_block = true};
  }
  void plan(const StepContext& context, StepPlan& plan) const {
    plan.recompute(context.to_settle());
    const Range live = context.live();
    if (context.step == 0)
      plan.recompute(live);
    else
      plan.recompute(
          {std::max<Index>(0, context.block.begin - context.shape.prediction_shift), live.end});
  }
};

}  // namespace dllm_cache::inline v0_1
