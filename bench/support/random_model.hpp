// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "dllm_cache/models/transformer_runner.hpp"

namespace bench {

using dllm_cache::Index;
namespace models = dllm_cache::models;

/// A LLaDA-like model of seeded random float32 weights, scaled as at initialisation.
inline std::shared_ptr<const models::TransformerModel> random_model(
    const models::TransformerConfig& config, std::uint32_t seed,
    const models::ComputeOptions& options = {}) {
  struct Storage {
    std::vector<std::vector<float>> tensors;
  };
  auto storage = std::make_shared<Storage>();
  std::mt19937 engine(seed);
  const auto matrix = [&](Index rows, Index cols) {
    std::uniform_real_distribution<float> uniform(-1.0F, 1.0F);
    auto& elements = storage->tensors.emplace_back(static_cast<std::size_t>(rows * cols));
    const float scale = std::sqrt(3.0F / static_cast<float>(cols));
    for (float& element : elements) element = scale * uniform(engine);
    models::Tensor tensor;
    tensor.name = "random";
    tensor.shape = {rows, cols};
    tensor.bytes = std::as_bytes(std::span<const float>(elements));
    return tensor;
  };
  const auto linear = [&](Index outputs, Index inputs) {
    return models::Linear(matrix(outputs, inputs), nullptr, options);
  };
  const auto norm = [&] {
    models::RmsNorm unit;
    unit.weight.assign(static_cast<std::size_t>(config.width), 1.0F);
    return unit;
  };
  auto model = std::make_shared<models::TransformerModel>();
  model->architecture = "random";
  model->config = config;
  model->embedding = matrix(config.vocabulary, config.width);
  for (Index i = 0; i < config.layers; ++i)
    model->layers.push_back({.attention_norm = norm(),
                             .feed_forward_norm = norm(),
                             .query = linear(config.query_width(), config.width),
                             .key = linear(config.kv_width(), config.width),
                             .value = linear(config.kv_width(), config.width),
                             .output = linear(config.width, config.query_width()),
                             .gate = linear(config.feed_forward, config.width),
                             .up = linear(config.feed_forward, config.width),
                             .down = linear(config.width, config.feed_forward)});
  model->final_norm = norm();
  model->head = linear(config.vocabulary, config.width);
  model->lifetime = storage;
  return model;
}

}  // namespace bench
