// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

#include "dllm_cache/step_input.hpp"

namespace dllm_cache::inline v0_1 {

/// What happens to a row in a step, ordered by work.
enum class RowAction : std::uint8_t {
  Absent,  ///< Not in the pass; others see the cached key and value.
  Reuse,   ///< In the pass; every layer adds the cached delta.
  Verify,  ///< In the pass; the value is computed and stored, the rest only if the row is selected.
  Recompute  ///< In the pass; value, key, query and delta are computed.
};

/// Similarity threshold of a plan under which every verified row may be selected.
inline constexpr double no_similarity_threshold = std::numeric_limits<double>::infinity();

/// What is told of a layer's attention to a policy that watches rows; p is the softmax over all
/// visible keys of `q . k * scale`, one for each watched row and head.
enum class AttentionFact : std::uint8_t {
  None,
  ColumnSums,  ///< For each key the sum of p over watched rows and heads: `[T]`.
  HeadMeans,   ///< For each watched row and key the mean of p over heads: `[watched, T]`.
  QueryScores  ///< For each key the mean over heads of (mean query of the watched rows) . key,
               ///< neither scaled nor made a probability: `[T]`.
};

/// A policy's decision for one step: one action a row, how many `Verify` rows are selected, in
/// which layers the cache is used at all (outside, every row in the pass is recomputed), which keys
/// are seen, and what is to be told of attention.
///
/// A policy is given a plan in which every row is absent and visible and `cached_layers` holds all
/// layers, and asks for more; of several actions for a row the one with most work wins. `rows` may
/// also be written directly.
struct StepPlan {
  std::vector<RowAction> rows;  ///< One action a row of the sequence.
  Index verify_count = 0;       ///< Rows selected among the verified ones, in every cached layer.
  /// Of these, rows at least this similar are left alone (cosine; any number but NaN).
  double similarity_threshold = no_similarity_threshold;
  Range cached_layers;                   ///< Layers in which actions hold.
  std::string_view policy;               ///< Name for messages.
  std::vector<Index> layer_counts;       ///< `verify_count` of each layer; empty: the same in all.
  std::vector<std::uint8_t> hidden;      ///< One flag a row, 1: nobody sees it; empty: none.
  std::vector<std::uint8_t> layer_keys;  ///< `[layers, T]`, 0: not seen in that layer unless it is
                                         ///< in the pass; empty: all are seen.
  std::vector<Index> watched;            ///< Rows whose attention is told, ascending; see watch().
  AttentionFact fact = AttentionFact::None;
  std::vector<Index> probes;    ///< Rows whose attention is compared, ascending; see probe().
  std::vector<Index> row_ends;  ///< Layers that each row goes through, once one ended early; empty:
                                ///< all. Written between layers, see LayerChange.

  /// Asks that `range` be recomputed; throws std::logic_error when it is not within the rows.
  void recompute(Range range) { raise(range, RowAction::Recompute, "recompute"); }
  /// The same for one row.
  void recompute(Index row) { recompute({row, row + 1}); }

  /// Asks that `range` be verified and its `count` least similar rows recomputed, `count >= 0`,
  /// but none that is at least as similar as `threshold` (any number but NaN; a row whose
  /// similarity is NaN is recomputed); throws std::logic_error on a second call in one plan, or a
  /// range not within the rows.
  void verify(Range range, Index count, double threshold = no_similarity_threshold) {
    if (m_verifies)
      base::refuse_call("StepPlan of policy ", policy, ": verify() may be called once a plan");
    check_count("verify", count);
    if (std::isnan(threshold))
      base::refuse_call("StepPlan of policy ", policy,
                        ": verify() threshold must be a number, got nan");
    raise(range, RowAction::Verify, "verify");
    verify_count = count;
    similarity_threshold = threshold;
    m_verifies = true;
  }
  /// Asks that `layer` select another number of verified rows, `count >= 0`; throws
  /// std::logic_error for a layer that is not there.
  void verify_in_layer(Index layer, Index count) {
    check_layer("verify_in_layer", layer);
    check_count("verify_in_layer", count);
    if (layer_counts.empty()) layer_counts.assign(static_cast<std::size_t>(m_layers), verify_count);
    layer_counts[static_cast<std::size_t>(layer)] = count;
  }
  /// Rows that a layer selects; `0 <= layer < layers` (unchecked).
  [[nodiscard]] Index verify_count_in(Index layer) const {
    return layer_counts.empty() ? verify_count : layer_counts[static_cast<std::size_t>(layer)];
  }

  /// Asks that `range` be in the pass with its cached deltas; throws like recompute().
  void reuse(Range range) { raise(range, RowAction::Reuse, "reuse"); }

