// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "dllm_cache/decoding/denoising_model.hpp"
#include "dllm_cache/models/compute/attention.hpp"
#include "sliced_model.hpp"

namespace tensor_parallel {

/// One rank's part of a model that runs on all of them together. Satisfies DenoisingModel.
///
/// Hidden rows are the same on all ranks; queries, keys and values `[m, heads / ranks * head_dim]`
/// are those of the rank's heads. Each layer sums twice over the ranks: behind the attention's
/// output projection and behind the feed-forward's. All ranks must take the same steps.
class TensorParallelModel {
 public:
  /// A layer: a light handle.
  class Layer {
   public:
    Layer(TensorParallelModel& model, const models::LayerWeights& weights)
        : m_model(&model), m_weights(&weights) {}

    /// x `[m, d]` -> v `[m, kv / ranks]`.
    void value(MatrixView<const float> x, MatrixView<float> v) {
      m_model->m_products.apply(normed(x), {{&m_weights->value, v}});
    }

    /// x `[m, d]`, positions `[m]` -> q and k of the rank's heads, rotated.
    void query_key(MatrixView<const float> x, std::span<const std::int32_t> positions,
                   MatrixView<float> q, MatrixView<float> k) {
      m_model->m_products.apply(normed(x), {{&m_weights->query, q}, {&m_weights->key, k}});
      m_weights->query_norm.apply_heads(q, m_model->m_team);
      m_weights->key_norm.apply_heads(k, m_model->m_team);
      m_model->m_rotary.apply(positions, q, m_model->m_team);
      m_model->m_rotary.apply(positions, k, m_model->m_team);
    }

    /// x `[m, d]`, q of the rank's heads -> u `[m, d]`, whole, the same on all ranks.
    template <dllm_cache::StoredScalar Stored>
    void delta(MatrixView<const float> x, MatrixView<const float> q,
               std::span<const dllm_cache::Segment<Stored>> segments, MatrixView<float> u) {
      TensorParallelModel& model = *m_model;
      model.m_attended.resize(x.rows, q.cols, models::Products::padded_rows(x.rows), false);
      model.m_attention.attend(q, segments, model.config().heads, model.m_attended);
      model.m_products.apply(model.m_attended.floats(), {{&m_weights->output, u}});
      model.m_ranks.sum(u);

      const MatrixView<float> residual = padded(model.m_residual, x.rows, x.cols);
      const MatrixView<float> rows = padded(model.m_normed, x.rows, x.cols);
      m_weights->feed_forward_norm.apply_sum(x, u, rows, residual, model.m_team);
      const MatrixView<float> gate = padded(model.m_gate, x.rows, model.config().feed_forward);
      const MatrixView<float> up = padded(model.m_up, x.rows, model.config().feed_forward);
      model.m_products.apply(rows, {{&m_weights->gate, gate, true}, {&m_weights->up, up, true}});
      models::gate_silu(gate, up, gate, model.m_team);
      model.m_products.apply(gate, {{&m_weights->down, residual, true}});
      model.m_ranks.sum(residual);
      models::add_rows(residual, u, model.m_team);
    }

   private:
    MatrixView<const float> normed(MatrixView<const float> x) {
      const MatrixView<float> rows = padded(m_model->m_normed, x.rows, x.cols);
      m_weights->attention_norm.apply(x, rows, m_model->m_team);
      return rows;
    }

    TensorParallelModel* m_model;
    const models::LayerWeights* m_weights;
  };

  /// `threads >= 1` threads in each rank, else std::invalid_argument.
  TensorParallelModel(std::shared_ptr<const SlicedModel> sliced, const Ranks& ranks, int threads)
      : m_sliced(std::move(sliced)),
        m_ranks(ranks),
        m_team(threads),
        m_products(m_team),
        m_attention({.backend = models::Backend::Eigen}, m_team),
        m_rotary(config().heads.head_dim, config().rotary_theta, config().rotary_scaling) {}

  /// What this rank's caches hold: the keys and values of its heads, deltas of whole rows.
  [[nodiscard]] dllm_cache::ModelShape shape() const {
    return {config().layers, config().width, config().query_width(), config().kv_width()};
  }
  [[nodiscard]] Index vocabulary() const { return config().vocabulary; }
  [[nodiscard]] Index prediction_shift() const { return config().prediction_shift; }
  [[nodiscard]] dllm_cache::SpecialTokens special_tokens() const { return config().special; }

  /// Refuses tokens outside `[0, vocabulary)` with std::invalid_argument naming the first one.
  void check_tokens(std::span<const std::int32_t> tokens) const {
    for (const std::int32_t token : tokens)
      if (token < 0 || token >= vocabulary())
        dllm_cache::base::refuse_argument("TensorParallelModel: tokens must be in [0, ",
                                          vocabulary(), "), got ", token);
  }

  /// Hidden rows x `[tokens, d]` of tokens that check_tokens() lets through.
  void embed(std::span<const std::int32_t> tokens, MatrixView<float> x) const {
    for (std::size_t i = 0; i < tokens.size(); ++i)
      models::read_floats(m_sliced->model.embedding, tokens[i] * config().width, config().width,
                          x.row(static_cast<Index>(i)));
  }

  [[nodiscard]] Layer layer(Index number) {
    return {*this, m_sliced->model.layers.at(static_cast<std::size_t>(number))};
  }

  /// x `[m, d]` -> logits `[m, vocabulary]`, dense: each rank computes its share of the rows, so
  /// that all decide by the same bits.
  void logits(MatrixView<const float> x, MatrixView<float> logits) {
    const Range mine = m_ranks.share(x.rows);
    if (!mine.empty()) {
      const MatrixView<float> rows = padded(m_normed, mine.size(), x.cols);
      m_sliced->model.final_norm.apply(x.middle_rows(mine.begin, mine.size()), rows, m_team);
      m_products.apply(rows,
                       {{&m_sliced->model.head, logits.middle_rows(mine.begin, mine.size())}});
    }
    m_ranks.gather_rows(logits);
  }

 private:
  [[nodiscard]] const models::TransformerConfig& config() const { return m_sliced->model.config; }

  // A view with the memory behind its last row that products want; see Products.
  static MatrixView<float> padded(dllm_cache::base::Buffer<float>& memory, Index rows, Index cols) {
    return dllm_cache::dense_view(memory.ensure(models::Products::padded_rows(rows) * cols), rows,
                                  cols);
  }

  std::shared_ptr<const SlicedModel> m_sliced;
  Ranks m_ranks;
  models::ThreadTeam m_team;
  models::Products m_products;
  models::Attention m_attention;  // in float32, like all rows here
  models::RotaryEmbedding m_rotary;
  models::ProductInput m_attended;             // [m, heads / ranks * head_dim]
  dllm_cache::base::Buffer<float> m_normed;    // [m, d] after a norm
  dllm_cache::base::Buffer<float> m_residual;  // [m, d] after attention
  dllm_cache::base::Buffer<float> m_gate;      // [m, feed_forward / ranks]
  dllm_cache::base::Buffer<float> m_up;        // [m, feed_forward / ranks]
};

}  // namespace tensor_parallel
