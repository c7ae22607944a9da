// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include "dllm_cache/policy.hpp"

// What a plan must be like to be carried out.
namespace dllm_cache::inline v0_1::detail {

/// Throws std::logic_error, naming policy and row, for a plan that cannot be carried out.
struct PlanCheck {
  const StepPlan& plan;
  const PolicyTraits& traits;
  const StepContext& context;
  std::span<const std::uint8_t> computed;  ///< Rows whose features are stored.
  bool stale = false;                      ///< They may not be read.
  Index open = 0;                          ///< StepContext::open() of this step.

  void run() const {
    check_sizes();
    const Index verified = check_rows();
    check_counts(verified);
    check_keys();
    check_watched();
  }

 private:
  [[nodiscard]] Index rows() const { return static_cast<Index>(computed.size()); }
  [[nodiscard]] RowAction action(Index row) const {
    return plan.rows[static_cast<std::size_t>(row)];
  }
  [[nodiscard]] bool is_stored(Index row) const {
    return !stale && computed[static_cast<std::size_t>(row)] != 0;
  }

  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    base::refuse_call("StepPlan of policy ", traits.name, ": ", parts...);
  }
  [[noreturn]] void refuse_row(Index row, const char* what) const {
    refuse("row ", row, " ", what);
  }

  void check_sizes() const {
    if (static_cast<Index>(plan.rows.size()) != rows())
      refuse("rows must keep its size ", rows(), ", got ", plan.rows.size());
    const Range layers = plan.cached_layers;
    if (layers.begin < 0 || layers.end > context.layers || layers.begin > layers.end)
      refuse("cached_layers must lie in [0, ", context.layers, "), got [", layers.begin, ", ",
             layers.end, ")");
    if (!plan.sees_all() && !traits.hides_rows)
      refuse("rows are hidden, but its traits do not say so (hides_rows)");
    check_size("hidden", plan.hidden.size(), rows());
    check_size("layer_keys", plan.layer_keys.size(), rows() * context.layers);
    check_size("layer_counts", plan.layer_counts.size(), context.layers);
    if (!plan.row_ends.empty()) refuse("row_ends is written between layers alone");
  }
  void check_size(const char* what, std::size_t size, Index wanted) const {
    if (size != 0 && static_cast<Index>(size) != wanted)
      refuse(what, " must be empty or have ", wanted, " entries, got ", size);
  }

  // Returns how many rows are verified.
  [[nodiscard]] Index check_rows() const {
    const Range live = context.live();
    Index verified = 0;
    for (Index row = 0; row < rows(); ++row) {
      const RowAction asked = action(row);
      if (asked > RowAction::Recompute)  // only reached by a policy that writes rows by a cast
        refuse_row(row, "has no known action");
      if (asked == RowAction::Absent) continue;
      if (!live.contains(row)) refuse_row(row, "is in the pass, but lies after the live rows");
      if (plan.hides(row)) refuse_row(row, "is in the pass, but hidden");
      if (asked == RowAction::Verify) ++verified;
      if (asked == RowAction::Recompute) continue;
      if (!is_stored(row)) refuse_row(row, "has no stored features to reuse or verify");
      if (!traits.stored_deltas.contains(row))
        refuse_row(row, "is to be reused or verified, but lies outside stored_deltas");
    }
    return verified;
  }

  void check_counts(Index verified) const {
    if (plan.verify_count < 0 || plan.verify_count > verified)
      refuse("verify_count must be in [0, verified rows = ", verified, "], got ",
             plan.verify_count);
    for (const Index count : plan.layer_counts)
      if (count < 0 || count > verified)
        refuse("verify_in_layer() count must be in [0, verified rows = ", verified, "], got ",
               count);
    if (std::isnan(plan.similarity_threshold))
      refuse("similarity_threshold must be a number, got nan");
  }

