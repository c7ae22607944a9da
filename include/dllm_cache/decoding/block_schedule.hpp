// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <variant>

#include "dllm_cache/decoding/block_grid.hpp"
#include "dllm_cache/decoding/decoding_options.hpp"
#include "dllm_cache/plan.hpp"
#include "dllm_cache/snapshot.hpp"

namespace dllm_cache::inline v0_1 {

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
    m_steps_per_block = options.steps_per_block;
    m_threshold_alpha = options.threshold_alpha;
  }

  [[nodiscard]] const BlockGrid& grid() const { return m_grid; }
  [[nodiscard]] Index number() const { return m_block; }  ///< Of the active block.
  [[nodiscard]] Range block() const { return m_grid.block(m_block); }
  [[nodiscard]] const BlockProgress& progress() const { return m_progress; }
  /// Steps done in the block; progress() counts those that were passed over too.
  [[nodiscard]] Index taken() const { return m_taken; }

  /// Makes a block the active one, `0 <= block < grid().count()`, with so many masked rows.
  void begin(Index block, Index masked) {
    m_block = block;
    m_progress = {.steps = steps_of_block(block, masked),
                  .first_masked = masked,
                  .length = m_grid.block(block).size()};
    m_planned = masked;
    m_taken = 0;
    skip_empty_steps();
  }
  /// The grid ends later from now on; of the active block, where it was short, so many more rows
  /// are masked. The schedule's steps are those of so many steps in all.
  void grow(Index end, Index masked, Index steps) {
    m_grid.end = end;
    m_progress.length = block().size();
    m_progress.first_masked += masked;
    m_planned += masked;
    if (m_steps > 0)
      m_steps = steps;
    else if (is_linear() && m_steps_per_block == 0)
      m_progress.steps += masked;
  }
  /// Steps that each block has, where the schedule says how many there are in all; else 0.
  [[nodiscard]] Index planned_steps_of_block() const {
    return m_steps == 0 || m_steps_per_block > 0 ? 0
                                                 : (m_steps + m_grid.count() - 1) / m_grid.count();
  }
  void save(SnapshotWriter& out) const {
    out.number("block", m_block);
    out.number("block step", m_progress.step);
    out.number("block steps", m_progress.steps);
    out.number("block steps taken", m_taken);
    out.number("first_masked", m_progress.first_masked);
    out.number("planned", m_planned);
  }
  /// Goes on where a sequence of the same options stood after so many steps in all.
  void restore(SnapshotReader& in, Index steps_done, bool sequence_finished) {
    const auto block = in.number<Index>("block", 0, m_grid.count() - 1);
    const auto step = in.number<Index>("block step", 0, most_counted);
    const auto steps = in.number<Index>(
        "block steps", 1, std::max({m_steps, m_steps_per_block, m_grid.end - m_grid.begin}));
    const auto taken = in.number<Index>("block steps taken", 0, step);
    const auto first_masked = in.number<Index>("first_masked", 0, m_grid.block(block).size());
    begin(block, first_masked);
    const auto planned = in.number<Index>("planned", 0, first_masked);
    const bool counted = is_counted(m_rule);
    const Index last = counted ? steps : steps_done;
    if (step > last) in.refuse("block step must be in [0, ", last, "], got ", step);
    if (counted && step == last && !sequence_finished)
      in.refuse("block step must be below ", last, " before the end, got ",
                step);  // such a block would never end
    m_progress.step = step;
    m_progress.steps = steps;
    m_taken = taken;
    m_planned = planned;
  }

  /// How many of these, surest first, a step commits of so many rows that could be, where so large
  /// a share of the rows from the block's begin on is masked.
  [[nodiscard]] Index count(std::span<const Prediction> ordered, Index candidates,
                            double masked_share = 1.0) {
    m_progress.masked = candidates;
    if (is_linear()) return std::min(next_linear(), static_cast<Index>(ordered.size()));
    const auto* const held = std::get_if<ThresholdCommit>(&m_rule);
    if (held == nullptr || m_threshold_alpha == 0.0 || m_taken == 0)
      return count_commits(ordered, m_rule, m_progress);
    const double share_left = 1.0 - m_threshold_alpha * (1.0 - masked_share);
    return count_commits(ordered, ThresholdCommit{held->threshold * share_left}, m_progress);
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
    return std::holds_alternative<LinearCommit>(m_rule) ||
           (m_has_gaps && std::holds_alternative<CountedCommit>(m_rule));
  }
  [[nodiscard]] Index next_linear() const {
    return linear_commits(m_planned, m_progress.step, m_progress.steps);
  }
  void skip_empty_steps() {
    if (!is_linear()) return;
    while (m_progress.step < m_progress.steps && next_linear() == 0) ++m_progress.step;
  }
  [[nodiscard]] Index steps_of_block(Index block, Index masked) const {
    const Index blocks = m_grid.count();
    if (m_steps_per_block > 0) return m_steps_per_block;
    if (std::holds_alternative<EvenCommit>(m_rule)) return m_grid.block(block).size();
    if (m_has_gaps || is_linear())
      return std::max<Index>(m_steps == 0 ? masked : (m_steps + blocks - 1) / blocks, 1);
    return m_steps == 0 ? m_grid.length : m_steps / blocks;
  }

  CommitRule m_rule;
  BlockGrid m_grid;
  bool m_has_gaps = false;
  Index m_steps = 0;            // of all blocks, 0: one a masked row
  Index m_steps_per_block = 0;  // 0: not said
  double m_threshold_alpha = 0.0;
  Index m_block = 0;
  BlockProgress m_progress;
  Index m_taken = 0;
  Index m_planned = 0;
};

}  // namespace dllm_cache::inline v0_1