  /// Asks that nobody see the keys of `range` in this step, in no layer: as if these rows were not
  /// there. They must be absent. Throws like recompute().
  void hide(Range range) {
    check_range("hide", range);
    if (hidden.empty()) hidden.assign(rows.size(), 0);
    std::fill(hidden.begin() + range.begin, hidden.begin() + range.end, std::uint8_t{1});
  }
  /// Whether a row is hidden in every layer; `0 <= row < T` (unchecked).
  [[nodiscard]] bool hides(Index row) const {
    return !hidden.empty() && hidden[static_cast<std::size_t>(row)] != 0;
  }
  /// Asks that `layer` see the keys of these rows alone (one flag a row, 1: seen), and of those
  /// that are in the pass: each of them sees itself, whatever it turns out that it has to do.
  /// Throws std::logic_error for a layer that is not there or another number of flags.
  void limit_keys(Index layer, std::span<const std::uint8_t> seen) {
    check_layer("limit_keys", layer);
    if (seen.size() != rows.size())
      base::refuse_call("StepPlan of policy ", policy,
                        ": limit_keys() wants one flag a row = ", rows.size(), ", got ",
                        seen.size());
    if (layer_keys.empty()) layer_keys.assign(rows.size() * static_cast<std::size_t>(m_layers), 1);
    std::copy(seen.begin(), seen.end(),
              layer_keys.begin() + layer * static_cast<Index>(rows.size()));
  }
  /// Whether the key of a row is seen in a layer, `0 <= row < T`, `0 <= layer < layers`
  /// (unchecked).
  [[nodiscard]] bool sees(Index layer, Index row) const {
    if (hides(row)) return false;
    const auto at = static_cast<std::size_t>(row);
    return layer_keys.empty() ||
           layer_keys[static_cast<std::size_t>(layer) * rows.size() + at] != 0 ||
           rows[at] != RowAction::Absent;
  }
  /// Whether every row is seen in every layer.
  [[nodiscard]] bool sees_all() const { return hidden.empty() && layer_keys.empty(); }

  /// Asks that `asked` be told after every layer of the attention of `which`, ascending rows that
  /// are recomputed; throws std::logic_error on a second call in one plan.
  void watch(std::span<const Index> which, AttentionFact asked) {
    if (fact != AttentionFact::None)
      base::refuse_call("StepPlan of policy ", policy, ": watch() may be called once a plan");
    watched.assign(which.begin(), which.end());
    fact = asked;
  }
  /// Asks that after every cached layer the attention of these rows be compared with what it was
  /// after the last step, ascending rows that are recomputed and whose queries are stored; all keys
  /// that they see must have been stored too. Throws like watch().
  void probe(std::span<const Index> which) {
    if (!probes.empty())
      base::refuse_call("StepPlan of policy ", policy, ": probe() may be called once a plan");
    probes.assign(which.begin(), which.end());
  }

  /// Whether a row in the pass goes through a layer.
  [[nodiscard]] bool reaches(Index row, Index layer) const {
    return row_ends.empty() || layer < row_ends[static_cast<std::size_t>(row)];
  }

  /// Empties the plan for `row_count` rows and `layers` layers; keeps its memory.
  void clear(Index row_count, Index layers, std::string_view policy_name) {
    rows.assign(static_cast<std::size_t>(row_count), RowAction::Absent);
    verify_count = 0;
    similarity_threshold = no_similarity_threshold;
    cached_layers = {0, layers};
    policy = policy_name;
    m_verifies = false;
    m_layers = layers;
    for (auto* list : {&layer_counts, &watched, &probes, &row_ends}) list->clear();
    hidden.clear();
    layer_keys.clear();
    fact = AttentionFact::None;
  }

 private:
  void check_range(const char* what, Range range) const {
    if (range.begin < 0 || range.end > static_cast<Index>(rows.size()) || range.begin > range.end)
      base::refuse_call("StepPlan of policy ", policy, ": ", what, "() range must lie in [0, ",
                        rows.size(), "), got [", range.begin, ", ", range.end, ")");
  }
  void check_layer(const char* what, Index layer) const {
    if (layer < 0 || layer >= m_layers)
      base::refuse_call("StepPlan of policy ", policy, ": ", what, "() layer must be in [0, ",
                        m_layers, "), got ", layer);
  }
  void check_count(const char* what, Index count) const {
    if (count < 0)
      base::refuse_call("StepPlan of policy ", policy, ": ", what,
                        "() count must be at least 0, got ", count);
  }
  void raise(Range range, RowAction asked, const char* what) {
    check_range(what, range);
    for (Index row = range.begin; row < range.end; ++row) {
      RowAction& action = rows[static_cast<std::size_t>(row)];
      action = std::max(action, asked);
    }
  }

  Index m_layers = 0;
  bool m_verifies = false;
};

}  // namespace dllm_cache::inline v0_1
