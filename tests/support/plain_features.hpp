// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <limits>
#include <map>
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

/// What a policy was told of one layer, in double precision.
struct ToldFacts {
  LayerFacts facts;  ///< Its spans lead into the lists below.
  std::vector<Index> watched;
  std::vector<float> column_sums, query_scores;
  std::vector<Matrix<float>> head_means;
  std::vector<MatrixView<const float>> mean_views;
};

/// What FeatureCache, StepPlanner and Workspace do for one sequence, a second time and row by row:
/// features lie in one vector a layer, row and kind, a plan is carried out as it is worded, and
/// attention is told from double loops. Shared with the library are the policy, the holder of its
/// memory, the layers, and the three sums behind a similarity.
template <class Scalar, class Stored>
class PlainFeatures {
 public:
  PlainFeatures(const TinyModel<Scalar, Stored>& model, const SequenceShape& shape,
                AnyPolicy policy)
      : m_model(&model), m_policy(std::move(policy)), m_memory(m_policy.make_memory()) {
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
    m_memory = m_policy.make_memory();
    forget();
  }

  /// Another shape, in which the first `keep` rows are what they were.
  void reshape(const SequenceShape& shape, Index keep) {
    const Index phases = shape.attention_phase - m_shape.attention_phase;
    const bool same =
        shape.attention_block > 0 && shape.attention_block == m_shape.attention_block &&
        shape.causal_commit == m_shape.causal_commit && phases % shape.attention_block == 0;
    const Range stored_before = m_policy.traits(this->shape()).stored_deltas;
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
    m_memory = m_policy.make_memory();
    const Range stored = m_policy.traits(this->shape()).stored_deltas;
    bool all_there = true;
    for (Index row = 0; row < keep; ++row)
      if (stored.contains(row) && !stored_before.contains(row)) all_there = false;
    if (!same || !all_there || !m_memory.empty()) forget();
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
    context.stale = m_stale;
    m_step_memory = m_memory;
    try {
      if (!m_stale || !m_memory.empty()) m_policy.plan(context, m_step_memory, plan);
      if (m_stale) plan = everything_of(plan, live);
    } catch (const std::logic_error& error) {
      m_refusal = error.what();
      return std::nullopt;
    }
    check(plan, live);
    if (!m_refusal.empty()) return std::nullopt;
    m_context = context;
    static_cast<StepInput&>(m_context) = {
        .block = input.block, .block_step = input.block_step, .block_done = input.block_done};
    return plan;
  }
  [[nodiscard]] const std::string& refusal() const { return m_refusal; }