  // Rows whose keys are read must have one, and where finished blocks are final a final one.
  void check_keys() const {
    Index keys_read = 0;  // one past the last key that any row may read in this step
    for (Index row = 0; row < rows(); ++row)
      if (action(row) != RowAction::Absent)
        keys_read = std::max(keys_read, context.shape.key_end(row, open));
    for (Index row = 0; row < keys_read; ++row)
      if (action(row) == RowAction::Absent && !is_stored(row) && is_seen(row))
        refuse_row(row, "is absent, but its key would be read and was never computed");
    for (Index row = context.settled; row < std::min(keys_read, open); ++row)
      if (action(row) != RowAction::Recompute && is_seen(row))
        refuse_row(
            row,
            "is not recomputed, but its key would be read and is not settled: a token of its "
            "finished block has changed since it was stored");
  }
  [[nodiscard]] bool is_seen(Index row) const {
    if (plan.layer_keys.empty()) return !plan.hides(row);
    for (Index layer = 0; layer < context.layers; ++layer)
      if (plan.sees(layer, row)) return true;
    return false;
  }

  void check_watched() const {
    if ((plan.fact != AttentionFact::None || !plan.probes.empty()) && !traits.watches_attention)
      refuse("attention is watched, but its traits do not say so (watches_attention)");
    check_list("watched", plan.watched);
    check_list("probe", plan.probes);
    for (const Index row : plan.probes) {
      if (!is_stored(row)) refuse_row(row, "is probed, but has no stored features");
      if (!traits.stored_queries.contains(row))
        refuse_row(row, "is probed, but lies outside stored_queries");
    }
    if (plan.probes.empty()) return;
    for (Index row = 0; row < context.shape.key_end(plan.probes.back(), open); ++row)
      if (!is_stored(row) && is_seen(row))
        refuse_row(row, "is seen by a row that is probed, but had no key in the last step");
  }
  void check_list(const char* what, std::span<const Index> list) const {
    Index before = -1;
    for (const Index row : list) {
      if (row <= before || row >= rows())
        refuse(what, " rows must be ascending in [0, ", rows(), "), got ", row, " after ", before);
      if (action(row) != RowAction::Recompute) refuse(what, " row ", row, " is not recomputed");
      before = row;
    }
  }
};

/// Carries out what a policy wants changed between two layers.
struct PlanChange {
  StepPlan& plan;
  const PolicyTraits& traits;
  std::span<const std::uint8_t> computed;
  bool stale = false;
  Index layers = 0;

  /// Changes the plan from the layer after `layer` on; returns whether it did. Throws
  /// std::logic_error for what cannot be.
  bool apply(const LayerChange& change, Index layer) const {
    if (change.recompute_rest && !(change.ended.empty() && plan.row_ends.empty()))
      base::refuse_call("LayerChange of policy ", traits.name,
                        ": recompute_rest does not go with rows that ended");
    if (layer + 1 >= layers) return false;
    bool changed = false;
    if (change.recompute_rest && plan.cached_layers.end > layer + 1) {
      plan.cached_layers.end = std::max(plan.cached_layers.begin, layer + 1);
      changed = true;
    }
    if (change.verify_count) {
      check_count(*change.verify_count);
      plan.verify_in_layer(layer + 1, *change.verify_count);
      changed = true;
    }
    for (const Index row : change.ended) end(row, layer);
    return changed || !change.ended.empty();
  }

 private:
  void check_count(Index count) const {
    const auto verified =
        static_cast<Index>(std::count(plan.rows.begin(), plan.rows.end(), RowAction::Verify));
    if (count < 0 || count > verified)
      base::refuse_call("LayerChange of policy ", traits.name,
                        ": verify_count must be in [0, verified rows = ", verified, "], got ",
                        count);
  }
  void end(Index row, Index layer) const {
    const auto at = static_cast<std::size_t>(row);
    if (row < 0 || row >= static_cast<Index>(plan.rows.size()) ||
        plan.rows[at] == RowAction::Absent)
      base::refuse_call("LayerChange of policy ", traits.name, ": row ", row,
                        " ends, but is not in the pass");
    if (stale || computed[at] == 0)
      base::refuse_call("LayerChange of policy ", traits.name, ": row ", row,
                        " ends, but deeper layers have stored nothing of it");
    if (plan.row_ends.empty()) plan.row_ends.assign(plan.rows.size(), layers);
    Index& row_end = plan.row_ends[at];
    row_end = std::min(row_end, layer + 1);
    // Nothing is told of its attention in layers that it does not reach.
    std::erase(plan.watched, row);
    std::erase(plan.probes, row);
  }
};

}  // namespace dllm_cache::inline v0_1::detail
