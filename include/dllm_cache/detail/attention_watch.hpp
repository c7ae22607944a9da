// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "dllm_cache/base/buffer.hpp"
#include "dllm_cache/detail/attention_scores.hpp"
#include "dllm_cache/detail/key_order.hpp"
#include "dllm_cache/model_shape.hpp"
#include "dllm_cache/step_planner.hpp"

namespace dllm_cache::inline v0_1::detail {

/// One sequence in one layer, as far as its attention depends on it.
template <class Scalar, class Stored>
struct WatchedLayer {
  const ModelShape& model;
  const StepPlanner& planner;
  const KeyOrder& order;
  Index number = 0;                   ///< Of the layer.
  MatrixView<const Stored> keys;      ///< As they lie in memory, `[T, kv]`.
  MatrixView<const Stored> queries;   ///< Stored ones, `[stored_queries, query_width]`.
  MatrixView<const Scalar> fresh;     ///< Queries of this step, `[recomputed, query_width]`.
  std::span<const Index> recomputed;  ///< Rows that they belong to, ascending.
};

/// What a policy is told of the attention of one sequence's step: computed from fresh queries and
/// stored keys, a head at a time, so that the layer's own attention stays as it is.
///
/// The work is `2 * watched * seen keys * query_width` operations a layer. Keeps its memory from
/// step to step; not synchronised.
template <class Scalar, class Stored>
class AttentionWatch {
 public:
  using Layer = WatchedLayer<Scalar, Stored>;

  /// Takes the memory that the plan of a step needs; throws std::bad_alloc.
  void begin_step(const ModelShape& model, const StepPlanner& planner) {
    const StepPlan& plan = planner.plan();
    const auto rows = static_cast<Index>(plan.rows.size());
    const auto watched = static_cast<Index>(plan.watched.size());
    const auto probes = static_cast<Index>(plan.probes.size());
    m_means_done.clear();
    m_probes = false;
    if (watched == 0 && probes == 0) return;
    m_queries.reserve(static_cast<std::size_t>(std::max(watched, probes)));
    m_scores.ensure(std::max(watched, probes) * rows);
    m_sums.resize(static_cast<std::size_t>(rows));
    if (plan.fact == AttentionFact::HeadMeans) {
      m_means.ensure(model.layers * watched * rows);
      m_means_done.reserve(static_cast<std::size_t>(model.layers));
    }
    if (plan.fact == AttentionFact::QueryScores) m_mean_query.ensure(model.query_width);
    if (probes == 0) return;
    m_old.ensure(probes * model.heads * rows);
    m_old_queries.ensure(probes * model.query_width);
    m_squares.resize(static_cast<std::size_t>(3 * rows));
  }

  /// Before this step's keys of a layer are stored: keeps the attention that the probes had.
  void before_keys(const Layer& layer) {
    const StepPlan& plan = layer.planner.plan();
    m_probes = !plan.probes.empty() && plan.cached_layers.contains(layer.number);
    if (!m_probes) return;
    const Index stored = layer.planner.traits().stored_queries.begin;
    const auto probes = static_cast<Index>(plan.probes.size());
    const MatrixView<Scalar> queries = m_old_queries.view(probes, layer.model.query_width);
    for (Index i = 0; i < probes; ++i) {
      const Stored* const from =
          layer.queries.row(plan.probes[static_cast<std::size_t>(i)] - stored);
      std::transform(from, from + queries.cols, queries.row(i),
                     [](Stored value) { return static_cast<Scalar>(value); });
    }
    const Index keys = seen_keys(layer);
    for (Index head = 0; head < layer.model.heads; ++head) {
      const MatrixView<float> p =
          probabilities(layer, head, plan.probes, [&](Index i) { return queries.row(i); });
      for (Index i = 0; i < probes; ++i) std::copy_n(p.row(i), keys, old(layer, i, head));
    }
  }

