// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "dllm_cache/plan.hpp"

// Given text between gaps, for policies that treat prompt and response as two things: it lies among
// the rows of the response, and is worth as little work as a prompt.
namespace dllm_cache::inline v0_1::detail {

/// Rows of a range at which something is to be found.
[[nodiscard]] inline Index count_moving(const StepContext& context, Range range) {
  if (context.given.empty()) return std::max<Index>(range.size(), 0);
  Index count = 0;
  for (Index row = range.begin; row < range.end; ++row) count += context.rests(row) ? 0 : 1;
  return count;
}

/// Lets given rows rest as a prompt does, in the active block too: recomputed where the prompt is
/// `due`, absent otherwise. Call it last: it overrules the plan for them.
inline void rest_given_rows(const StepContext& context, bool due, StepPlan& plan) {
  if (context.given.empty()) return;
  for (Index row = 0; row < context.shape.rows(); ++row) {
    RowAction& action = plan.rows[static_cast<std::size_t>(row)];
    if (context.rests(row)) action = due ? RowAction::Recompute : RowAction::Absent;
    // With a shifted head the first row counts as the prompt even where it is a gap.
    if (row < context.shape.prompt && !context.is_given(row)) action = RowAction::Recompute;
  }
}

}  // namespace dllm_cache::inline v0_1::detail
