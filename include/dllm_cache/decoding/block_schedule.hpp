// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <variant>

#include "dllm_cache/decoding/decoding_options.hpp"
#include "dllm_cache/plan.hpp"

namespace dllm_cache::inline v0_1 {

/// The blocks of one sequence, decoded one after the other: rows `[begin, end)` in pieces of
/// `length` rows, the last of which may be shorter.
///
/// A response is cut from its first row on, as in LLaDA's `generate`; a sequence with masks in its
/// prompt from row 0 on, as in `infill` of ZHZisZZ/dllm at 13ba372 (dllm/core/samplers/mdlm.py).
struct BlockGrid {
  Index begin = 0;
  Index end = 0;     ///< At least begin + 1.
  Index length = 1;  ///< At least 1.

  [[nodiscard]] Index count() const { return (end - begin + length - 1) / length; }
  /// Rows of a block, `0 <= number < count()` (unchecked).
  [[nodiscard]] Range block(Index number) const {
    const Index first = begin + number * length;
    return {first, std::min(first + length, end)};
  }
};

/// How many of `left` masks step `step` of `steps` commits, `0 <= step < steps <=
/// most_linear_steps`: the nearest to left * (1 - s / t), halves to the even number, where the
/// times t and s fall from 1 to 0 in equal strides; the last step takes all.
///
/// Source: `get_num_transfer_tokens` with the linear schedule of ZHZisZZ/dllm at 13ba372
/// (dllm/core/samplers/utils.py, dllm/core/schedulers/alpha.py), to the bit: its float32 decides
/// where the halves fall. LLaDA spreads a remainder over the first steps instead; see
/// CountedCommit.
[[nodiscard]] inline Index linear_commits(Index left, Index step, Index steps) {
  const auto time = [steps](Index remaining) {
    return static_cast<float>(static_cast<double>(remaining) / static_cast<double>(steps));
  };
  const auto masked_share = [](float at) { return 1.0F - (1.0F - at); };  // 1 - alpha
  const float kept = masked_share(time(steps - step - 1)) / masked_share(time(steps - step));
  const double wanted = static_cast<double>(left) * (1.0 - static_cast<double>(kept));
  return std::clamp<Index>(static_cast<Index>(std::nearbyint(wanted)), 0, left);
}

/// Where a sequence stands in its blocks: how many steps the active one has, how many predictions a
/// step commits, and when the block is over. Knows neither tokens nor masks: it is told how many
/// rows are masked.
///
/// A counted rule plans its steps by block: with gaps each block has its share of all, rounded up,
/// or as many as it has masks; LLaDA's schedule gives way to linear_commits() there. Steps that can
/// commit nothing are not taken, in which it differs from its sources.
class BlockSchedule {
 public:
  BlockSchedule() = default;
  /// The blocks of a sequence with these options (unchecked; see check_decoding).
  BlockSchedule(const DecodingOptions& options, BlockGrid grid, bool has_gaps)
      : m_rule(options.commit), m_grid(grid), m_has_gaps(has_gaps) {
    if (is_counted(m_rule)) m_steps = options.steps;
  }

  [[nodiscard]] const BlockGrid& grid() const { return m_grid; }
  [[nodiscard]] Index number() const { return m_block; }  ///< Of the active block.
  [[nodiscard]] Range block() const { return m_grid.block(m_block); }
  [[nodiscard]] const BlockProgress& progress() const { return m_progress; }
  /// Steps done in the block; progress() counts those that were passed over too.
  [[nodiscard]] Index taken() const { return m_taken; }
  /// Masks of the block that linear_commits() has not planned yet.
  [[nodiscard]] Index planned() const { return m_planned; }

  /// Makes a block the active one, `0 <= block < grid().count()`, with so many masked rows.
  void begin(Index block, Index masked) {
    m_block = block;
    m_progress = {.steps = steps_of_block(masked), .first_masked = masked};
    m_planned = masked;
    m_taken = 0;
    skip_empty_steps();
  }
  /// Goes on in the middle of a block that has begun.
  void resume(Index step, Index taken, Index planned) {
    m_progress.step = step;
    m_taken = taken;
    m_planned = planned;
  }

  /// How many of these, surest first, a step commits of so many rows that could be.
  [[nodiscard]] Index count(std::span<const Prediction> ordered, Index candidates) {
    m_progress.masked = candidates;
    if (!is_linear()) return count_commits(ordered, m_rule, m_progress);
    return std::min(next_linear(), static_cast<Index>(ordered.size()));
  }
  /// The step is over.
  void end_step() {
    if (is_linear()) m_planned -= next_linear();
    ++m_progress.step;
    ++m_taken;
    skip_empty_steps();
  }
  /// Whether the block is over, with so many rows that could still be committed, and so many masked
  /// rows of its own.
  [[nodiscard]] bool finished(Index candidates, Index masked) const {
    if (!is_counted(m_rule)) return masked == 0;
    if (m_progress.step >= m_progress.steps || candidates == 0) return true;
    // LLaDA's schedule with more steps than rows commits one in each of the first.
    return std::holds_alternative<CountedCommit>(m_rule) && !m_has_gaps &&
           m_progress.first_masked < m_progress.steps && m_progress.step >= m_progress.first_masked;
  }

 private:
  [[nodiscard]] bool is_linear() const {
    return m_has_gaps && std::holds_alternative<CountedCommit>(m_rule);
  }
  [[nodiscard]] Index next_linear() const {
    return linear_commits(m_planned, m_progress.step, m_progress.steps);
  }
  void skip_empty_steps() {
    if (!is_linear()) return;
    while (m_progress.step < m_progress.steps && next_linear() == 0) ++m_progress.step;
  }
  [[nodiscard]] Index steps_of_block(Index masked) const {
    const Index blocks = m_grid.count();
    if (m_has_gaps)
      return std::max<Index>(m_steps == 0 ? masked : (m_steps + blocks - 1) / blocks, 1);
    return (m_steps == 0 ? m_grid.end - m_grid.begin : m_steps) / blocks;
  }

  CommitRule m_rule;
  BlockGrid m_grid;
  bool m_has_gaps = false;
  Index m_steps = 0;  // of all blocks, 0: one a masked row
  Index m_block = 0;
  BlockProgress m_progress;
  Index m_taken = 0;
  Index m_planned = 0;
};

}  // namespace dllm_cache::inline v0_1