  /// After a layer: what the plan asked for; valid until the next layer or step.
  [[nodiscard]] LayerFacts after_layer(const Layer& layer) {
    const StepPlan& plan = layer.planner.plan();
    LayerFacts facts{.layer = layer.number,
                     .cached = plan.cached_layers.contains(layer.number),
                     .watched = plan.watched};
    if (m_probes) facts.probe_similarity = probe_similarity(layer);
    facts.head_means = m_means_done;
    if (plan.watched.empty()) return facts;
    switch (plan.fact) {
      case AttentionFact::None:
        break;
      case AttentionFact::ColumnSums:
        add_column_sums(layer);
        facts.column_sums = m_sums;
        break;
      case AttentionFact::HeadMeans:
        add_head_means(layer);
        facts.head_means = m_means_done;
        break;
      case AttentionFact::QueryScores:
        add_query_scores(layer);
        facts.query_scores = m_sums;
        break;
    }
    return facts;
  }

 private:
  // Keys that any row may see: they lie in the first places.
  static Index seen_keys(const Layer& layer) {
    return layer.order.seen_before(static_cast<Index>(layer.planner.plan().rows.size()));
  }
  static const Scalar* fresh_query(const Layer& layer, Index row) {
    const auto found = std::lower_bound(layer.recomputed.begin(), layer.recomputed.end(), row);
    return layer.fresh.row(found - layer.recomputed.begin());
  }
  float* old(const Layer& layer, Index probe, Index head) {
    return m_old.data() + (probe * layer.model.heads + head) * seen_keys(layer);
  }
  static Index key_column(const ModelShape& model, Index head) {
    return head / (model.heads / model.kv_heads()) * model.head_width();
  }
  static double scale(const ModelShape& model) {
    return model.attention_scale > 0.0 ? model.attention_scale
                                       : 1.0 / std::sqrt(static_cast<double>(model.head_width()));
  }

  // p `[rows, seen keys]` of a head, of the rows whose queries `query(i)` gives.
  template <class Query>
  MatrixView<float> probabilities(const Layer& layer, Index head, std::span<const Index> rows,
                                  const Query& query) {
    const ModelShape& model = layer.model;
    m_queries.clear();
    for (Index i = 0; i < static_cast<Index>(rows.size()); ++i)
      m_queries.push_back(query(i) + head * model.head_width());
    const MatrixView<float> p =
        dense_view(m_scores.data(), static_cast<Index>(rows.size()), seen_keys(layer));
    score_keys<Scalar, Stored>(m_queries, layer.keys, key_column(model, head), model.head_width(),
                               scale(model), p);
    for (Index i = 0; i < p.rows; ++i) {
      const Index key_end = layer.planner.key_end(rows[static_cast<std::size_t>(i)]);
      softmax_scores(std::span(p.row(i), static_cast<std::size_t>(p.cols)),
                     layer.order.seen_before(key_end));
    }
    return p;
  }
  MatrixView<float> watched_probabilities(const Layer& layer, Index head) {
    const std::span<const Index> watched = layer.planner.plan().watched;
    return probabilities(layer, head, watched, [&](Index i) {
      return fresh_query(layer, watched[static_cast<std::size_t>(i)]);
    });
  }
  float& sum_of(const Layer& layer, Index place) {
    return m_sums[static_cast<std::size_t>(layer.order.row(place))];
  }

  void add_column_sums(const Layer& layer) {
    std::fill(m_sums.begin(), m_sums.end(), 0.0F);
    for (Index head = 0; head < layer.model.heads; ++head) {
      const MatrixView<float> p = watched_probabilities(layer, head);
      for (Index i = 0; i < p.rows; ++i)
        for (Index key = 0; key < p.cols; ++key) sum_of(layer, key) += p.row(i)[key];
    }
  }

