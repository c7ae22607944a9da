// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "dllm_cache/plan.hpp"

namespace dllm_cache::inline v0_1::detail {

/// In which order the rows of one layer's keys and values lie in memory: those that a step sees
/// first, ascending, so that they are one dense matrix; behind them those that it does not. Rows
/// lie in their own order until something is hidden.
///
/// Rows move when the set that is seen changes, not from step to step.
class KeyOrder {
 public:
  /// Place in memory of a row; `0 <= row < T` (unchecked, here and below).
  [[nodiscard]] Index place(Index row) const {
    return m_places.empty() ? row : m_places[static_cast<std::size_t>(row)];
  }
  /// Row that lies at a place.
  [[nodiscard]] Index row(Index place) const {
    return m_rows.empty() ? place : m_rows[static_cast<std::size_t>(place)];
  }
  /// How many rows before `key_end` are seen: they lie in the first places.
  [[nodiscard]] Index seen_before(Index key_end) const {
    if (m_rows.empty()) return key_end;
    return std::lower_bound(m_rows.begin(), m_rows.begin() + m_seen, key_end) - m_rows.begin();
  }
  /// Whether all rows are seen and lie in their own order.
  [[nodiscard]] bool is_plain() const { return m_rows.empty(); }

  /// Takes the memory that arrange() will need for so many rows; throws std::bad_alloc.
  void reserve(Index rows) {
    for (auto* list : {&m_rows, &m_places, &m_next, &m_sources})
      list->reserve(static_cast<std::size_t>(rows));
  }

  /// Puts the rows first that `layer` sees in a plan; returns whether any place changed. Calls
  /// `move(from, to)` for each row that goes to another place, -1 being a place aside that holds
  /// one row; not where nothing stored is worth keeping. Needs reserve(); throws nothing that
  /// `move` does not.
  template <class Move>
  bool arrange(const StepPlan& plan, Index layer, bool keep, const Move& move) {
    const auto rows = static_cast<Index>(plan.rows.size());
    if (is_arranged(plan, layer)) return false;
    m_next.clear();
    for (const bool seen : {true, false})
      for (Index row = 0; row < rows; ++row)
        if (plan.sees(layer, row) == seen) m_next.push_back(row);
    m_seen = std::count_if(m_next.begin(), m_next.end(),
                           [&](Index row) { return plan.sees(layer, row); });
    if (keep) move_rows(move);
    forget();
    if (m_seen == rows) return true;
    m_rows.assign(m_next.begin(), m_next.end());
    m_places.resize(static_cast<std::size_t>(rows));
    for (Index at = 0; at < rows; ++at)
      m_places[static_cast<std::size_t>(m_rows[static_cast<std::size_t>(at)])] = at;
    return true;
  }
  /// Puts all rows back into their own order; see arrange().
  template <class Move>
  void straighten(const Move& move) {
    if (is_plain()) return;
    m_next.clear();
    for (Index row = 0; row < static_cast<Index>(m_rows.size()); ++row) m_next.push_back(row);
    move_rows(move);
    forget();
  }
  /// All rows lie in their own order from now on: nothing that was stored is read again.
  void forget() {
    m_rows.clear();
    m_places.clear();
  }

 private:
  // Whether exactly the rows lie in front that the plan sees.
  [[nodiscard]] bool is_arranged(const StepPlan& plan, Index layer) const {
    const auto rows = static_cast<Index>(plan.rows.size());
    const Index seen = is_plain() ? rows : m_seen;
    for (Index row = 0; row < rows; ++row)
      if (plan.sees(layer, row) != (place(row) < seen)) return false;
    return true;
  }

  // Moves rows from where they are to where m_next wants them, a circle of places after the other.
  template <class Move>
  void move_rows(const Move& move) {
    m_sources.clear();
    for (const Index row : m_next) m_sources.push_back(place(row));
    const auto source = [&](Index at) -> Index& { return m_sources[static_cast<std::size_t>(at)]; };
    for (Index begin = 0; begin < static_cast<Index>(m_sources.size()); ++begin) {
      if (source(begin) == begin) continue;  // where it is already, or moved below
      move(begin, -1);
      Index hole = begin;
      while (source(hole) != begin) {
        move(source(hole), hole);
        hole = std::exchange(source(hole), hole);
      }
      move(-1, hole);
      source(hole) = hole;
    }
  }

  std::vector<Index> m_rows;     // row at each place; empty: plain
  std::vector<Index> m_places;   // place of each row
  std::vector<Index> m_next;     // scratch: rows in their new order,
  std::vector<Index> m_sources;  // and where each of them lies
  Index m_seen = 0;
};

}  // namespace dllm_cache::inline v0_1::detail
