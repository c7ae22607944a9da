// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <memory>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "dllm_cache/feature_cache.hpp"
#include "dllm_cache/models/transformer_runner.hpp"
#include "selectors.hpp"

namespace study {

namespace models = dllm_cache::models;

/// Sums for a linear correlation of two quantities.
struct Correlation {
  double count = 0.0, x = 0.0, y = 0.0, xx = 0.0, xy = 0.0, yy = 0.0;

  void add(double a, double b) {
    count += 1.0;
    x += a;
    y += b;
    xx += a * a;
    xy += a * b;
    yy += b * b;
  }
  Correlation& operator+=(const Correlation& other) {
    count += other.count;
    x += other.x;
    y += other.y;
    xx += other.xx;
    xy += other.xy;
    yy += other.yy;
    return *this;
  }
  /// Pearson's coefficient; NaN where one quantity never changes.
  [[nodiscard]] double coefficient() const {
    const double covariance = count * xy - x * y;
    return covariance / std::sqrt((count * xx - x * x) * (count * yy - y * y));
  }
};

/// How the change of values goes with that of deltas, over the verified rows of one layer.
struct ChangeStatistics {
  Correlation cosines;  ///< Of the cosine of values and that of deltas, fresh against cached.
};

/// A model that, before a verified layer of one sequence, also computes what the deltas of all its
/// response rows would be, and how far they are from the cached ones. For batches of one. Satisfies
/// DenoisingModel.
class OracleModel {
 public:
  using Cache = dllm_cache::FeatureCache<float, float, Selector>;

  explicit OracleModel(models::TransformerRunner& runner)
      : m_runner(&runner),
        m_changes(std::make_shared<TrueChanges>()),
        m_statistics(static_cast<std::size_t>(runner.shape().layers)) {}

  /// How to find the cache of the sequence that runs on this model.
  void watch(std::function<const Cache&()> cache) { m_cache = std::move(cache); }
  /// Changes of the layer at hand, for the selector.
  [[nodiscard]] std::shared_ptr<const TrueChanges> changes() const { return m_changes; }
  /// Statistics so far, one a layer.
  [[nodiscard]] const std::vector<ChangeStatistics>& statistics() const { return m_statistics; }
  /// Operations of the runner, those of the oracle included.
  [[nodiscard]] double operations() const { return m_runner->operations(); }

  [[nodiscard]] dllm_cache::ModelShape shape() const { return m_runner->shape(); }
  [[nodiscard]] Index vocabulary() const { return m_runner->vocabulary(); }
  [[nodiscard]] Index prediction_shift() const { return m_runner->prediction_shift(); }
  [[nodiscard]] dllm_cache::SpecialTokens special_tokens() const {
    return m_runner->special_tokens();
  }
  void embed(std::span<const std::int32_t> tokens, MatrixView<float> x) {
    m_runner->embed(tokens, x);
  }
  void logits(MatrixView<const float> x, MatrixView<float> logits) { m_runner->logits(x, logits); }

  class Layer {
   public:
    Layer(OracleModel& model, Index number)
        : m_model(&model), m_layer(model.m_runner->layer(number)), m_number(number) {}
    void value(MatrixView<const float> x, MatrixView<float> v) {
      m_layer.value(x, v);
      m_model->foresee(m_layer, m_number, x, v);
    }
    void query_key(MatrixView<const float> x, std::span<const std::int32_t> positions,
                   MatrixView<float> q, MatrixView<float> k) {
      m_layer.query_key(x, positions, q, k);
    }
    void delta(MatrixView<const float> x, MatrixView<const float> q,
               std::span<const dllm_cache::Segment<float>> segments, MatrixView<float> u) {
      m_layer.delta(x, q, segments, u);
    }

   private:
    OracleModel* m_model;
    models::TransformerLayerHandle m_layer;
    Index m_number;
  };
  [[nodiscard]] Layer layer(Index number) { return {*this, number}; }

