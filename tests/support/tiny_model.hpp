// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "dllm_cache/feature_cache.hpp"
#include "dllm_cache/layer.hpp"
#include "tests/support/random_numbers.hpp"

// A small transformer in plain loops. Every row is computed by the same functions in the same order
// of operations, whichever rows stand beside it: results can be compared bit by bit.
namespace dllm_cache::testing {

/// `rows x width` numbers, row-major.
template <class T>
struct Matrix {
  Index rows = 0, cols = 0;
  std::vector<T> data;

  Matrix() = default;
  Matrix(Index row_count, Index col_count)
      : rows(row_count), cols(col_count), data(static_cast<std::size_t>(row_count * col_count)) {}
  [[nodiscard]] T* row(Index i) { return data.data() + i * cols; }
  [[nodiscard]] const T* row(Index i) const { return data.data() + i * cols; }
  [[nodiscard]] MatrixView<T> view() { return dense_view(data.data(), rows, cols); }
};

namespace tiny {

// None of these is inlined: one compiled body gives one rounding, wherever it is called from.
template <class Scalar>
[[gnu::noinline]] void project(const Scalar* x, Index in, const std::vector<Scalar>& weights,
                               Scalar* y, Index out) {
  for (Index o = 0; o < out; ++o) {
    Scalar sum = 0;
    for (Index i = 0; i < in; ++i) sum += x[i] * weights[static_cast<std::size_t>(o * in + i)];
    y[o] = sum;
  }
}

template <class Scalar>
[[gnu::noinline]] void norm(const Scalar* x, Index n, Scalar* y) {
  Scalar square = 0;
  for (Index i = 0; i < n; ++i) square += x[i] * x[i];
  const Scalar scale =
      Scalar(1) / std::sqrt(square / static_cast<Scalar>(n) + static_cast<Scalar>(1e-5));
  for (Index i = 0; i < n; ++i) y[i] = x[i] * scale;
}

template <class Scalar>
[[gnu::noinline]] void rotate(Scalar* x, Index heads, Index head_dim, std::int32_t position) {
  for (Index head = 0; head < heads; ++head)
    for (Index i = 0; i < head_dim / 2; ++i) {
      const double angle =
          position * std::pow(100.0, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
      const auto c = static_cast<Scalar>(std::cos(angle)), s = static_cast<Scalar>(std::sin(angle));
      Scalar& a = x[head * head_dim + i];
      Scalar& b = x[head * head_dim + i + head_dim / 2];
      const Scalar old = a;
      a = old * c - b * s;
      b = old * s + b * c;
    }
}

template <class Scalar, class Stored>
[[gnu::noinline]] void attend(const Scalar* q, MatrixView<const Stored> keys,
                              MatrixView<const Stored> values, Index heads, Index head_dim,
                              Scalar* out) {
  const Index group = heads * head_dim / keys.cols;
  for (Index head = 0; head < heads; ++head) {
    const Index from = head / group * head_dim;
    Scalar total = 0;
    for (Index i = 0; i < head_dim; ++i) out[head * head_dim + i] = 0;
    for (Index key = 0; key < keys.rows; ++key) {
      Scalar score = 0;
      for (Index i = 0; i < head_dim; ++i)
        score += q[head * head_dim + i] * static_cast<Scalar>(keys.row(key)[from + i]);
      const Scalar weight = std::exp(score / std::sqrt(static_cast<Scalar>(head_dim)));
      total += weight;
      for (Index i = 0; i < head_dim; ++i)
        out[head * head_dim + i] += weight * static_cast<Scalar>(values.row(key)[from + i]);
    }
    for (Index i = 0; i < head_dim; ++i) out[head * head_dim + i] /= total;
  }
}

template <class Scalar>
[[gnu::noinline]] void add(Scalar* x, const Scalar* u, Index n) {
  for (Index i = 0; i < n; ++i) x[i] += u[i];
}

}  // namespace tiny

/// Weights of one layer. The widths all differ, so that none can be taken for another.
template <class Scalar>
struct TinyWeights {
  Index width = 6, heads = 4, kv_heads = 2, head_dim = 4, hidden = 5, feature_width = 3;
  std::vector<Scalar> value, key, query, output, up, down, feature;

  [[nodiscard]] Index query_width() const { return heads * head_dim; }
  [[nodiscard]] Index kv_width() const { return kv_heads * head_dim; }
};

/// The three functions of a TransformerLayer over TinyWeights, and a feature to verify rows by.
template <class Scalar, class Stored = Scalar>
struct TinyLayer {
  const TinyWeights<Scalar>* weights = nullptr;

