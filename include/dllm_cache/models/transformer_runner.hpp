// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "dllm_cache/models/compute/attention.hpp"
#include "dllm_cache/models/transformer_model.hpp"

namespace dllm_cache::inline v0_1::models {

class TransformerRunner;

/// One layer of a running model: a light handle, a TransformerLayer for every stored scalar.
class TransformerLayerHandle {
 public:
  TransformerLayerHandle(TransformerRunner& runner, const LayerWeights& weights)
      : m_runner(&runner), m_weights(&weights) {}

  /// x `[m, d]` -> v `[m, kv]`.
  void value(MatrixView<const float> x, MatrixView<float> v);
  /// x `[m, d]`, positions `[m]` -> q `[m, heads * head_dim]`, k `[m, kv]`, both normed where the
  /// model does so, head by head, and rotated.
  void query_key(MatrixView<const float> x, std::span<const std::int32_t> positions,
                 MatrixView<float> q, MatrixView<float> k);
  /// x `[m, d]`, q `[m, heads * head_dim]` -> u `[m, d]` = attention + feed-forward output.
  template <StoredScalar Stored>
  void delta(MatrixView<const float> x, MatrixView<const float> q,
             std::span<const Segment<Stored>> segments, MatrixView<float> u);

 private:
  TransformerRunner* m_runner;
  const LayerWeights* m_weights;
};

/// Runs a shared TransformerModel for one thread: scratch memory, threads to compute with, and a
/// count of floating-point operations. Satisfies DenoisingModel.
class TransformerRunner {
 public:
  /// A model, and `threads >= 1` threads that are used inside each product; throws
  /// std::invalid_argument for no model and for other numbers.
  TransformerRunner(std::shared_ptr<const TransformerModel> model, int threads)
      : m_model(checked(std::move(model))),
        m_team(threads),
        m_products(m_team),
        m_attention(m_model->compute, m_team),
        m_rotary(config().heads.head_dim, config().rotary_theta, config().rotary_scaling) {}

  TransformerRunner(const TransformerRunner&) = delete;  // handles, loops and products point at it
  TransformerRunner& operator=(const TransformerRunner&) = delete;
  ~TransformerRunner() = default;

  [[nodiscard]] const TransformerConfig& config() const { return m_model->config; }
  [[nodiscard]] ModelShape shape() const {
    return {.layers = config().layers,
            .width = config().width,
            .query_width = config().query_width(),
            .kv_width = config().kv_width(),
            .heads = config().heads.heads};
  }
  [[nodiscard]] Index vocabulary() const { return config().vocabulary; }
  /// Tokens that embed() knows: the vocabulary, and rows given beside it.
  [[nodiscard]] Index embeddings() const { return vocabulary() + m_more_embeddings.rows; }
  /// Gives rows `[any, d]` that tokens from vocabulary() on name, in place of those given before:
  /// what an image encoder computed, for example. They are read where they are and must outlive
  /// their use; throws std::invalid_argument for another width.
  void set_more_embeddings(MatrixView<const float> rows) {
    if (rows.rows > 0 && rows.cols != config().width)
      base::refuse_argument("TransformerRunner: embeddings must be ", config().width, " wide, got ",
                            rows.cols);
    m_more_embeddings = rows;
  }
  [[nodiscard]] Index prediction_shift() const { return config().prediction_shift; }
  [[nodiscard]] const SpecialTokens& special_tokens() const { return config().special; }

