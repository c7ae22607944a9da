// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <list>
#include <memory>
#include <vector>

#include "dllm_cache/decoding/random.hpp"
#include "dllm_cache/models/transformer_runner.hpp"

namespace bench {

using dllm_cache::Index;
namespace models = dllm_cache::models;

/// A LLaDA-like model of seeded random weights, scaled as at initialisation, made in memory.
///
/// `distinct` layers are made and repeated in turn where there are more (0: all are distinct), so
/// that the products of a large model can be timed in little memory. With `head_norms` each head of
/// queries and keys is normed, as in Qwen3.
inline std::shared_ptr<const models::TransformerModel> random_model(
    const models::TransformerConfig& config, std::uint64_t seed,
    const models::ComputeOptions& options = {}, Index distinct = 0, bool head_norms = false) {
  auto kept = std::make_shared<std::list<std::vector<float>>>();
  const auto matrix = [&](std::list<std::vector<float>>& to, Index rows, Index cols) {
    auto& elements = to.emplace_back(static_cast<std::size_t>(rows * cols));
    const double scale = std::sqrt(12.0 / static_cast<double>(cols));  // variance 1 / cols
    std::uint64_t state = ++seed * 0x9e3779b97f4a7c15ULL;
    for (float& element : elements) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      element = static_cast<float>(scale * (static_cast<double>(state >> 40) * 0x1.0p-24 - 0.5));
    }
    models::Tensor tensor;
    tensor.name = "random";
    tensor.shape = {rows, cols};
    tensor.bytes = std::as_bytes(std::span<const float>(elements));
    return tensor;
  };
  const auto make_linear = [&](Index outputs, Index inputs) {
    std::list<std::vector<float>> made;
    models::Linear linear(matrix(made, outputs, inputs), nullptr, options);
    // Weights that a backend copies into its own layout need not be kept.
    if (linear.reads_tensor()) kept->splice(kept->end(), made);
    return linear;
  };
  const auto norm = [](Index width) {
    models::RmsNorm unit;
    unit.weight.assign(static_cast<std::size_t>(width), 1.0F);
    return unit;
  };
  auto model = std::make_shared<models::TransformerModel>();
  model->architecture = "random";
  model->config = config;
  model->compute = options;
  model->embedding = matrix(*kept, config.vocabulary, config.width);
  for (Index i = 0; i < config.layers; ++i) {
    if (distinct > 0 && i >= distinct) {
      model->layers.push_back(model->layers[static_cast<std::size_t>(i % distinct)]);
      continue;
    }
    models::LayerWeights layer;
    layer.attention_norm = norm(config.width);
    layer.feed_forward_norm = norm(config.width);
    if (head_norms) {
      layer.query_norm = norm(config.heads.head_dim);
      layer.key_norm = norm(config.heads.head_dim);
    }
    layer.query = make_linear(config.query_width(), config.width);
    layer.key = make_linear(config.kv_width(), config.width);
    layer.value = make_linear(config.kv_width(), config.width);
    layer.output = make_linear(config.width, config.query_width());
    layer.gate = make_linear(config.feed_forward, config.width);
    layer.up = make_linear(config.feed_forward, config.width);
    layer.down = make_linear(config.width, config.feed_forward);
    model->layers.push_back(std::move(layer));
  }
  model->final_norm = norm(config.width);
  model->head = make_linear(config.vocabulary, config.width);
  model->lifetime = kept;
  return model;
}

}  // namespace bench