  void value(MatrixView<const Scalar> x, MatrixView<Scalar> v) const {
    std::vector<Scalar> normed(static_cast<std::size_t>(x.cols));
    for (Index row = 0; row < x.rows; ++row) {
      tiny::norm(x.row(row), x.cols, normed.data());
      tiny::project(normed.data(), x.cols, weights->value, v.row(row), v.cols);
    }
  }
  void query_key(MatrixView<const Scalar> x, std::span<const std::int32_t> positions,
                 MatrixView<Scalar> q, MatrixView<Scalar> k) const {
    std::vector<Scalar> normed(static_cast<std::size_t>(x.cols));
    for (Index row = 0; row < x.rows; ++row) {
      const std::int32_t position = positions[static_cast<std::size_t>(row)];
      tiny::norm(x.row(row), x.cols, normed.data());
      tiny::project(normed.data(), x.cols, weights->query, q.row(row), q.cols);
      tiny::rotate(q.row(row), weights->heads, weights->head_dim, position);
      tiny::project(normed.data(), x.cols, weights->key, k.row(row), k.cols);
      tiny::rotate(k.row(row), weights->kv_heads, weights->head_dim, position);
    }
  }
  void verify_feature(MatrixView<const Scalar> x, MatrixView<Scalar> f) const {
    std::vector<Scalar> normed(static_cast<std::size_t>(x.cols));
    for (Index row = 0; row < x.rows; ++row) {
      tiny::norm(x.row(row), x.cols, normed.data());
      tiny::project(normed.data(), x.cols, weights->feature, f.row(row), f.cols);
    }
  }
  void delta(MatrixView<const Scalar> x, MatrixView<const Scalar> q,
             std::span<const Segment<Stored>> segments, MatrixView<Scalar> u) const {
    for (const Segment<Stored>& segment : segments)
      for (Index row = segment.begin; row < segment.end; ++row)
        delta_row(x.row(row), q.row(row), segment.keys, segment.values, u.row(row));
  }
  void delta_row(const Scalar* x, const Scalar* q, MatrixView<const Stored> keys,
                 MatrixView<const Stored> values, Scalar* u) const {
    const auto d = static_cast<std::size_t>(weights->width);
    std::vector<Scalar> mixed(static_cast<std::size_t>(weights->query_width())), residual(x, x + d),
        normed(d), hidden(static_cast<std::size_t>(weights->hidden)), ffn(d);
    tiny::attend(q, keys, values, weights->heads, weights->head_dim, mixed.data());
    tiny::project(mixed.data(), weights->query_width(), weights->output, u, weights->width);
    tiny::add(residual.data(), u, weights->width);
    tiny::norm(residual.data(), weights->width, normed.data());
    tiny::project(normed.data(), weights->width, weights->up, hidden.data(), weights->hidden);
    for (Scalar& h : hidden) h = std::tanh(h);
    tiny::project(hidden.data(), weights->hidden, weights->down, ffn.data(), weights->width);
    tiny::add(u, ffn.data(), weights->width);
  }
};

/// A stack of tiny layers with seeded weights and an embedding table.
template <class Scalar, class Stored = Scalar>
struct TinyModel {
  std::vector<TinyWeights<Scalar>> layers;
  Matrix<Scalar> embeddings;

  explicit TinyModel(Index layer_count, std::uint64_t seed, Index kv_heads = 2, Index width = 6) {
    RandomNumbers random(seed);
    // Wide rows must not drive the exponentials of attention out of range.
    const double scale = width <= 6 ? 1.0 : std::sqrt(6.0 / static_cast<double>(width));
    for (Index i = 0; i < layer_count; ++i) {
      TinyWeights<Scalar> w;
      w.width = width;
      w.kv_heads = kv_heads;
      w.heads = 2 * kv_heads;
      w.value = random.vector<Scalar>(w.width * w.kv_width(), scale);
      w.key = random.vector<Scalar>(w.width * w.kv_width(), scale);
      w.query = random.vector<Scalar>(w.width * w.query_width(), scale);
      w.output = random.vector<Scalar>(w.query_width() * w.width);
      w.up = random.vector<Scalar>(w.width * w.hidden, scale);
      w.down = random.vector<Scalar>(w.hidden * w.width);
      // From numbers of their own: the other weights of a seed stay what they were without it.
      w.feature = RandomNumbers(seed + static_cast<std::uint64_t>(i))
                      .vector<Scalar>(w.width * w.feature_width, scale);
      layers.push_back(std::move(w));
    }
    embeddings = Matrix<Scalar>(vocabulary, layers.front().width);
    embeddings.data = random.vector<Scalar>(vocabulary * layers.front().width, 2.0);
  }

