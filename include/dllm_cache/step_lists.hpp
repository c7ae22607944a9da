// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <compare>
#include <cstdint>
#include <span>
#include <vector>

#include "dllm_cache/stats.hpp"
#include "dllm_cache/step_planner.hpp"

// A plan as lists of numbers, for runtimes that carry it out on a device or in a graph.
namespace dllm_cache::inline v0_1 {

/// The rows that one kind of layer computes in a step: those that are verified, ascending, then
/// those that are recomputed in any case, ascending.
struct ComputedRows {
  std::vector<std::int32_t> places;  ///< Of each row in the pass: row of the hidden states.
  std::vector<std::int32_t> rows;    ///< The same rows by number in the sequence: row of keys,
                                     ///< values and deltas.
  std::int32_t verified = 0;         ///< How many of them, the first ones, are verified.

  /// Values are computed of all of them: one product.
  [[nodiscard]] std::int32_t count() const { return static_cast<std::int32_t>(rows.size()); }
  [[nodiscard]] std::span<const std::int32_t> verified_places() const {
    return std::span(places).first(static_cast<std::size_t>(verified));
  }
  [[nodiscard]] std::span<const std::int32_t> verified_rows() const {
    return std::span(rows).first(static_cast<std::size_t>(verified));
  }
  [[nodiscard]] std::span<const std::int32_t> recomputed_places() const {
    return std::span(places).subspan(static_cast<std::size_t>(verified));
  }
  [[nodiscard]] std::span<const std::int32_t> recomputed_rows() const {
    return std::span(rows).subspan(static_cast<std::size_t>(verified));
  }
};

/// The numbers that the shapes of a step's graph depend on: equal ones, the same graph.
struct StepSizes {
  std::int32_t rows = 0;          ///< Rows in the pass.
  std::int32_t verified = 0;      ///< Rows verified in a layer of `cached_layers`,
  std::int32_t verify_count = 0;  ///< of which so many are selected, or fewer with a threshold;
  std::int32_t recomputed = 0;    ///< rows recomputed there in any case.
  std::int32_t first_cached = 0;  ///< `cached_layers`: elsewhere every row in the pass is
  std::int32_t end_cached = 0;    ///< recomputed.
  std::int32_t keys = 0;          ///< One past the last row whose key any row in the pass may see.
  std::int32_t seen = -1;         ///< How many of them exist where rows are hidden; else -1.
  bool threshold = false;         ///< Whether similar rows are left alone.
  bool layer_counts = false;      ///< Whether layers select different numbers of rows.

  friend auto operator<=>(const StepSizes&, const StepSizes&) = default;
};

/// What a policy wants that lists cannot say, in words for messages; null where they say it all.
/// `hides` says that the runtime leaves hidden rows out of attention (StepLists::seen).
[[nodiscard]] inline const char* beyond_lists(const AnyPolicy& policy, const PolicyTraits& traits,
                                              bool hides) {
  if (policy.watches_layers() || traits.watches_attention)
    return "decides between layers, by attention that it watches";
  if (traits.verifies_features || traits.stores_verified_keys)
    return "verifies rows by a feature of its own";
  return traits.hides_rows && !hides ? "hides rows" : nullptr;
}

/// Refuses a policy of which lists cannot say everything that it asks for: throws
/// std::invalid_argument naming it and what it wants; see beyond_lists().
inline void check_listed(const AnyPolicy& policy, const PolicyTraits& traits, bool hides) {
  if (const char* const wants = beyond_lists(policy, traits, hides))
    base::refuse_argument("policy ", traits.name, " ", wants,
                          ", which whole steps cannot do here: run it layer by layer");
}

/// A step of one sequence as lists that `get_rows`, `index_select` or an upload take as they are.
///
/// A layer computes values of `of(layer)`, compares those of the verified rows with the values kept
/// (selection.hpp), keeps all of them, computes keys, queries and deltas of the selected and the
/// recomputed rows, and adds the kept deltas of all rows in the pass. Allocates nothing once it has
/// seen its largest step. Not synchronised.
struct StepLists {
  std::vector<std::int32_t> rows;       ///< Numbers of the rows in the pass, ascending.
  std::vector<std::int32_t> positions;  ///< Rotary position of each of them.
  std::vector<std::int32_t> key_ends;   ///< One past the last row whose key each of them sees.
  std::vector<std::int32_t> seen;       ///< Where `hides`: numbers of the rows below `keys` that
                                        ///< exist, ascending; keys of others are seen by nobody.
  ComputedRows cached;                  ///< Rows of a layer in `cached_layers`.
  ComputedRows plain;                   ///< Of the other layers: all in the pass, recomputed.
  Range cached_layers;
  std::int32_t layers = 0;                 ///< Layers of the model.
  std::int32_t keys = 0;                   ///< The largest of `key_ends`, or 0.
  bool hides = false;                      ///< Whether any row is hidden.
  std::vector<std::int32_t> layer_counts;  ///< `verify_count` of each layer; empty: the same.
  std::int32_t verify_count = 0;  ///< Rows selected in each layer of `cached_layers`; of these,
  double similarity_threshold = no_similarity_threshold;  ///< those as similar are left alone.