 private:
  // Where the layer verifies the response: recomputes all of it against the cached prompt.
  void foresee(models::TransformerLayerHandle& layer, Index number, MatrixView<const float> x,
               MatrixView<const float> v) {
    const Cache& cache = m_cache();
    const dllm_cache::SequenceShape shape = cache.shape();
    const dllm_cache::StepPlan& plan = cache.planner().plan();
    const auto first = static_cast<std::size_t>(shape.prompt);
    if (plan.rows.at(first) != dllm_cache::RowAction::Verify ||
        !plan.cached_layers.contains(number))
      return;
    const Index rows = shape.response, width = cache.model().width;
    const MatrixView<const float> hidden = x.middle_rows(x.rows - rows, rows);
    const MatrixView<const float> fresh = v.middle_rows(v.rows - rows, rows);
    m_positions.resize(static_cast<std::size_t>(rows));
    std::iota(m_positions.begin(), m_positions.end(), static_cast<std::int32_t>(shape.prompt));
    const auto q = view(m_queries, rows, cache.model().query_width);
    const auto k = view(m_fresh_keys, rows, cache.model().kv_width);
    const auto u = view(m_deltas, rows, width);
    layer.query_key(hidden, m_positions, q, k);
    const auto keys = copy(cache.keys(number), k, m_keys);
    const auto values = copy(cache.values(number), fresh, m_values);
    const dllm_cache::Segment<float> segment{0, rows, keys, values};
    layer.delta(hidden, q, std::span(&segment, 1), u);
    m_changes->squares.assign(static_cast<std::size_t>(rows), 0.0);
    const auto old_values = cache.values(number).middle_rows(shape.prompt, rows);
    const auto old_deltas =
        cache.deltas(number).middle_rows(shape.prompt - cache.stored_deltas().begin, rows);
    for (Index row = 0; row < rows; ++row) {
      const std::array<double, 3> delta = products(u.row(row), old_deltas.row(row), width);
      const std::array<double, 3> value =
          products(fresh.row(row), old_values.row(row), cache.model().kv_width);
      m_changes->squares[static_cast<std::size_t>(row)] = delta[1] + delta[2] - 2.0 * delta[0];
      m_statistics[static_cast<std::size_t>(number)].cosines.add(
          value[0] / std::sqrt(value[1] * value[2]), delta[0] / std::sqrt(delta[1] * delta[2]));
    }
  }

  static MatrixView<float> view(std::vector<float>& memory, Index rows, Index cols) {
    memory.resize(static_cast<std::size_t>(rows * cols));
    return dllm_cache::dense_view(memory.data(), rows, cols);
  }
  // Cached rows with those of the response, the last ones, replaced by fresh ones.
  static MatrixView<const float> copy(MatrixView<const float> cached, MatrixView<const float> fresh,
                                      std::vector<float>& memory) {
    const auto all = view(memory, cached.rows, cached.cols);
    for (Index row = 0; row < cached.rows; ++row) {
      const Index place = row - (cached.rows - fresh.rows);
      std::copy_n(place < 0 ? cached.row(row) : fresh.row(place), cached.cols, all.row(row));
    }
    return all;
  }
  // a . b, a . a and b . b.
  static std::array<double, 3> products(const float* a, const float* b, Index count) {
    std::array<double, 3> sums{};
    for (Index i = 0; i < count; ++i) {
      const double x = a[i], y = b[i];
      sums[0] += x * y;
      sums[1] += x * x;
      sums[2] += y * y;
    }
    return sums;
  }

  models::TransformerRunner* m_runner;
  std::function<const Cache&()> m_cache;
  std::shared_ptr<TrueChanges> m_changes;
  std::vector<ChangeStatistics> m_statistics;
  std::vector<std::int32_t> m_positions;
  std::vector<float> m_queries, m_fresh_keys, m_deltas, m_keys, m_values;
};

}  // namespace study