  static constexpr Index vocabulary = 13;
  static constexpr Index mask = 12;

  [[nodiscard]] ModelShape shape() const {
    const TinyWeights<Scalar>& w = layers.front();
    return {.layers = static_cast<Index>(layers.size()),
            .width = w.width,
            .query_width = w.query_width(),
            .kv_width = w.kv_width(),
            .heads = w.heads,
            .verify_width = w.feature_width};
  }
  [[nodiscard]] TinyLayer<Scalar, Stored> layer(Index i) const {
    return {&layers[static_cast<std::size_t>(i)]};
  }
  [[nodiscard]] Matrix<Scalar> embed(const std::vector<Index>& tokens) const {
    Matrix<Scalar> x(static_cast<Index>(tokens.size()), embeddings.cols);
    for (Index row = 0; row < x.rows; ++row)
      std::copy_n(embeddings.row(tokens[static_cast<std::size_t>(row)]), x.cols, x.row(row));
    return x;
  }
};

/// Tokens of a sequence: a random prompt, then masks.
template <class Scalar, class Stored>
std::vector<Index> start_tokens(const TinyModel<Scalar, Stored>& model, const SequenceShape& shape,
                                RandomNumbers& random) {
  std::vector<Index> tokens(static_cast<std::size_t>(shape.rows()), model.mask);
  for (Index row = 0; row < shape.prompt; ++row)
    tokens[static_cast<std::size_t>(row)] = random.below(model.vocabulary - 1);
  return tokens;
}

/// Gives one or two random response rows a new token, as a decoding loop does between steps.
inline void commit_tokens(std::vector<Index>& tokens, const SequenceShape& shape,
                          RandomNumbers& random) {
  if (shape.response == 0) return;
  for (Index i = 0; i < 2; ++i)
    tokens[static_cast<std::size_t>(shape.prompt + random.below(shape.response))] =
        random.below(12);
}

/// Rows that row `row` sees, said in the plainest way: blocks at or before its own.
inline Index seen_keys(const SequenceShape& shape, Index row) {
  if (shape.attention_block == 0) return shape.rows();
  const auto block_of = [&](Index r) {
    return std::floor(static_cast<double>(r - shape.attention_phase) /
                      static_cast<double>(shape.attention_block));
  };
  Index count = 0;
  while (count < shape.rows() && block_of(count) <= block_of(row)) ++count;
  return count;
}

/// The uncached forward of the first x.rows rows of a sequence, without any part of the library's
/// cache: x [n, d] -> hidden states [n, d].
template <class Scalar, class Stored>
Matrix<Scalar> plain_forward(const TinyModel<Scalar, Stored>& model, const SequenceShape& shape,
                             Matrix<Scalar> x) {
  const ModelShape widths = model.shape();
  for (Index number = 0; number < widths.layers; ++number) {
    const TinyLayer<Scalar, Stored> layer = model.layer(number);
    Matrix<Scalar> v(x.rows, widths.kv_width), k(x.rows, widths.kv_width),
        q(x.rows, widths.query_width);
    std::vector<std::int32_t> positions;
    for (Index row = 0; row < x.rows; ++row)
      positions.push_back(shape.positions.empty() ? static_cast<std::int32_t>(row)
                                                  : shape.positions[static_cast<std::size_t>(row)]);
    layer.value(x.view(), v.view());
    layer.query_key(x.view(), positions, q.view(), k.view());
    Matrix<Stored> keys(x.rows, widths.kv_width), values(x.rows, widths.kv_width);
    for (std::size_t i = 0; i < k.data.size(); ++i) {
      keys.data[i] = static_cast<Stored>(k.data[i]);
      values.data[i] = static_cast<Stored>(v.data[i]);
    }
    Matrix<Scalar> u(x.rows, widths.width);
    for (Index row = 0; row < x.rows; ++row) {
      const Index seen = seen_keys(shape, row);
      layer.delta_row(x.row(row), q.row(row), keys.view().middle_rows(0, seen),
                      values.view().middle_rows(0, seen), u.row(row));
    }
    for (Index row = 0; row < x.rows; ++row) tiny::add(x.row(row), u.row(row), x.cols);
  }
  return x;
}

}  // namespace dllm_cache::testing
