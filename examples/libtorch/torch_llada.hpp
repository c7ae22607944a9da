// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dllm_cache/decoding/denoising_model.hpp"
#include "dllm_cache/models/llada.hpp"
#include "torch_layer.hpp"

// LLaDA in libtorch, as the author of a torch program would write it. Modules have the names of the
// checkpoint's tensors.
namespace torch_runtime {

using dllm_cache::Index;
using dllm_cache::models::TransformerConfig;

/// Root-mean-square norm of rows with a weight.
struct RmsNormImpl : torch::nn::Module {
  RmsNormImpl(std::int64_t width, double eps)
      : weight(register_parameter("weight", torch::empty({width}))), epsilon(eps) {}

  Tensor forward(const Tensor& x) {
    return x * torch::rsqrt(x.square().mean(-1, true) + epsilon) * weight;
  }

  Tensor weight;
  double epsilon;
};
TORCH_MODULE(RmsNorm);

/// Turns the halves of each head in x `[m, heads * head_dim]`, in place, by the positions `[m]`.
inline void rotate(Tensor x, const Tensor& positions, std::int64_t head_dim, double theta) {
  const Tensor even = torch::arange(0, head_dim, 2, torch::kFloat32);
  const Tensor frequencies = torch::pow(theta, even / static_cast<double>(head_dim)).reciprocal();
  const Tensor angles = torch::outer(positions.to(torch::kFloat32), frequencies).unsqueeze(1);
  const Tensor cosine = angles.cos(), sine = angles.sin();  // [m, 1, head_dim / 2]
  const Tensor halves = x.view({x.size(0), -1, 2, head_dim / 2});
  const Tensor low = halves.select(2, 0), high = halves.select(2, 1);
  const Tensor turned_low = low * cosine - high * sine;
  high.mul_(cosine).addcmul_(low, sine);
  low.copy_(turned_low);
}

/// One pre-norm block with rotary embedding, grouped queries and SwiGLU.
struct LladaBlockImpl : torch::nn::Module {
  LladaBlockImpl(const TransformerConfig& c, double epsilon)
      : config(c),
        attn_norm(register_module("attn_norm", RmsNorm(c.width, epsilon))),
        ff_norm(register_module("ff_norm", RmsNorm(c.width, epsilon))),
        q_proj(linear("q_proj", c.width, c.query_width())),
        k_proj(linear("k_proj", c.width, c.kv_width())),
        v_proj(linear("v_proj", c.width, c.kv_width())),
        attn_out(linear("attn_out", c.query_width(), c.width)),
        ff_proj(linear("ff_proj", c.width, c.feed_forward)),
        up_proj(linear("up_proj", c.width, c.feed_forward)),
        ff_out(linear("ff_out", c.feed_forward, c.width)) {}

  /// x `[m, d]` -> v `[m, kv]`.
  void value(const Tensor& x, Tensor v) { torch::linear_out(v, attn_norm(x), v_proj->weight); }

  /// x `[m, d]`, positions `[m]` -> q `[m, heads * head_dim]`, k `[m, kv]`, rotated.
  void query_key(const Tensor& x, const Tensor& positions, Tensor q, Tensor k) {
    const Tensor normed = attn_norm(x);
    rotate(torch::linear_out(q, normed, q_proj->weight), positions, config.heads.head_dim,
           config.rotary_theta);
    rotate(torch::linear_out(k, normed, k_proj->weight), positions, config.heads.head_dim,
           config.rotary_theta);
  }

  /// x `[m, d]`, q `[m, heads * head_dim]` -> u `[m, d]` = attention + feed-forward output.
  void delta(const Tensor& x, const Tensor& q, const std::vector<TensorSegment>& segments,
             Tensor u) {
    std::vector<Tensor> attended;
    for (const TensorSegment& segment : segments)
      attended.push_back(
          attend(q.slice(0, segment.begin, segment.end), segment.keys, segment.values));
    torch::linear_out(u, torch::cat(attended), attn_out->weight);
    const Tensor normed = ff_norm(x + u);
    u.addmm_(torch::silu(ff_proj(normed)) * up_proj(normed), ff_out->weight.t());
  }

  /// q `[m, heads * head_dim]` over keys and values `[n, kv]` -> `[m, heads * head_dim]`.
  ///
  /// Only queries are laid out anew. `view` never copies: keys and values are read where they lie,
  /// and those stored in another type than the queries' are widened.
  Tensor attend(const Tensor& q, const Tensor& keys, const Tensor& values) const {
    const std::int64_t rows = q.size(0), dim = config.heads.head_dim;
    const std::int64_t kv_heads = config.heads.kv_heads, group = config.heads.heads / kv_heads;
    const auto heads_of = [&](const Tensor& kept) {  // [kv_heads, n, dim]
      return kept.to(q.scalar_type()).view({kept.size(0), kv_heads, dim}).transpose(0, 1);
    };
    const Tensor queries = q.reshape({rows, kv_heads, group, dim})
                               .permute({1, 2, 0, 3})
                               .reshape({kv_heads, group * rows, dim});
    const Tensor scores =
        torch::bmm(queries / std::sqrt(static_cast<double>(dim)), heads_of(keys).transpose(1, 2));
    return torch::bmm(torch::softmax(scores, -1), heads_of(values))
        .reshape({kv_heads, group, rows, dim})
        .permute({2, 0, 1, 3})
        .reshape({rows, kv_heads * group * dim});
  }

