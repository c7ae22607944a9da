// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "dllm_cache/plan.hpp"
#include "tests/support/tiny_model.hpp"

namespace dllm_cache::testing {

/// dLLM-Cache a second time, written from the description of the method alone: every row is carried
/// through every layer, every row has its key, value and delta kept, nothing is shared with the
/// library but the layers. Rounds to Stored what it keeps.
template <class Scalar, class Stored = Scalar>
class PlainDllmCache {
 public:
  Index prompt_interval = 1, response_interval = 1;
  double ratio = 0.0;
  double similarity_threshold = no_similarity_threshold;
  bool refresh_first_layer = true;

  PlainDllmCache(const TinyModel<Scalar, Stored>& model, const SequenceShape& shape)
      : m_model(model), m_shape(shape) {
    const ModelShape widths = model.shape();
    for (Index i = 0; i < widths.layers; ++i)
      m_layers.push_back({Matrix<Stored>(shape.rows(), widths.kv_width),
                          Matrix<Stored>(shape.rows(), widths.kv_width),
                          Matrix<Stored>(shape.rows(), widths.width)});
  }

  /// One step over all rows x [T, d]; the hidden states of all rows come back. A `broken` step
  /// before this one makes it recompute everything.
  Matrix<Scalar> step(Matrix<Scalar> x, bool broken = false) {
    const bool all = broken || m_step == 0;
    const bool prompt_due = all || m_step % prompt_interval == 0;
    const bool response_due = all || m_step % response_interval == 0;
    for (Index number = 0; number < m_model.shape().layers; ++number) {
      const bool first = number == 0 && refresh_first_layer;
      run_layer(number, prompt_due || first, response_due || first, x);
    }
    ++m_step;
    return x;
  }

  [[nodiscard]] const Matrix<Stored>& keys(Index layer) const { return kept(layer).keys; }
  [[nodiscard]] const Matrix<Stored>& values(Index layer) const { return kept(layer).values; }

 private:
  struct Kept {
    Matrix<Stored> keys, values, deltas;
  };
  [[nodiscard]] const Kept& kept(Index layer) const {
    return m_layers[static_cast<std::size_t>(layer)];
  }

  void run_layer(Index number, bool prompt_due, bool response_due, Matrix<Scalar>& x) {
    Kept& kept = m_layers[static_cast<std::size_t>(number)];
    const ModelShape widths = m_model.shape();
    const TinyLayer<Scalar, Stored> layer = m_model.layer(number);
    Matrix<Scalar> v(x.rows, widths.kv_width), k(x.rows, widths.kv_width),
        q(x.rows, widths.query_width), u(x.rows, widths.width);
    std::vector<std::int32_t> positions;
    for (Index row = 0; row < x.rows; ++row) positions.push_back(static_cast<std::int32_t>(row));
    layer.value(x.view(), v.view());
    layer.query_key(x.view(), positions, q.view(), k.view());

    std::vector<Index> fresh;  // rows whose key and delta are computed in this layer
    if (prompt_due)
      for (Index row = 0; row < m_shape.prompt; ++row) fresh.push_back(row);
    if (response_due)
      for (Index row = m_shape.prompt; row < m_shape.rows(); ++row) fresh.push_back(row);
    if (!response_due && ratio > 0.0)
      for (const Index row : least_similar(kept, v)) fresh.push_back(row);
    for (Index row = 0; row < m_shape.rows(); ++row) {
      const bool is_prompt = row < m_shape.prompt;
      if (is_prompt ? prompt_due : (response_due || ratio > 0.0))
        round_row(v.row(row), kept.values.row(row), widths.kv_width);
    }
    for (const Index row : fresh) round_row(k.row(row), kept.keys.row(row), widths.kv_width);
    for (const Index row : fresh)
      layer.delta_row(x.row(row), q.row(row), kept.keys.view(), kept.values.view(), u.row(row));
    for (Index row = 0; row < m_shape.rows(); ++row) {
      if (std::find(fresh.begin(), fresh.end(), row) != fresh.end()) {
        round_row(u.row(row), kept.deltas.row(row), widths.width);
      } else {
        for (Index i = 0; i < widths.width; ++i)
          u.row(row)[i] = static_cast<Scalar>(kept.deltas.row(row)[i]);
      }
      tiny::add(x.row(row), u.row(row), widths.width);
    }
  }

  std::vector<Index> least_similar(const Kept& kept, const Matrix<Scalar>& v) const {
    std::vector<double> score(static_cast<std::size_t>(m_shape.rows()));
    std::vector<Index> rows;
    for (Index row = m_shape.prompt; row < m_shape.rows(); ++row) {
      double dot = 0, now = 0, before = 0;
      for (Index i = 0; i < v.cols; ++i) {
        const auto a = static_cast<double>(static_cast<Stored>(v.row(row)[i]));
        const auto b = static_cast<double>(kept.values.row(row)[i]);
        dot += a * b;
        now += a * a;
        before += b * b;
      }
      score[static_cast<std::size_t>(row)] =
          dot * std::abs(dot) / (std::max(now, 1e-16) * std::max(before, 1e-16));
      rows.push_back(row);
    }
    std::stable_sort(rows.begin(), rows.end(), [&](Index a, Index b) {
      return score[static_cast<std::size_t>(a)] < score[static_cast<std::size_t>(b)];
    });
    rows.resize(static_cast<std::size_t>(static_cast<double>(m_shape.response) * ratio));
    std::erase_if(rows, [&](Index row) {
      const double square = score[static_cast<std::size_t>(row)];
      return std::copysign(std::sqrt(std::abs(square)), square) >= similarity_threshold;
    });
    return rows;
  }

  static void round_row(const Scalar* from, Stored* to, Index count) {
    for (Index i = 0; i < count; ++i) to[i] = static_cast<Stored>(from[i]);
  }

  const TinyModel<Scalar, Stored>& m_model;
  SequenceShape m_shape;
  std::vector<Kept> m_layers;
  Index m_step = 0;
};

}  // namespace dllm_cache::testing