  /// Carries a plan out over all rows x [T, d] in place; rows that rest stay what they were. With
  /// what the policy asks for between layers.
  void step(StepPlan plan, Matrix<Scalar>& x) {
    const Index layers = m_model->shape().layers;
    std::vector<Index>& ends = m_ends;
    ends.assign(plan.rows.size(), layers);
    m_means.clear();
    for (Index number = 0; number < layers; ++number) {
      run_layer(number, plan, ends, x);
      if (m_policy.watches_layers()) change(number, plan, ends);
    }
    m_counts.rows += static_cast<Index>(rows_in_pass(plan).size());
    m_memory = m_step_memory;
    m_final.assign(static_cast<std::size_t>(m_shape.rows()), 0);
    std::fill_n(m_final.begin(), m_settled, std::uint8_t{1});
    const Index most = m_shape.attention_block == 0 ? 0 : m_shape.causal_commit ? m_open : m_live;
    for (Index row = m_settled; row < most; row = unit_end(row)) {
      bool whole = true;
      for (Index one = row; one < unit_end(row); ++one)
        if (plan.rows[static_cast<std::size_t>(one)] != RowAction::Recompute ||
            ends[static_cast<std::size_t>(one)] < layers)
          whole = false;
      if (!whole) break;
      std::fill_n(m_final.begin() + row, unit_end(row) - row, std::uint8_t{1});
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
  /// How many layers each row may have gone through in the last step.
  [[nodiscard]] const std::vector<Index>& ends() const { return m_ends; }
  [[nodiscard]] const AnyPolicy& policy() const { return m_policy; }
  [[nodiscard]] const RowCounts& counts() const { return m_counts; }
  [[nodiscard]] Index steps() const { return m_step; }
  [[nodiscard]] bool stale() const { return m_stale; }

 private:
  struct Row {
    std::vector<Stored> key, value, delta, query, feature;  // empty: never computed
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

  // A plain forward of what is not hidden.
  [[nodiscard]] StepPlan everything_of(const StepPlan& asked, Index live) const {
    StepPlan plan;
    plan.clear(static_cast<Index>(asked.rows.size()), m_model->shape().layers, "plain");
    plan.hidden = asked.hidden;
    plan.layer_keys = asked.layer_keys;
    plan.watched = asked.watched;
    plan.fact = asked.fact;
    for (Index row = 0; row < live; ++row)
      if (!is_hidden(plan, row)) plan.recompute(row);
    return plan;
  }

  static bool is_hidden(const StepPlan& plan, Index row) {
    return !plan.hidden.empty() && plan.hidden[static_cast<std::size_t>(row)] == 1;
  }
  static bool is_seen(const StepPlan& plan, Index layer, Index row) {
    const auto at = static_cast<std::size_t>(row);
    if (is_hidden(plan, row)) return false;
    if (plan.layer_keys.empty() || plan.rows[at] != RowAction::Absent) return true;
    return plan.layer_keys[static_cast<std::size_t>(layer) * plan.rows.size() + at] == 1;
  }
  static bool is_seen_anywhere(const StepPlan& plan, Index layers, Index row) {
    for (Index layer = 0; layer < layers; ++layer)
      if (is_seen(plan, layer, row)) return true;
    return false;
  }

  void check(const StepPlan& plan, Index live) {
    const Index layers = m_model->shape().layers;
    const PolicyTraits traits = m_policy.traits(shape());
    Index verified = 0, keys_read = 0;
    for (const Index row : rows_in_pass(plan)) {
      const RowAction action = plan.rows[static_cast<std::size_t>(row)];
      if (row >= live) m_refusal = "a row is in the pass that does not live yet";
      if (is_hidden(plan, row)) m_refusal = "a row is in the pass that is hidden";
      if (action == RowAction::Verify) ++verified;
      if (action != RowAction::Recompute && (!computed(row) || !traits.stored_deltas.contains(row)))
        m_refusal = "a row is to be reused that nobody has";
      keys_read = std::max(keys_read, seen(row));
    }
    if (plan.verify_count > verified) m_refusal = "more rows are to be selected than verified";
    for (const Index count : plan.layer_counts)
      if (count > verified) m_refusal = "more rows are to be selected in a layer than verified";
    for (Index row = 0; row < keys_read; ++row)
      if (plan.rows[static_cast<std::size_t>(row)] == RowAction::Absent && !computed(row) &&
          is_seen_anywhere(plan, layers, row))
        m_refusal = "a row rests whose key nobody has";
    for (const Index probe : plan.probes)
      for (Index row = 0; row < seen(probe); ++row)
        if (!computed(row) && is_seen_anywhere(plan, layers, row))
          m_refusal = "a probe sees a key that was not there";
    for (Index row = m_settled; row < std::min(keys_read, m_open); ++row)
      if (plan.rows[static_cast<std::size_t>(row)] != RowAction::Recompute &&
          is_seen_anywhere(plan, layers, row))
        m_refusal = "a row of a finished block is read that is not what it will be";
  }

  void run_layer(Index number, const StepPlan& plan, const std::vector<Index>& ends,
                 Matrix<Scalar>& x) {
    Features& rows = m_layers[static_cast<std::size_t>(number)];
    const TinyLayer<Scalar, Stored> layer = m_model->layer(number);
    const ModelShape widths = m_model->shape();
    const PolicyTraits traits = m_policy.traits(shape());
    const bool cached = plan.cached_layers.begin <= number && number < plan.cached_layers.end;
    std::vector<std::pair<double, Index>> verified;  // rank and row
    std::vector<Index> in_layer, recomputed, with_value, with_key;
    for (const Index row : rows_in_pass(plan)) {
      if (ends[static_cast<std::size_t>(row)] <= number) continue;
      in_layer.push_back(row);
      const RowAction asked =
          cached ? plan.rows[static_cast<std::size_t>(row)] : RowAction::Recompute;
      if (asked == RowAction::Reuse) continue;
      if (asked == RowAction::Recompute) recomputed.push_back(row);
      if (asked == RowAction::Recompute || traits.stores_verified_keys) {
        with_key.push_back(row);
        with_value.push_back(row);
      } else if (!traits.verifies_features) {
        with_value.push_back(row);
      }
      Row& kept = rows[static_cast<std::size_t>(row)];
      if (traits.verifies_features) {
        Matrix<Scalar> f(1, widths.verify_width);
        layer.verify_feature(one_row(x, row), f.view());
        if (asked == RowAction::Verify) verified.emplace_back(rank(f, kept.feature), row);
        kept.feature = rounded(f);
      } else if (asked == RowAction::Verify) {
        Matrix<Scalar> v(1, widths.kv_width);
        layer.value(one_row(x, row), v.view());
        verified.emplace_back(rank(v, kept.value), row);
      }
    }
    std::stable_sort(verified.begin(), verified.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    const Index count = plan.layer_counts.empty()
                            ? plan.verify_count
                            : plan.layer_counts[static_cast<std::size_t>(number)];
    for (Index i = 0; i < std::min(count, static_cast<Index>(verified.size())); ++i) {
      const auto& [square, row] = verified[static_cast<std::size_t>(i)];
      if (std::copysign(std::sqrt(std::abs(square)), square) >= plan.similarity_threshold) continue;
      recomputed.push_back(row);
      if (!traits.stores_verified_keys) with_key.push_back(row);
      if (!traits.stores_verified_keys && traits.verifies_features) with_value.push_back(row);
    }

    m_fresh_queries.clear();
    const Matrix<Stored> keys_before = stacked(rows, &Row::key);
    m_queries_before.clear();
    for (const Index row : plan.probes)
      m_queries_before.push_back(rows[static_cast<std::size_t>(row)].query);
    m_probed = cached && !plan.probes.empty();
    for (const Index row : with_value) {
      Matrix<Scalar> v(1, widths.kv_width);
      layer.value(one_row(x, row), v.view());
      rows[static_cast<std::size_t>(row)].value = rounded(v);
    }
    m_counts.values += static_cast<Index>(with_value.size());
    for (const Index row : with_key) {
      Matrix<Scalar> q(1, widths.query_width), k(1, widths.kv_width);
      layer.query_key(one_row(x, row),
                      std::span(m_positions).subspan(static_cast<std::size_t>(row), 1), q.view(),
                      k.view());
      rows[static_cast<std::size_t>(row)].key = rounded(k);
      if (std::find(recomputed.begin(), recomputed.end(), row) == recomputed.end()) continue;
      rows[static_cast<std::size_t>(row)].query = rounded(q);
      m_fresh_queries[row] = std::move(q);
    }
    m_counts.recomputed += static_cast<Index>(recomputed.size());

    // Those that are seen, side by side.
    const Matrix<Stored> keys = stacked(rows, &Row::key), values = stacked(rows, &Row::value);
    for (const Index row : recomputed) {
      Matrix<Stored> seen_keys(keys.rows, keys.cols), seen_values(keys.rows, keys.cols);
      Index visible = 0;
      for (Index other = 0; other < seen(row); ++other) {
        if (!is_seen(plan, number, other)) continue;
        std::copy_n(keys.row(other), keys.cols, seen_keys.row(visible));
        std::copy_n(values.row(other), keys.cols, seen_values.row(visible++));
      }
      Matrix<Scalar> u(1, x.cols);
      layer.delta_row(x.row(row), m_fresh_queries.at(row).row(0),
                      dense_view<const Stored>(seen_keys.data.data(), visible, keys.cols),
                      dense_view<const Stored>(seen_values.data.data(), visible, keys.cols),
                      u.row(0));
      tiny::add(x.row(row), u.row(0), x.cols);
      rows[static_cast<std::size_t>(row)].delta = rounded(u);
    }
    for (const Index row : in_layer) {
      if (std::find(recomputed.begin(), recomputed.end(), row) != recomputed.end()) continue;
      std::vector<Scalar> u;
      for (const Stored one : rows[static_cast<std::size_t>(row)].delta)
        u.push_back(static_cast<Scalar>(one));
      tiny::add(x.row(row), u.data(), x.cols);
    }
    if (m_policy.watches_layers()) look(number, plan, ends, cached, keys_before, keys);
  }

  // p of every head over all rows, 0 where the row does not see: a softmax in double.
  template <class T>
  std::vector<std::vector<double>> attention(Index number, const StepPlan& plan, Index row,
                                             const T* query, const Matrix<Stored>& keys) const {
    const TinyWeights<Scalar>& w = m_model->layers.front();
    std::vector<std::vector<double>> p;
    for (Index head = 0; head < w.heads; ++head) {
      std::vector<double>& one =
          p.emplace_back(std::vector<double>(static_cast<std::size_t>(keys.rows)));
      double total = 0.0;
      for (Index key = 0; key < seen(row); ++key)
        if (is_seen(plan, number, key)) {
          const double score = dot(query, keys, head, key) / std::sqrt(double(w.head_dim));
          total += one[static_cast<std::size_t>(key)] = std::exp(score);
        }
      for (double& number_of : one) number_of /= total;
    }
    return p;
  }
  template <class T>
  double dot(const T* query, const Matrix<Stored>& keys, Index head, Index key) const {
    const TinyWeights<Scalar>& w = m_model->layers.front();
    double sum = 0.0;
    for (Index i = 0; i < w.head_dim; ++i)
      sum += static_cast<double>(query[head * w.head_dim + i]) *
             static_cast<double>(keys.row(key)[head / (w.heads / w.kv_heads) * w.head_dim + i]);
    return sum;
  }

  // What is to be told of a layer that is done.
  void look(Index number, const StepPlan& plan, const std::vector<Index>& ends, bool cached,
            const Matrix<Stored>& keys_before, const Matrix<Stored>& keys) {
    const auto heads = static_cast<double>(m_model->layers.front().heads);
    const auto all = static_cast<std::size_t>(keys.rows);
    const auto goes_on = [&](Index row) { return ends[static_cast<std::size_t>(row)] > number; };
    m_told = {};
    std::copy_if(plan.watched.begin(), plan.watched.end(), std::back_inserter(m_told.watched),
                 goes_on);
    std::vector<double> sums(all), scores(all, -std::numeric_limits<double>::infinity());
    Matrix<float> means(static_cast<Index>(m_told.watched.size()), keys.rows);
    for (std::size_t i = 0; i < m_told.watched.size(); ++i) {
      const Index row = m_told.watched[i];
      for (const auto& p : attention(number, plan, row, m_fresh_queries.at(row).row(0), keys))
        for (std::size_t key = 0; key < all; ++key) {
          sums[key] += p[key];
          means.row(static_cast<Index>(i))[key] += static_cast<float>(p[key] / heads);
        }
    }
    if (!m_told.watched.empty()) {
      const auto rows = static_cast<double>(m_told.watched.size());
      for (Index key = 0; key < seen(m_told.watched.back()); ++key) {
        if (!is_seen(plan, number, key)) continue;
        double score = 0.0;
        for (const Index row : m_told.watched)
          for (Index head = 0; head < m_model->layers.front().heads; ++head)
            score += dot(m_fresh_queries.at(row).row(0), keys, head, key);
        scores[static_cast<std::size_t>(key)] = score / rows / heads;
      }
      if (plan.fact == AttentionFact::ColumnSums)
        m_told.column_sums.assign(sums.begin(), sums.end());
      if (plan.fact == AttentionFact::QueryScores)
        m_told.query_scores.assign(scores.begin(), scores.end());
      if (plan.fact == AttentionFact::HeadMeans) m_means.push_back(means);
    }
    m_told.head_means = m_means;
    double similarity = 0.0, pairs = 0.0;
    for (std::size_t i = 0; m_probed && i < plan.probes.size(); ++i) {
      const Index row = plan.probes[i];
      if (!goes_on(row)) continue;
      const auto before = attention(number, plan, row, m_queries_before[i].data(), keys_before);
      const auto now = attention(number, plan, row, m_fresh_queries.at(row).row(0), keys);
      for (Index key = 0; key < seen(row); ++key) {
        if (!is_seen(plan, number, key)) continue;
        double both = 0.0, old_square = 0.0, new_square = 0.0;
        for (std::size_t head = 0; head < now.size(); ++head) {
          const double a = before[head][static_cast<std::size_t>(key)],
                       b = now[head][static_cast<std::size_t>(key)];
          both += a * b;
          old_square += a * a;
          new_square += b * b;
        }
        similarity +=
            both / (std::max(1e-8, std::sqrt(old_square)) * std::max(1e-8, std::sqrt(new_square)));
        pairs += 1.0;
      }
    }
    for (Matrix<float>& one : m_told.head_means) m_told.mean_views.push_back(one.view());
    m_told.facts = {.layer = number,
                    .cached = cached,
                    .column_sums = m_told.column_sums,
                    .head_means = m_told.mean_views,
                    .query_scores = m_told.query_scores,
                    .probe_similarity = similarity / pairs,
                    .watched = m_told.watched};
  }

  // What the policy wants changed from the next layer on.
  void change(Index number, StepPlan& plan, std::vector<Index>& ends) {
    LayerChange change;
    m_policy.after_layer(m_context, m_told.facts, m_step_memory, change);
    const Index next = number + 1;
    if (next == m_model->shape().layers) return;
    if (change.recompute_rest && next < plan.cached_layers.end)
      plan.cached_layers.end = std::max(next, plan.cached_layers.begin);
    if (change.verify_count) {
      plan.layer_counts.resize(static_cast<std::size_t>(m_model->shape().layers),
                               plan.verify_count);
      plan.layer_counts[static_cast<std::size_t>(next)] = *change.verify_count;
    }
    for (const Index row : change.ended)
      ends[static_cast<std::size_t>(row)] = std::min(ends[static_cast<std::size_t>(row)], next);
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

  static MatrixView<const Scalar> one_row(Matrix<Scalar>& x, Index row) {
    return dense_view<const Scalar>(x.row(row), 1, x.cols);
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
  detail::AnyMemory m_memory, m_step_memory;  // of the last step that was done, of the one planned
  std::vector<Index> m_ends;
  StepContext m_context;                              // between the layers of a step
  std::map<Index, Matrix<Scalar>> m_fresh_queries;    // of the layer that is done, by row
  std::vector<std::vector<Stored>> m_queries_before;  // of the probes
  bool m_probed = false;
  std::vector<Matrix<float>> m_means;  // of the layers that are done
  ToldFacts m_told;
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
