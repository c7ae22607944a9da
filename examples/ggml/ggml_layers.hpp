// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "dllm_cache/decoding/denoising_model.hpp"
#include "dllm_cache/models/compute/attention.hpp"
#include "ggml_graph.hpp"
#include "ggml_weights.hpp"

// LLaDA and Dream in ggml, as the author of a ggml program would write them.
namespace ggml_runtime {

/// Who computes attention over the keys and values in the cache.
enum class AttentionBy {
  Library,  ///< models::Attention, which is faster than ggml's on a CPU.
  Flash     ///< ggml_flash_attn_ext
};

/// What all layers of a model share: weights, ggml's runtime, and what attention needs.
struct Computation {
  Computation(Weights made, int threads, AttentionBy by)
      : weights(std::move(made)), runtime(threads), team(threads), attention_by(by) {}
  Computation(const Computation&) = delete;

  Weights weights;
  Runtime runtime;
  dllm_cache::models::ThreadTeam team;
  AttentionBy attention_by;
  dllm_cache::models::Attention attention{{}, team};
  dllm_cache::models::ProductInput attended;
};

/// A layer as the cache sees it: three graphs. A light handle.
class GgmlLayer {
 public:
  GgmlLayer(Computation& computation, Index number)
      : m_computation(&computation),
        m_config(&computation.weights.config()),
        m_weights(&computation.weights.layer(number)) {}

  /// x `[m, d]` -> v `[m, kv]`.
  void value(MatrixView<const float> x, MatrixView<float> v) {
    Graph graph(m_computation->runtime);
    ggml_context* const c = graph.context();
    ggml_tensor* const normed = norm(c, graph.over(x), m_weights->attention_norm);
    graph.into(linear(c, m_weights->value, m_weights->value_bias, normed), v);
    graph.run();
  }

  /// x `[m, d]`, positions `[m]` -> q `[m, heads * head_dim]`, k `[m, kv]`, rotated.
  void query_key(MatrixView<const float> x, std::span<const std::int32_t> positions,
                 MatrixView<float> q, MatrixView<float> k) {
    Graph graph(m_computation->runtime);
    ggml_context* const c = graph.context();
    ggml_tensor* const at = graph.over(positions);
    ggml_tensor* const normed = norm(c, graph.over(x), m_weights->attention_norm);
    const auto rotated = [&](ggml_tensor* weight, ggml_tensor* bias, Index heads) {
      const Index dim = m_config->heads.head_dim;
      ggml_tensor* const t =
          ggml_reshape_3d(c, linear(c, weight, bias, normed), dim, heads, x.rows);
      return ggml_rope_ext(c, t, at, nullptr, static_cast<int>(dim), m_config->rotary_mode, 0,
                           m_config->rotary_theta, 1.0F, 0.0F, 1.0F, 32.0F, 1.0F);
    };
    graph.into(rotated(m_weights->query, m_weights->query_bias, m_config->heads.heads), q);
    graph.into(rotated(m_weights->key, m_weights->key_bias, m_config->heads.kv_heads), k);
    graph.run();
  }

  /// x `[m, d]`, q `[m, heads * head_dim]` -> u `[m, d]` = attention + feed-forward output.
  template <class Stored>
  void delta(MatrixView<const float> x, MatrixView<const float> q,
             std::span<const dllm_cache::Segment<Stored>> segments, MatrixView<float> u) {
    Graph graph(m_computation->runtime, 64 + 16 * segments.size());
    ggml_context* const c = graph.context();
    ggml_tensor* const attended = attend(graph, q, segments);
    ggml_tensor* const out = ggml_mul_mat(c, m_weights->output, attended);
    ggml_tensor* const normed =
        norm(c, ggml_add(c, out, graph.over(x)), m_weights->feed_forward_norm);
    ggml_tensor* const hidden = ggml_swiglu_split(c, ggml_mul_mat(c, m_weights->gate, normed),
                                                  ggml_mul_mat(c, m_weights->up, normed));
    graph.into(ggml_add(c, ggml_mul_mat(c, m_weights->down, hidden), out), u);
    graph.run();
  }