  torch::nn::Linear linear(const char* name, std::int64_t inputs, std::int64_t outputs) {
    return register_module(
        name, torch::nn::Linear(torch::nn::LinearOptions(inputs, outputs).bias(false)));
  }

  TransformerConfig config;
  RmsNorm attn_norm, ff_norm;
  torch::nn::Linear q_proj, k_proj, v_proj, attn_out, ff_proj, up_proj, ff_out;
};
TORCH_MODULE(LladaBlock);

/// The whole model: embedding, blocks, final norm and head.
struct LladaImpl : torch::nn::Module {
  LladaImpl(const TransformerConfig& config, double epsilon)
      : wte(register_module("wte", torch::nn::Embedding(config.vocabulary, config.width))),
        blocks(register_module("blocks", torch::nn::ModuleList())),
        ln_f(register_module("ln_f", RmsNorm(config.width, epsilon))),
        ff_out(register_module(
            "ff_out", torch::nn::Linear(
                          torch::nn::LinearOptions(config.width, config.vocabulary).bias(false)))) {
    for (Index i = 0; i < config.layers; ++i) blocks->push_back(LladaBlock(config, epsilon));
  }

  torch::nn::Embedding wte;
  torch::nn::ModuleList blocks;
  RmsNorm ln_f;
  torch::nn::Linear ff_out;
};
TORCH_MODULE(Llada);

/// LLaDA in libtorch as the denoising loop sees it; weights are computed with in float32.
class TorchModel {
 public:
  /// Reads a checkpoint folder. Throws std::runtime_error naming file, key or tensor; refused are,
  /// beside what load_llada refuses, biases and a head that is the embedding.
  explicit TorchModel(const dllm_cache::models::CheckpointFolder& folder) {
    // The library's loader maps the weights and checks the configuration; nothing is copied yet.
    const auto mapped =
        dllm_cache::models::load_llada(folder, {.backend = dllm_cache::models::Backend::Eigen});
    for (const char* key :
         {"include_bias", "include_qkv_bias", "bias_for_layer_norm", "weight_tying"})
      if (folder.config_reader().optional_bool(key).value_or(false))
        throw std::runtime_error(folder.config_path().string() + ": key \"" + key +
                                 "\": expected false or absent, got true");
    if (mapped->config.rotary_scaling != dllm_cache::models::RotaryScaling{})
      throw std::runtime_error(folder.config_path().string() +
                               ": a scaled rotary embedding is not computed here");
    m_config = mapped->config;
    m_llada = Llada(m_config, static_cast<double>(mapped->final_norm.epsilon));
    for (const auto& named : m_llada->named_parameters()) {
      // The library reads a bias where the files have one, whether a key says so or not.
      const std::string name = "model.transformer." + named.key();
      const std::string bias = name.substr(0, name.rfind('.')) + ".bias";
      if (folder.find(bias) != nullptr)
        throw std::runtime_error(folder.path().string() + ": tensor \"" + bias +
                                 "\": biases are not computed here");
      const Tensor& parameter = named.value();
      const auto& tensor =
          folder.tensor(name, {parameter.sizes().data(), parameter.sizes().size()});
      dllm_cache::models::read_floats(tensor, 0, parameter.numel(), parameter.data_ptr<float>());
    }
  }

  [[nodiscard]] dllm_cache::ModelShape shape() const {
    return {m_config.layers, m_config.width, m_config.query_width(), m_config.kv_width()};
  }
  [[nodiscard]] Index vocabulary() const { return m_config.vocabulary; }
  [[nodiscard]] Index prediction_shift() const { return 0; }
  [[nodiscard]] dllm_cache::SpecialTokens special_tokens() const { return m_config.special; }

  void embed(std::span<const std::int32_t> tokens, MatrixView<float> x) {
    const c10::InferenceMode inference;
    Tensor rows = as_tensor(x);
    torch::index_select_out(rows, m_llada->wte->weight, 0, as_tensor(tokens));
  }
  [[nodiscard]] TorchLayer<LladaBlockImpl> layer(Index number) {
    return TorchLayer(m_llada->blocks->at<LladaBlockImpl>(static_cast<std::size_t>(number)));
  }
  void logits(MatrixView<const float> x, MatrixView<float> logits) {
    const c10::InferenceMode inference;
    Tensor rows = as_tensor(logits);
    torch::linear_out(rows, m_llada->ln_f(as_tensor(x)), m_llada->ff_out->weight);
  }

 private:
  TransformerConfig m_config;
  Llada m_llada = nullptr;
};

}  // namespace torch_runtime