  /// Hidden rows x `[tokens, d]` of tokens in `[0, embeddings)`; throws std::invalid_argument
  /// naming the first one outside.
  void embed(std::span<const std::int32_t> tokens, MatrixView<float> x) const {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i] < 0 || tokens[i] >= embeddings())
        base::refuse_argument("TransformerRunner: tokens must be in [0, ", embeddings(), "), got ",
                              tokens[i]);
      if (tokens[i] >= vocabulary()) {
        std::copy_n(m_more_embeddings.row(tokens[i] - vocabulary()), config().width,
                    x.row(static_cast<Index>(i)));
        continue;
      }
      read_floats(m_model->embedding, tokens[i] * config().width, config().width,
                  x.row(static_cast<Index>(i)));
    }
  }

  /// Handle on a layer, `0 <= number < layers` (else std::out_of_range).
  [[nodiscard]] TransformerLayerHandle layer(Index number) {
    return {*this, m_model->layers.at(static_cast<std::size_t>(number))};
  }

  /// Final norm and head: x `[m, d]` -> logits `[m, vocabulary]`.
  void logits(MatrixView<const float> x, MatrixView<float> logits) {
    resize(m_normed, x.rows, x.cols);
    m_normed.fill([&](auto normed) { m_model->final_norm.apply(x, normed, m_team); });
    m_products.apply(m_normed, {{&m_model->head, logits}});
  }

  /// Floating-point operations so far: 2 m n k a product, 4 rows keys heads head_dim an attention.
  [[nodiscard]] double operations() const {
    return m_products.operations() + m_attention.operations();
  }
  /// Threads used inside products.
  [[nodiscard]] int threads() const { return m_team.threads(); }

 private:
  friend class TransformerLayerHandle;

  static std::shared_ptr<const TransformerModel> checked(
      std::shared_ptr<const TransformerModel> model) {
    if (!model) base::refuse_argument("TransformerRunner: model must be given, got none");
    return model;
  }

  // With the memory behind the last row that products want; see Products.
  void resize(ProductInput& input, Index rows, Index width) const {
    input.resize(rows, width, Products::padded_rows(rows), multiplies_bf16(m_model->compute));
  }
  static MatrixView<float> padded(base::Buffer<float>& memory, Index rows, Index cols) {
    return dense_view(memory.ensure(Products::padded_rows(rows) * cols), rows, cols);
  }

  std::shared_ptr<const TransformerModel> m_model;
  ThreadTeam m_team;
  Products m_products;
  Attention m_attention;
  RotaryEmbedding m_rotary;
  MatrixView<const float> m_more_embeddings = {};
  ProductInput m_normed;           // [m, d] after a norm
  ProductInput m_attended;         // [m, heads * head_dim]
  ProductInput m_gated;            // [m, feed_forward], the gate before
  base::Buffer<float> m_residual;  // [m, d] after attention
  base::Buffer<float> m_up;        // [m, feed_forward]
};

inline void TransformerLayerHandle::value(MatrixView<const float> x, MatrixView<float> v) {
  TransformerRunner& runner = *m_runner;
  runner.resize(runner.m_normed, x.rows, x.cols);
  runner.m_normed.fill(
      [&](auto normed) { m_weights->attention_norm.apply(x, normed, runner.m_team); });
  runner.m_products.apply(runner.m_normed, {{&m_weights->value, v}});
}

inline void TransformerLayerHandle::query_key(MatrixView<const float> x,
                                              std::span<const std::int32_t> positions,
                                              MatrixView<float> q, MatrixView<float> k) {
  TransformerRunner& runner = *m_runner;
  runner.resize(runner.m_normed, x.rows, x.cols);
  runner.m_normed.fill(
      [&](auto normed) { m_weights->attention_norm.apply(x, normed, runner.m_team); });
  runner.m_products.apply(runner.m_normed, {{&m_weights->query, q}, {&m_weights->key, k}});
  m_weights->query_norm.apply_heads(q, runner.m_team);
  m_weights->key_norm.apply_heads(k, runner.m_team);
  runner.m_rotary.apply(positions, q, runner.m_team);
  runner.m_rotary.apply(positions, k, runner.m_team);
}

template <StoredScalar Stored>
void TransformerLayerHandle::delta(MatrixView<const float> x, MatrixView<const float> q,
                                   std::span<const Segment<Stored>> segments, MatrixView<float> u) {
  TransformerRunner& runner = *m_runner;
  const TransformerConfig& config = runner.config();
  runner.resize(runner.m_attended, q.rows, q.cols);
  runner.m_attention.attend(q, segments, config.heads, runner.m_attended);

  // u gathers the attention output first and the feed-forward output of x + u after it.
  runner.m_products.apply(runner.m_attended, {{&m_weights->output, u}});
  const MatrixView<float> residual = TransformerRunner::padded(runner.m_residual, x.rows, x.cols);
  runner.resize(runner.m_normed, x.rows, x.cols);
  runner.m_normed.fill([&](auto normed) {
    m_weights->feed_forward_norm.apply_sum(x, u, normed, residual, runner.m_team);
  });
  runner.resize(runner.m_gated, x.rows, config.feed_forward);
  const MatrixView<float> gate = runner.m_gated.floats();
  const MatrixView<float> up = TransformerRunner::padded(runner.m_up, x.rows, config.feed_forward);
  runner.m_products.apply(runner.m_normed,
                          {{&m_weights->gate, gate, true}, {&m_weights->up, up, true}});
  runner.m_gated.fill([&](auto gated) { gate_silu(gate, up, gated, runner.m_team); });
  runner.m_products.apply(runner.m_gated, {{&m_weights->down, residual, true}});
  add_rows(residual, u, runner.m_team);
}

}  // namespace dllm_cache::inline v0_1::models
