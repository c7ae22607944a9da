// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "torch_layer.hpp"
#include "torch_weights.hpp"

// LLaDA and Dream in libtorch by three functions a layer, over the library's own memory.
namespace torch_runtime {

/// One layer as TorchLayer wants it.
class TorchBlock {
 public:
  TorchBlock(LayerTensors layer, dllm_cache::models::HeadShape heads, Tensor frequencies)
      : m_layer(std::move(layer)), m_heads(heads), m_frequencies(std::move(frequencies)) {}

  /// x `[m, d]` -> v `[m, kv]`.
  void value(const Tensor& x, const Tensor& v) { m_layer.value.write(m_layer.normed(x), v); }

  /// x `[m, d]`, positions `[m]` -> q `[m, heads * head_dim]`, k `[m, kv]`, rotated.
  void query_key(const Tensor& x, const Tensor& positions, const Tensor& q, const Tensor& k) {
    const Tensor normed = m_layer.normed(x);
    const Turn turn = turn_of(positions, m_frequencies);
    m_layer.query.write(normed, q);
    m_layer.key.write(normed, k);
    rotate(q, turn);
    rotate(k, turn);
  }

  /// x `[m, d]`, q `[m, heads * head_dim]` -> u `[m, d]` = attention + feed-forward output.
  void delta(const Tensor& x, const Tensor& q, const std::vector<TensorSegment>& segments,
             const Tensor& u) {
    std::vector<Tensor> attended;
    for (const TensorSegment& one : segments)
      attended.push_back(
          attend(q.slice(0, one.begin, one.end), one.keys, one.values, Tensor(), m_heads));
    u.copy_(m_layer.delta(x, torch::cat(attended)));
  }

 private:
  LayerTensors m_layer;
  dllm_cache::models::HeadShape m_heads;
  Tensor m_frequencies;
};

/// LLaDA or Dream in libtorch as the denoising loop sees it, by layers; weights are computed with
/// in float32, on the processor. One thread uses it at a time.
class TorchModel : public TorchTransformer {
 public:
  /// Reads a checkpoint folder; throws what read_weights() does.
  explicit TorchModel(const dllm_cache::models::CheckpointFolder& folder)
      : TorchTransformer(read_weights(folder, torch::kFloat32)) {
    for (const LayerTensors& layer : m_weights.layers)
      m_blocks.emplace_back(layer, config().heads, m_weights.frequencies);
  }

  void embed(std::span<const std::int32_t> tokens, MatrixView<float> x) {
    const c10::InferenceMode inference;
    Tensor rows = as_tensor(x);
    torch::index_select_out(rows, m_weights.embedding, 0, as_tensor(tokens));
  }
  [[nodiscard]] TorchLayer<TorchBlock> layer(Index number) {
    return TorchLayer(m_blocks[static_cast<std::size_t>(number)]);
  }
  void logits(MatrixView<const float> x, MatrixView<float> logits) {
    const c10::InferenceMode inference;
    m_weights.head.write(m_weights.last_norm(as_tensor(x)), as_tensor(logits));
  }

 private:
  std::vector<TorchBlock> m_blocks;
};

}  // namespace torch_runtime
