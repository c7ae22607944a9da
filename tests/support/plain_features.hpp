// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dllm_cache/policy.hpp"
#include "dllm_cache/stats.hpp"
#include "dllm_cache/vverify_selector.hpp"
#include "tests/support/tiny_model.hpp"

namespace dllm_cache::testing {

/// What FeatureCache, StepPlanner and Workspace do for one sequence, a second time and row by row:
/// features lie in one vector a layer, row and kind, and a plan is carried out as it is worded.
/// Shared with the library are the policy, the layers, and the three sums behind a similarity.
template <class Scalar, class Stored>
class PlainFeatures {
 public:
  PlainFeatures(const TinyModel<Scalar, Stored>& model, const SequenceShape& shape,
                AnyPolicy policy)
      : m_model(&model), m_policy(std::move(policy)) {
    reset(shape);
  }

  void reset(const SequenceShape& shape) {
    m_shape = shape;
    m_positions.assign(shape.positions.begin(), shape.positions.end());
    if (m_positions.empty())
      for (Index row = 0; row < shape.rows(); ++row)
        m_positions.push_back(static_cast<std::int32_t>(row));
    m_shape.positions = {};
    m_step = 0;
    m_counts = {};
    m_last_open = 0;
    forget();
  }

  /// Another shape, in which the first `keep` rows are what they were.
  void reshape(const SequenceShape& shape, Index keep) {
    const Index phases = shape.attention_phase - m_shape.attention_phase;
    const bool same =
        shape.attention_block > 0 && shape.attention_block == m_shape.attention_block &&
        shape.causal_commit == m_shape.causal_commit && phases % shape.attention_block == 0;
    m_shape = shape;
    m_positions.resize(static_cast<std::size_t>(keep));
    for (Index row = keep; row < shape.rows(); ++row)
      m_positions.push_back(shape.positions.empty()
                                ? static_cast<std::int32_t>(row)
                                : shape.positions[static_cast<std::size_t>(row)]);
    m_shape.positions = {};
    for (auto& layer : m_layers) {
      layer.resize(static_cast<std::size_t>(keep));
      layer.resize(static_cast<std::size_t>(shape.rows()));
      // What the policy does not store is gone, and may be stored from now on.
      const Range stored = m_policy.traits(this->shape()).stored_deltas;
      for (Index row = 0; row < keep; ++row)
        if (!stored.contains(row)) layer[static_cast<std::size_t>(row)].delta.clear();
    }
    Index final_rows = 0;
    while (final_rows < std::min<Index>(keep, static_cast<Index>(m_final.size())) &&
           m_final[static_cast<std::size_t>(final_rows)] != 0)
      ++final_rows;
    m_final.assign(static_cast<std::size_t>(shape.rows()), 0);
    for (Index row = 0; row < final_rows; ++row)
      if (unit_end(row) <= final_rows) m_final[static_cast<std::size_t>(row)] = 1;
    m_last_open = std::min(m_last_open, keep);
    if (!same) forget();
  }

  /// All features are gone: the next step computes every live row.
  void forget() {
    m_stale = true;
    m_layers.assign(static_cast<std::size_t>(m_model->shape().layers),
                    std::vector<Row>(static_cast<std::size_t>(m_shape.rows())));
  }

  /// The plan of the next step; none where it must be refused, with the reason in refusal().
  [[nodiscard]] std::optional<StepPlan> plan(const StepInput& input) {
    StepContext context;
    static_cast<StepInput&>(context) = input;
    context.shape = shape();
    context.layers = m_model->shape().layers;
    context.step = m_step;
    StepPlan plan;
    plan.clear(m_shape.rows(), context.layers, "plain");
    m_refusal.clear();
    const Index live = m_live = live_rows(input);
    m_open = open_row(input);
    m_settled = settled_rows(input);
    context.settled = m_settled;
    try {
      if (m_stale)
        plan.recompute({0, live});
      else
        m_policy.plan(context, plan);
    } catch (const std::logic_error& error) {
      m_refusal = error.what();
      return std::nullopt;
    }
    check(plan, live);
    if (!m_refusal.empty()) return std::nullopt;
    return plan;
  }
  [[nodiscard]] const std::string& refusal() const { return m_refusal; }

  /// Carries a plan out over all rows x [T, d] in place; rows that rest stay what they were.
  void step(const StepPlan& plan, Matrix<Scalar>& x) {
    for (Index number = 0; number < m_model->shape().layers; ++number) run_layer(number, plan, x);
    m_counts.rows += static_cast<Index>(rows_in_pass(plan).size());
    m_final.assign(static_cast<std::size_t>(m_shape.rows()), 0);
    std::fill_n(m_final.begin(), m_settled, std::uint8_t{1});
    const Index most = m_shape.attention_block == 0 ? 0 : m_shape.causal_commit ? m_open : m_live;
    for (Index row = m_settled; row < most; row = unit_end(row)) {
      const auto unit = std::span(plan.rows).subspan(static_cast<std::size_t>(row),
                                                     static_cast<std::size_t>(unit_end(row) - row));
      if (!std::all_of(unit.begin(), unit.end(),
                       [](RowAction action) { return action == RowAction::Recompute; }))
        break;
      std::fill_n(m_final.begin() + row, unit.size(), std::uint8_t{1});
    }
    m_last_open = m_open;
    m_stale = false;
    if (!m_policy.traits(shape()).keeps_features) {
      forget();
      m_stale = false;
    }
    ++m_step;
  }