  /// Takes the step that a planner has open; throws std::logic_error when none is, and for a plan
  /// that lists cannot say (see check_listed()).
  void assign(const StepPlanner& planner) {
    if (!planner.step_open()) base::refuse_call("StepLists: assign() without an open step");
    const StepPlan& plan = planner.plan();
    if (!plan.layer_keys.empty() || plan.fact != AttentionFact::None || !plan.probes.empty())
      base::refuse_call("StepLists: the plan of policy ", plan.policy,
                        " limits keys by layer or watches attention, which lists cannot say");
    for (auto* list : {&rows, &positions, &key_ends, &cached.places, &cached.rows, &plain.places})
      list->clear();
    keys = 0;
    for (std::size_t row = 0; row < plan.rows.size(); ++row) {
      if (plan.rows[row] == RowAction::Absent) continue;
      plain.places.push_back(static_cast<std::int32_t>(rows.size()));
      rows.push_back(static_cast<std::int32_t>(row));
      positions.push_back(planner.positions()[row]);
      key_ends.push_back(static_cast<std::int32_t>(planner.key_end(static_cast<Index>(row))));
      keys = std::max(keys, key_ends.back());
    }
    hides = !plan.hidden.empty();
    seen.clear();
    for (Index row = 0; hides && row < static_cast<Index>(keys); ++row)
      if (!plan.hides(row)) seen.push_back(static_cast<std::int32_t>(row));
    layer_counts.assign(plan.layer_counts.begin(), plan.layer_counts.end());
    plain.rows = rows;
    plain.verified = 0;
    take(plan, RowAction::Verify);
    cached.verified = cached.count();
    take(plan, RowAction::Recompute);
    cached_layers = plan.cached_layers;
    layers = static_cast<std::int32_t>(planner.layers());
    verify_count = static_cast<std::int32_t>(plan.verify_count);
    similarity_threshold = plan.similarity_threshold;
  }

  /// The rows of a layer, `0 <= layer < layers` (unchecked).
  [[nodiscard]] const ComputedRows& of(Index layer) const {
    return cached_layers.contains(layer) ? cached : plain;
  }
  /// How many verified rows a layer selects, `0 <= layer < layers` (unchecked).
  [[nodiscard]] std::int32_t verify_count_in(Index layer) const {
    return layer_counts.empty() ? verify_count : layer_counts[static_cast<std::size_t>(layer)];
  }
  /// How many rows a layer recomputes, where a threshold leaves none of the selected ones alone.
  [[nodiscard]] std::int32_t recomputed_in(Index layer) const {
    const ComputedRows& kind = of(layer);
    return kind.count() - kind.verified + (kind.verified > 0 ? verify_count_in(layer) : 0);
  }
  /// Work of the step, where a threshold leaves none of the selected rows alone.
  [[nodiscard]] RowCounts counts() const {
    RowCounts counts{.rows = static_cast<Index>(rows.size())};
    for (Index layer = 0; layer < layers; ++layer) {
      counts.values += of(layer).count();
      counts.recomputed += recomputed_in(layer);
    }
    return counts;
  }
  /// What the shapes of its graph depend on.
  [[nodiscard]] StepSizes sizes() const {
    return {.rows = static_cast<std::int32_t>(rows.size()),
            .verified = cached.verified,
            .verify_count = verify_count,
            .recomputed = cached.count() - cached.verified,
            .first_cached = static_cast<std::int32_t>(cached_layers.begin),
            .end_cached = static_cast<std::int32_t>(cached_layers.end),
            .keys = keys,
            .seen = hides ? static_cast<std::int32_t>(seen.size()) : -1,
            .threshold = similarity_threshold < no_similarity_threshold,
            .layer_counts = !layer_counts.empty()};
  }

 private:
  void take(const StepPlan& plan, RowAction action) {
    for (std::size_t place = 0; place < rows.size(); ++place)
      if (plan.rows[static_cast<std::size_t>(rows[place])] == action) {
        cached.places.push_back(static_cast<std::int32_t>(place));
        cached.rows.push_back(rows[place]);
      }
  }
};

}  // namespace dllm_cache::inline v0_1
