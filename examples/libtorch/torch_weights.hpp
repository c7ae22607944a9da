// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dllm_cache/decoding/denoising_model.hpp"
#include "dllm_cache/models/load_model.hpp"
#include "torch_math.hpp"

// The weights of LLaDA and Dream as tensors, and what the products of a layer are.
namespace torch_runtime {

using dllm_cache::Index;
using dllm_cache::models::TransformerConfig;

/// Weights of one pre-norm block with rotary embedding, grouped queries and SwiGLU.
struct LayerTensors {
  Tensor attention_norm, feed_forward_norm;  ///< `[d]`
  Projection query, key, value, output, gate, up, down;
  double epsilon = 1e-5;  ///< Of both norms.

  /// What values, queries and keys are products of: x `[m, d]` -> `[m, d]`.
  [[nodiscard]] Tensor normed(const Tensor& x) const {
    return rms_norm(x, attention_norm, epsilon);
  }
  /// x `[m, d]`, attended `[m, heads * head_dim]` -> `[m, d]` = attention + feed-forward output.
  [[nodiscard]] Tensor delta(const Tensor& x, const Tensor& attended) const {
    const Tensor u = output(attended);
    const Tensor wide = rms_norm(x + u, feed_forward_norm, epsilon);
    return u + down(torch::silu(gate(wide)) * up(wide));
  }
};

/// Weights of a whole model, all on one device and of one element type.
struct TorchWeights {
  TransformerConfig config;
  torch::TensorOptions options;  ///< Of all but `frequencies`, which are float32.
  Tensor embedding;              ///< `[vocabulary, d]`
  std::vector<LayerTensors> layers;
  Tensor final_norm;  ///< `[d]`
  double epsilon = 1e-5;
  Projection head;     ///< `[vocabulary, d]`; the embedding itself where it is tied.
  Tensor frequencies;  ///< `[head_dim / 2]`, see rotary_frequencies().

  /// What the head takes: x `[m, d]` -> `[m, d]`.
  [[nodiscard]] Tensor last_norm(const Tensor& x) const { return rms_norm(x, final_norm, epsilon); }
};

/// Makes the tensors of a model: `read(name, sizes)` gives each of them, an undefined one for a
/// bias that is not there.
template <class Read>
[[nodiscard]] TorchWeights make_weights(const TransformerConfig& config,
                                        const torch::TensorOptions& options,
                                        const dllm_cache::models::TensorNames& names, bool tied,
                                        double epsilon, const Read& read) {
  const Index d = config.width, q = config.query_width(), kv = config.kv_width(),
              ffn = config.feed_forward;
  const auto norm = [&](const std::string& name) { return read(name + ".weight", {d}); };
  const auto linear = [&](const std::string& name, Index outputs, Index inputs) {
    return Projection{read(name + ".weight", {outputs, inputs}), read(name + ".bias", {outputs})};
  };
  TorchWeights made;
  made.config = config;
  made.options = options;
  made.epsilon = epsilon;
  made.embedding = read(std::string(names.embedding) + ".weight", {config.vocabulary, d});
  for (Index i = 0; i < config.layers; ++i) {
    const std::string p = names.of_layer(i);
    made.layers.push_back({norm(p + names.attention_norm), norm(p + names.feed_forward_norm),
                           linear(p + names.query, q, d), linear(p + names.key, kv, d),
                           linear(p + names.value, kv, d), linear(p + names.output, d, q),
                           linear(p + names.gate, ffn, d), linear(p + names.up, ffn, d),
                           linear(p + names.down, d, ffn), epsilon});
  }
  made.final_norm = norm(names.final_norm);
  made.head = tied ? Projection{made.embedding, {}} : linear(names.head, config.vocabulary, d);
  made.frequencies =
      rotary_frequencies(config.heads.head_dim, config.rotary_theta).to(options.device());
  return made;
}

using TensorSizes = std::initializer_list<std::int64_t>;

/// Reads a checkpoint folder of LLaDA, Dream or another kind without norms of query heads.
///
/// Throws std::runtime_error naming file, key or tensor: what load_model() refuses, norms of query
/// heads, biases of norms and a scaled rotary embedding.
[[nodiscard]] inline TorchWeights read_weights(const dllm_cache::models::CheckpointFolder& folder,
                                               const torch::TensorOptions& options) {
  const c10::InferenceMode inference;
  // The library's loader checks the configuration and which biases there are; weights stay mapped.
  const auto mapped = dllm_cache::models::load_model(
      folder.path(), {.backend = dllm_cache::models::Backend::Eigen});
  const auto& names = dllm_cache::models::tensor_names(mapped->architecture);
  const auto refuse = [&](const char* what) {
    throw std::runtime_error(folder.config_path().string() + ": " + what + " not computed here");
  };
  if (names.has_query_key_norms()) refuse("norms of query heads are");
  if (!mapped->final_norm.bias.empty()) refuse("biases of norms are");
  if (mapped->config.rotary_scaling != dllm_cache::models::RotaryScaling{})
    refuse("a scaled rotary embedding is");
  const bool tied = folder.config_reader().optional_bool(names.tied).value_or(false);
  const auto read = [&](const std::string& name, TensorSizes sizes) {
    if (name.ends_with(".bias") && folder.find(name) == nullptr) return Tensor();
    const auto& tensor = folder.weight(name, sizes);
    Tensor floats = torch::empty(torch::IntArrayRef(sizes), torch::kFloat32);
    dllm_cache::models::read_floats(tensor, 0, floats.numel(), floats.data_ptr<float>());
    return floats.to(options);
  };
  return make_weights(mapped->config, options, names, tied,
                      static_cast<double>(mapped->final_norm.epsilon), read);
}

/// Random weights of a shape, to measure with.
[[nodiscard]] inline TorchWeights random_weights(const TransformerConfig& config,
                                                 const torch::TensorOptions& options) {
  const c10::InferenceMode inference;
  const auto random = [&](const std::string& name, TensorSizes sizes) {
    if (name.ends_with(".bias")) return Tensor();
    if (sizes.size() == 1) return torch::ones(torch::IntArrayRef(sizes), options);  // a norm's
    const double scale = 1.0 / std::sqrt(static_cast<double>(config.width));
    return torch::empty(torch::IntArrayRef(sizes), options).uniform_(-scale, scale);
  };
  return make_weights(config, options, dllm_cache::models::llada_names(), false, 1e-5, random);
}

/// What models on these weights tell the denoising loop.
class TorchTransformer {
 public:
  [[nodiscard]] const TransformerConfig& config() const { return m_weights.config; }
  [[nodiscard]] dllm_cache::ModelShape shape() const {
    return {.layers = config().layers,
            .width = config().width,
            .query_width = config().query_width(),
            .kv_width = config().kv_width(),
            .heads = config().heads.heads};
  }
  [[nodiscard]] Index vocabulary() const { return config().vocabulary; }
  [[nodiscard]] Index prediction_shift() const { return config().prediction_shift; }
  [[nodiscard]] dllm_cache::SpecialTokens special_tokens() const { return config().special; }

 protected:
  explicit TorchTransformer(TorchWeights weights) : m_weights(std::move(weights)) {}

  TorchWeights m_weights;
};

}  // namespace torch_runtime