  /// Rows in the pass, ascending.
  [[nodiscard]] static std::vector<Index> rows_in_pass(const StepPlan& plan) {
    std::vector<Index> rows;
    for (std::size_t row = 0; row < plan.rows.size(); ++row)
      if (plan.rows[row] != RowAction::Absent) rows.push_back(static_cast<Index>(row));
    return rows;
  }

  [[nodiscard]] SequenceShape shape() const {
    SequenceShape shape = m_shape;
    shape.positions = m_positions;
    return shape;
  }
  [[nodiscard]] const AnyPolicy& policy() const { return m_policy; }
  [[nodiscard]] const RowCounts& counts() const { return m_counts; }
  [[nodiscard]] Index steps() const { return m_step; }
  [[nodiscard]] bool stale() const { return m_stale; }

 private:
  struct Row {
    std::vector<Stored> key, value, delta;  // empty: never computed
  };
  using Features = std::vector<Row>;  // of one layer

  [[nodiscard]] Index live_rows(const StepInput& input) const {
    if (m_shape.attention_block == 0) return m_shape.rows();
    const Index end = input.block.begin < input.block.end ? input.block.end : m_shape.rows();
    return seen_keys(m_shape, std::max<Index>(end - 1, 0));
  }

  // First row of what is being decoded.
  [[nodiscard]] Index open_row(const StepInput& input) const {
    if (m_shape.attention_block == 0) return 0;
    const bool all = input.block.begin >= input.block.end;
    const Index end = all ? m_shape.rows() : input.block.end;
    if (input.block_done) return seen_keys(m_shape, std::max<Index>(end - 1, 0));
    const Index first = all ? m_shape.prompt : input.block.begin;
    if (first == m_shape.rows() && (first - m_shape.attention_phase) % m_shape.attention_block == 0)
      return first;
    Index begin = first;
    while (begin > 0 && seen_keys(m_shape, begin - 1) > first) --begin;
    return begin;
  }
  // One past the rows that are final together with this one.
  [[nodiscard]] Index unit_end(Index row) const {
    return m_shape.causal_commit ? row + 1 : seen_keys(m_shape, row);
  }
  [[nodiscard]] Index seen(Index row) const {
    return m_shape.causal_commit && row < m_open ? row + 1 : seen_keys(m_shape, row);
  }
  [[nodiscard]] Index settled_rows(const StepInput& input) const {
    if (m_shape.attention_block == 0 || m_stale) return 0;
    Index row = 0;
    while (row < m_open) {
      for (Index one = row; one < unit_end(row); ++one) {
        const auto at = static_cast<std::size_t>(one);
        if (m_final[at] == 0 || (!input.changed.empty() && input.changed[at] != 0) ||
            (input.changed.empty() && one >= m_last_open))
          return row;
      }
      row = unit_end(row);
    }
    return m_open;
  }

  [[nodiscard]] bool computed(Index row) const {
    return !m_layers.front()[static_cast<std::size_t>(row)].key.empty();
  }

  void check(const StepPlan& plan, Index live) {
    const PolicyTraits traits = m_policy.traits(shape());
    Index verified = 0, keys_read = 0;
    for (const Index row : rows_in_pass(plan)) {
      const RowAction action = plan.rows[static_cast<std::size_t>(row)];
      if (row >= live) m_refusal = "a row is in the pass that does not live yet";
      if (action == RowAction::Verify) ++verified;
      if (action != RowAction::Recompute && (!computed(row) || !traits.stored_deltas.contains(row)))
        m_refusal = "a row is to be reused that nobody has";
      keys_read = std::max(keys_read, seen(row));
    }
    if (plan.verify_count > verified) m_refusal = "more rows are to be selected than verified";
    for (Index row = 0; row < keys_read; ++row)
      if (plan.rows[static_cast<std::size_t>(row)] == RowAction::Absent && !computed(row))
        m_refusal = "a row rests whose key nobody has";
    for (Index row = m_settled; row < std::min(keys_read, m_open); ++row)
      if (plan.rows[static_cast<std::size_t>(row)] != RowAction::Recompute)
        m_refusal = "a row of a finished block is read that is not what it will be";
  }

