// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <optional>
#include <span>
#include <utility>

#include "dllm_cache/decoding/decoding_options.hpp"
#include "dllm_cache/decoding/detail/token_rows.hpp"
#include "dllm_cache/decoding/special_tokens.hpp"
#include "dllm_cache/plan.hpp"
#include "dllm_cache/snapshot.hpp"

namespace dllm_cache::inline v0_1::detail {

/// Whether a sequence is over, and what end tokens make of the rows behind them.
class Ending {
 public:
  Ending() = default;
  /// Of a sequence with these options, for a model with these end tokens.
  Ending(const DecodingOptions& options, EndTokens ends)
      : m_ends(std::move(ends)),
        m_early(options.early_stop),
        m_within_block(options.stop_within_block),
        m_trims(options.trim_after_end),
        m_drops(options.end_drops_rows) {}

  [[nodiscard]] bool finished() const { return m_finished; }
  /// Whether an end token says where the answer ends, so that no rows can follow it.
  [[nodiscard]] bool by_token() const { return m_ended || m_dropped; }

  /// Where the answer ends with this step, if it does.
  [[nodiscard]] std::optional<Index> find(const TokenRows& rows, Range block,
                                          bool block_finished) const {
    if (!m_early || !(block_finished || m_within_block)) return {};
    const std::optional<Index> end = rows.find(block, m_ends);
    if (!end || block_finished || rows.masked_in({rows.first_to_fill(), *end}) == 0) return end;
    return {};
  }

  /// Ends the sequence with the end token of a row: what was not decoded behind it holds end
  /// tokens.
  void end(TokenRows& rows, Index row, Index block_end) {
    rows.fill_masks({row, block_end}, m_ends.first());
    rows.fill({block_end, rows.rows()}, m_ends.first());
    finish(rows);
    m_ended = true;
  }
  /// Ends the sequence where it is.
  void finish(TokenRows& rows) {
    m_finished = true;
    const std::optional<Index> end = rows.find({0, rows.rows()}, m_ends);
    if (!m_trims || !end) return;
    rows.fill({*end + 1, rows.rows()}, m_ends.first());
    m_ended = true;
  }
  /// More rows have come.
  void go_on() { m_finished = false; }

  /// Drops the masked rows behind the lowest end token of what a step committed, where the options
  /// say so and none of an earlier step did. Text around a gap goes on behind an end token.
  void drop(TokenRows& rows, std::span<const Prediction> committed) {
    if (!m_drops || m_dropped) return;
    Index first = rows.rows();
    for (const Prediction& one : committed)
      if (one.row >= rows.prompt() && m_ends.contains(one.token)) first = std::min(first, one.row);
    if (first == rows.rows()) return;
    rows.drop({first + 1, rows.rows()});
    m_dropped = true;
  }

  void save(SnapshotWriter& out) const {
    out.number("finished", m_finished);
    out.number("ended", m_ended);
    out.number("dropped", m_dropped);
  }
  void restore(SnapshotReader& in) {
    m_finished = in.flag("finished");
    m_ended = in.flag("ended");
    m_dropped = in.flag("dropped");
    if (m_dropped && !m_drops)
      SnapshotReader::refuse("dropped must be 0 where end tokens drop no rows, got 1");
  }

 private:
  EndTokens m_ends;
  bool m_early = false;
  bool m_within_block = false;
  bool m_trims = false;
  bool m_drops = false;
  bool m_finished = false;
  bool m_ended = false;    // by an end token
  bool m_dropped = false;  // rows behind an end token are not to be found
};

}  // namespace dllm_cache::inline v0_1::detail
