// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "dllm_cache/policy.hpp"

namespace dllm_cache::inline v0_1 {

/// Dual cache of Fast-dLLM (Wu et al., arXiv 2505.22618; repository NVlabs/Fast-dLLM at 24cc59e,
/// `generate_with_dual_cache` in llada/generate.py).
///
/// Every block begins with a full forward; its other steps recompute the block alone, against the
/// cached keys and values of what lies before and after. No options.
/// Differs: with a shifted head the row before the block is in the pass too, so that the block's
/// first token is predicted like any other (the repository commits it from the full forward,
/// whatever its confidence); a block that its first step finished costs no second forward.
/// With block-causal attention it works within the active block: finished blocks are exact.
struct DualCachePolicy {
  [[nodiscard]] PolicyTraits traits(const SequenceShape&) const {
    return {.name = "dual", .needs_block = true};
  }
  void plan(const StepContext& context, StepPlan& plan) const {
    if (context.block_step == 0)
      plan.recompute(context.unsettled());
    else
      plan.recompute({std::max<Index>(0, context.block.begin - context.shape.prediction_shift),
                      context.block.end});
  }
};

}  // namespace dllm_cache::inline v0_1