  void run_layer(Index number, const StepPlan& plan, Matrix<Scalar>& x) {
    Features& rows = m_layers[static_cast<std::size_t>(number)];
    const TinyLayer<Scalar, Stored> layer = m_model->layer(number);
    const ModelShape widths = m_model->shape();
    const bool cached = plan.cached_layers.begin <= number && number < plan.cached_layers.end;
    std::vector<std::pair<double, Index>> verified;  // rank and row
    std::vector<Index> recomputed;
    for (const Index row : rows_in_pass(plan)) {
      const RowAction asked =
          cached ? plan.rows[static_cast<std::size_t>(row)] : RowAction::Recompute;
      if (asked == RowAction::Reuse) continue;
      Matrix<Scalar> v(1, widths.kv_width);
      layer.value(dense_view<const Scalar>(x.row(row), 1, x.cols), v.view());
      ++m_counts.values;
      std::vector<Stored>& kept = rows[static_cast<std::size_t>(row)].value;
      if (asked == RowAction::Verify)
        verified.emplace_back(rank(v, kept), row);
      else
        recomputed.push_back(row);
      kept = rounded(v);
    }
    std::stable_sort(verified.begin(), verified.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    if (!verified.empty())
      for (Index i = 0; i < plan.verify_count; ++i) {
        const auto& [square, row] = verified[static_cast<std::size_t>(i)];
        if (std::copysign(std::sqrt(std::abs(square)), square) < plan.similarity_threshold)
          recomputed.push_back(row);
      }

    std::vector<Matrix<Scalar>> queries;
    for (const Index row : recomputed) {
      Matrix<Scalar> q(1, widths.query_width), k(1, widths.kv_width);
      layer.query_key(dense_view<const Scalar>(x.row(row), 1, x.cols),
                      std::span(m_positions).subspan(static_cast<std::size_t>(row), 1), q.view(),
                      k.view());
      rows[static_cast<std::size_t>(row)].key = rounded(k);
      queries.push_back(std::move(q));
    }
    m_counts.recomputed += static_cast<Index>(recomputed.size());

    const Matrix<Stored> keys = stacked(rows, &Row::key), values = stacked(rows, &Row::value);
    for (std::size_t i = 0; i < recomputed.size(); ++i) {
      const Index row = recomputed[i], visible = seen(row);
      Matrix<Scalar> u(1, x.cols);
      layer.delta_row(x.row(row), queries[i].row(0),
                      dense_view(keys.data.data(), visible, keys.cols),
                      dense_view(values.data.data(), visible, values.cols), u.row(0));
      tiny::add(x.row(row), u.row(0), x.cols);
      rows[static_cast<std::size_t>(row)].delta = rounded(u);
    }
    for (const Index row : rows_in_pass(plan)) {
      if (std::find(recomputed.begin(), recomputed.end(), row) != recomputed.end()) continue;
      std::vector<Scalar> u;
      for (const Stored one : rows[static_cast<std::size_t>(row)].delta)
        u.push_back(static_cast<Scalar>(one));
      tiny::add(x.row(row), u.data(), x.cols);
    }
  }

  // NaN, the least similar, comes first.
  static double rank(const Matrix<Scalar>& fresh, std::vector<Stored> kept) {
    SimilaritySums sums;
    VVerifySelector<Scalar, Stored>().accumulate({fresh.row(0), 1, fresh.cols, fresh.cols},
                                                 dense_view(kept.data(), 1, fresh.cols),
                                                 std::span(&sums, 1));
    const double cosine = signed_square_cosine(sums);
    return std::isnan(cosine) ? -std::numeric_limits<double>::infinity() : cosine;
  }

  static std::vector<Stored> rounded(const Matrix<Scalar>& row) {
    std::vector<Stored> to;
    for (const Scalar one : row.data) to.push_back(static_cast<Stored>(one));
    return to;
  }

  // Rows that nobody has are NaN: whoever reads them is found out.
  Matrix<Stored> stacked(const Features& rows, std::vector<Stored> Row::*feature) const {
    Matrix<Stored> all(m_shape.rows(), m_model->shape().kv_width);
    std::fill(all.data.begin(), all.data.end(), std::numeric_limits<Stored>::quiet_NaN());
    for (Index row = 0; row < all.rows; ++row) {
      const std::vector<Stored>& one = rows[static_cast<std::size_t>(row)].*feature;
      std::copy(one.begin(), one.end(), all.row(row));
    }
    return all;
  }

  const TinyModel<Scalar, Stored>* m_model;
  AnyPolicy m_policy;
  SequenceShape m_shape;
  std::vector<std::int32_t> m_positions;
  std::vector<Features> m_layers;
  RowCounts m_counts;
  std::string m_refusal;
  std::vector<std::uint8_t> m_final;  // 1: the features of the row will not change any more
  Index m_settled = 0, m_open = 0, m_live = 0;  // in the step that was planned last
  Index m_last_open = 0;                        // in the step that was done last
  Index m_step = 0;
  bool m_stale = true;
};

}  // namespace dllm_cache::testing
