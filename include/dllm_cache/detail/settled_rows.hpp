// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>

#include "dllm_cache/plan.hpp"

namespace dllm_cache::inline v0_1::detail {

/// Which rows of a sequence have final features: see StepContext::settled. Where attention is
/// bidirectional none ever has, since every row sees those that change.
///
/// With block-causal attention a block is final once it was recomputed as a whole, over keys that
/// were final or recomputed with it, and none of its tokens has changed since. With causal commits
/// a row is final on its own, once it was recomputed before open().
class SettledRows {
 public:
  SettledRows() = default;
  /// As they stood after a step; see settled() and open().
  SettledRows(Index settled, Index open) : m_settled(settled), m_open(open) {}

  /// Rows `[0, settled)` were final when the last step was committed.
  [[nodiscard]] Index settled() const { return m_settled; }
  /// StepContext::open() of the last step.
  [[nodiscard]] Index open() const { return m_open; }
  /// StepContext::open() of the step that was begun last.
  [[nodiscard]] Index open_in_step() const { return m_open_in_step; }

  /// Begins a step; returns the rows that are final before it: those that the last one left, less
  /// what has changed since.
  Index begin_step(const StepContext& context) {
    begin_stale(context);
    const SequenceShape& shape = context.shape;
    if (shape.attention_block == 0) return 0;
    Index settled = std::min(m_settled, m_open_in_step);
    // A caller that does not say what changed may have changed all rows that were open.
    if (context.changed.empty()) settled = std::min(settled, cut(shape, m_open));
    const auto known = static_cast<Index>(context.changed.size());
    for (Index row = 0; row < std::min(settled, known); ++row)
      if (context.changed[static_cast<std::size_t>(row)] != 0) settled = cut(shape, row);
    m_settled_in_step = settled;
    return settled;
  }
  /// The same where nothing that was stored may be read.
  Index begin_stale(const StepContext& context) {
    m_open_in_step = context.open();
    m_live_end = context.live().end;
    m_settled_in_step = 0;
    return 0;
  }

  /// The step was committed: rows behind those that it recomputed are final as well.
  void end_step(const SequenceShape& shape, const StepPlan& plan, Index layers) {
    m_open = m_open_in_step;
    m_settled = m_settled_in_step;
    if (shape.attention_block == 0) return;
    // What is being decoded becomes final by a causal forward of its own.
    const Index most = shape.causal_commit ? m_open_in_step : m_live_end;
    Index end = m_settled;
    while (end < most && plan.rows[static_cast<std::size_t>(end)] == RowAction::Recompute &&
           plan.reaches(end, layers - 1))
      ++end;
    m_settled = end == most ? end : std::max(m_settled, cut(shape, end));
  }

  /// Rows from `row` on are gone, and the sequence has this shape from now on. A block that was
  /// cut, or that grew, is not final: its rows see others now.
  void keep(const SequenceShape& shape, Index row) {
    m_settled = cut(shape, std::min(m_settled, row));
    m_open = std::min(m_open, row);
  }

 private:
  // The largest number of final rows where none from `row` on is.
  static Index cut(const SequenceShape& shape, Index row) {
    if (row >= shape.rows() || shape.causal_commit) return std::min(row, shape.rows());
    return shape.block_begin(row);
  }

  Index m_settled = 0;
  Index m_open = 0;
  Index m_settled_in_step = 0;  // of the step that was begun last
  Index m_open_in_step = 0;
  Index m_live_end = 0;
};

}  // namespace dllm_cache::inline v0_1::detail