  void add_head_means(const Layer& layer) {
    const auto watched = static_cast<Index>(layer.planner.plan().watched.size());
    const auto rows = static_cast<Index>(m_sums.size());
    // Behind those of the last layer: fewer rows may be watched than there.
    Index begin = 0;
    for (const MatrixView<const float>& done : m_means_done) begin += done.rows * done.cols;
    const MatrixView<float> means = dense_view(m_means.data() + begin, watched, rows);
    std::fill_n(means.data, watched * rows, 0.0F);
    const float share = 1.0F / static_cast<float>(layer.model.heads);
    for (Index head = 0; head < layer.model.heads; ++head) {
      const MatrixView<float> p = watched_probabilities(layer, head);
      for (Index i = 0; i < p.rows; ++i)
        for (Index key = 0; key < p.cols; ++key)
          means.row(i)[layer.order.row(key)] += share * p.row(i)[key];
    }
    m_means_done.push_back(means);
  }

  void add_query_scores(const Layer& layer) {
    const ModelShape& model = layer.model;
    const std::span<const Index> watched = layer.planner.plan().watched;
    Scalar* const mean = m_mean_query.data();
    std::fill_n(mean, model.query_width, Scalar(0));
    for (const Index row : watched) {
      const Scalar* const query = fresh_query(layer, row);
      for (Index col = 0; col < model.query_width; ++col) mean[col] += query[col];
    }
    // Rows that none of them sees may never have been computed.
    const Index keys = layer.order.seen_before(layer.planner.key_end(watched.back()));
    std::fill(m_sums.begin(), m_sums.end(), -std::numeric_limits<float>::infinity());
    for (Index key = 0; key < keys; ++key) sum_of(layer, key) = 0.0F;
    const MatrixView<float> scores = dense_view(m_scores.data(), 1, keys);
    const double share =
        1.0 / static_cast<double>(static_cast<Index>(watched.size()) * model.heads);
    for (Index head = 0; head < model.heads; ++head) {
      const Scalar* const query = mean + head * model.head_width();
      score_keys<Scalar, Stored>(std::span(&query, 1), layer.keys, key_column(model, head),
                                 model.head_width(), share, scores);
      for (Index key = 0; key < keys; ++key) sum_of(layer, key) += scores.row(0)[key];
    }
  }

  double probe_similarity(const Layer& layer) {
    const std::span<const Index> probes = layer.planner.plan().probes;
    double total = 0.0, pairs = 0.0;
    for (std::size_t i = 0; i < probes.size(); ++i) {
      const Index visible = layer.order.seen_before(layer.planner.key_end(probes[i]));
      const auto count = static_cast<std::size_t>(visible);
      const std::span<float> dot = std::span(m_squares).first(count);
      const std::span<float> old_square = std::span(m_squares).subspan(count, count);
      const std::span<float> new_square = std::span(m_squares).subspan(2 * count, count);
      std::fill(m_squares.begin(), m_squares.end(), 0.0F);
      for (Index head = 0; head < layer.model.heads; ++head) {
        const MatrixView<float> p = probabilities(layer, head, probes.subspan(i, 1), [&](Index) {
          return fresh_query(layer, probes[i]);
        });
        const float* const before = old(layer, static_cast<Index>(i), head);
        for (std::size_t key = 0; key < count; ++key) {
          dot[key] += before[key] * p.row(0)[key];
          old_square[key] += before[key] * before[key];
          new_square[key] += p.row(0)[key] * p.row(0)[key];
        }
      }
      for (std::size_t key = 0; key < count; ++key) {
        const double old_norm = std::max(1e-8, std::sqrt(static_cast<double>(old_square[key])));
        const double new_norm = std::max(1e-8, std::sqrt(static_cast<double>(new_square[key])));
        total += static_cast<double>(dot[key]) / (old_norm * new_norm);
      }
      pairs += static_cast<double>(visible);
    }
    return total / pairs;
  }

  std::vector<const Scalar*> m_queries;
  base::Buffer<float> m_scores;  // of one head
  std::vector<float> m_sums;     // one a row
  base::Buffer<float> m_means;   // of all layers
  std::vector<MatrixView<const float>> m_means_done;
  base::Buffer<Scalar> m_mean_query;
  base::Buffer<float> m_old;  // attention of the probes before: [probes, heads, seen keys]
  base::Buffer<Scalar> m_old_queries;
  std::vector<float> m_squares;
  bool m_probes = false;  // in this layer
};

}  // namespace dllm_cache::inline v0_1::detail