 private:
  ggml_tensor* norm(ggml_context* c, ggml_tensor* x, ggml_tensor* weight) const {
    return ggml_mul(c, ggml_rms_norm(c, x, m_config->epsilon), weight);
  }
  static ggml_tensor* linear(ggml_context* c, ggml_tensor* weight, ggml_tensor* bias,
                             ggml_tensor* x) {
    ggml_tensor* const y = ggml_mul_mat(c, weight, x);
    return bias == nullptr ? y : ggml_add(c, y, bias);
  }

  // [heads * head_dim, m] in ggml's order, from keys and values where they lie in the cache.
  template <class Stored>
  ggml_tensor* attend(Graph& graph, MatrixView<const float> q,
                      std::span<const dllm_cache::Segment<Stored>> segments) {
    if (m_computation->attention_by == AttentionBy::Library) {
      // Computed now, before the graph runs.
      m_computation->attended.resize(q.rows, q.cols, q.rows, false);
      m_computation->attention.attend(q, segments, m_config->heads, m_computation->attended);
      return graph.over(m_computation->attended.floats());
    }
    ggml_context* const c = graph.context();
    const auto heads_of = [&](ggml_tensor* t, Index heads) {  // [head_dim, n, heads], a view
      return ggml_view_3d(c, t, m_config->heads.head_dim, t->ne[1], heads, t->nb[1],
                          ggml_row_size(t->type, m_config->heads.head_dim), 0);
    };
    const float scale = 1.0F / std::sqrt(static_cast<float>(m_config->heads.head_dim));
    ggml_tensor* attended = nullptr;
    for (const auto& segment : segments) {
      const Index rows = segment.end - segment.begin, kv_heads = m_config->heads.kv_heads;
      ggml_tensor* const t = ggml_flash_attn_ext(
          c, heads_of(graph.over(q.middle_rows(segment.begin, rows)), m_config->heads.heads),
          heads_of(graph.over(segment.keys), kv_heads),
          heads_of(graph.over(segment.values), kv_heads), nullptr, scale, 0.0F, 0.0F);
      ggml_flash_attn_ext_set_prec(t, GGML_PREC_F32);
      ggml_tensor* const part = ggml_reshape_2d(c, t, q.cols, rows);
      attended = attended == nullptr ? part : ggml_concat(c, attended, part, 1);
    }
    return attended;
  }

  Computation* m_computation;
  const GgmlConfig* m_config;
  const LayerTensors* m_weights;
};

/// LLaDA or Dream in ggml as the denoising loop sees it.
class GgmlModel {
 public:
  /// Takes weights that the CPU backend computes with: in place or repacked. `threads >= 1`.
  explicit GgmlModel(Weights weights, int threads = 1, AttentionBy by = AttentionBy::Library)
      : m_computation(std::make_unique<Computation>(std::move(weights), threads, by)) {}

  [[nodiscard]] const GgmlConfig& config() const { return m_computation->weights.config(); }
  [[nodiscard]] const Weights& weights() const { return m_computation->weights; }
  [[nodiscard]] dllm_cache::ModelShape shape() const { return config().shape(); }
  [[nodiscard]] Index vocabulary() const { return config().vocabulary; }
  [[nodiscard]] Index prediction_shift() const { return config().prediction_shift; }
  [[nodiscard]] dllm_cache::SpecialTokens special_tokens() const { return config().special; }

  /// Tokens are in [0, vocabulary): the loop sees to that, and ggml ends the program for others.
  void embed(std::span<const std::int32_t> tokens, MatrixView<float> x) {
    Graph graph(m_computation->runtime);
    graph.into(ggml_get_rows(graph.context(), weights().embedding(), graph.over(tokens)), x);
    graph.run();
  }
  [[nodiscard]] GgmlLayer layer(Index number) { return {*m_computation, number}; }
  void logits(MatrixView<const float> x, MatrixView<float> logits) {
    Graph graph(m_computation->runtime);
    ggml_context* const c = graph.context();
    ggml_tensor* const normed =
        ggml_mul(c, ggml_rms_norm(c, graph.over(x), config().epsilon), weights().final_norm());
    graph.into(ggml_mul_mat(c, weights().head(), normed), logits);
    graph.run();
  }

 private:
  std::unique_ptr<Computation> m_computation;
};

}  // namespace ggml_runtime
