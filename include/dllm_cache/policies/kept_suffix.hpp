// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "dllm_cache/policy.hpp"

// Fast-dLLM's caches over a response of which only some rows behind the block exist.
namespace dllm_cache::inline v0_1::detail {

/// What of the existing rows is recomputed after a block's first step.
enum class SuffixHost : Index {
  None,    ///< All of them.
  Prefix,  ///< The block and what lies behind it.
  Dual     ///< The block alone.
};

/// Plans a step in which, of the rows behind the active block, those exist that `keeps(row)`; with
/// a shifted head the row before the block is in the pass too.
template <class Keeps>
void plan_kept_suffix(const StepContext& context, SuffixHost host, const Keeps& keeps,
                      StepPlan& plan) {
  const Range block = context.block, live = context.live();
  for (Index row = block.end; row < live.end; ++row)
    if (!keeps(row)) plan.hide({row, row + 1});
  Range rows{std::max<Index>(0, block.begin - context.shape.prediction_shift),
             host == SuffixHost::Dual ? block.end : live.end};
  // Without a cache nothing is kept, finished blocks neither.
  if (host == SuffixHost::None)
    rows = live;
  else if (context.block_step == 0)
    rows = context.unsettled();
  for (Index row = rows.begin; row < rows.end; ++row)
    if (!plan.hides(row)) plan.recompute(row);
}

}  // namespace dllm_cache::inline v0_1::detail
