// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "dllm_cache/models/load_model.hpp"
#include "dllm_cache/models/tensor_names.hpp"
#include "ranks.hpp"

namespace tensor_parallel {

namespace models = dllm_cache::models;

/// A rank's part of a checkpoint: the heads and feed-forward columns of its share, norms, embedding
/// and head whole. `model.config` counts the rank's own heads and columns.
struct SlicedModel {
  models::TransformerModel model;
  std::vector<std::vector<std::byte>> columns;  ///< Memory of weights that are not mapped.
  std::shared_ptr<const void> mapped;           ///< Keeps that of the others.
};

namespace detail {

/// Elements `[begin, end)` of the first dimension, in place: outputs of a weight, or of a bias.
inline models::Tensor output_slice(models::Tensor tensor, Range part) {
  const std::size_t bytes = tensor.bytes.size() / static_cast<std::size_t>(tensor.shape.at(0));
  tensor.bytes = tensor.bytes.subspan(static_cast<std::size_t>(part.begin) * bytes,
                                      static_cast<std::size_t>(part.size()) * bytes);
  tensor.shape.at(0) = part.size();
  return tensor;
}

/// Inputs `[begin, end)` of a weight `[outputs, inputs]`, copied together into `memory`.
inline models::Tensor input_slice(models::Tensor tensor, Range part,
                                  std::vector<std::byte>& memory) {
  const auto outputs = static_cast<std::size_t>(tensor.shape.at(0));
  const std::size_t row = tensor.bytes.size() / outputs;
  const std::size_t element = models::bytes_of(tensor.type);
  const std::size_t begin = static_cast<std::size_t>(part.begin) * element;
  const std::size_t count = static_cast<std::size_t>(part.size()) * element;
  memory.resize(outputs * count);
  for (std::size_t output = 0; output < outputs; ++output)
    std::memcpy(memory.data() + output * count, tensor.bytes.data() + output * row + begin, count);
  tensor.bytes = memory;
  tensor.shape.at(1) = part.size();
  return tensor;
}

inline void require_split(const char* what, Index count, int ranks) {
  if (count % ranks != 0)
    dllm_cache::base::refuse_argument("load_slice: the number of ranks must divide ", what, " = ",
                                      count, ", got ", ranks);
}

}  // namespace detail

/// Reads this rank's part of a LLaDA or Dream checkpoint. Throws std::invalid_argument where the
/// number of ranks does not divide heads, key heads and feed-forward columns, and what load_model
/// throws.
[[nodiscard]] inline std::shared_ptr<const SlicedModel> load_slice(
    const std::filesystem::path& path, const Ranks& ranks, const models::ComputeOptions& options,
    const models::TokenChoice& tokens = {}) {
  // The library's loader checks the checkpoint; with Eigen it leaves the weights where they are
  // mapped, so that slices can be taken without holding the whole.
  auto sliced = std::make_shared<SlicedModel>();
  sliced->model = *models::load_model(path, {.backend = models::Backend::Eigen}, tokens);
  models::TransformerConfig& config = sliced->model.config;
  detail::require_split("attention heads", config.heads.heads, ranks.size());
  detail::require_split("key heads", config.heads.kv_heads, ranks.size());
  detail::require_split("feed-forward columns", config.feed_forward, ranks.size());
  const Range queries = ranks.share(config.query_width());
  const Range keys = ranks.share(config.kv_width());
  const Range hidden = ranks.share(config.feed_forward);

  const models::CheckpointFolder folder(path);
  sliced->mapped = folder.lifetime();
  const models::TensorNames& names = models::tensor_names(sliced->model.architecture);
  sliced->columns.reserve(2 * sliced->model.layers.size());  // weights point into its entries
  for (Index i = 0; i < config.layers; ++i) {
    const std::string prefix = names.of_layer(i);
    const auto by_outputs = [&](const char* name, Range part) {
      const models::Tensor weight =
          detail::output_slice(*folder.find(prefix + name + ".weight"), part);
      const models::Tensor* bias = folder.find(prefix + name + ".bias");
      if (bias == nullptr) return models::Linear(weight, nullptr, options);
      const models::Tensor part_of_bias = detail::output_slice(*bias, part);
      return models::Linear(weight, &part_of_bias, options);
    };
    // The ranks' results are summed: the bias is added by one of them.
    const auto by_inputs = [&](const char* name, Range part) {
      const models::Tensor weight = detail::input_slice(*folder.find(prefix + name + ".weight"),
                                                        part, sliced->columns.emplace_back());
      models::Linear linear(
          weight, ranks.rank() == 0 ? folder.find(prefix + name + ".bias") : nullptr, options);
      if (!linear.reads_tensor()) sliced->columns.pop_back();  // packed by now
      return linear;
    };
    models::LayerWeights& layer = sliced->model.layers[static_cast<std::size_t>(i)];
    layer.query = by_outputs(names.query, queries);
    layer.key = by_outputs(names.key, keys);
    layer.value = by_outputs(names.value, keys);
    layer.output = by_inputs(names.output, queries);
    layer.gate = by_outputs(names.gate, hidden);
    layer.up = by_outputs(names.up, hidden);
    layer.down = by_inputs(names.down, hidden);
  }
  const bool tied = folder.config_reader().optional_bool(names.tied).value_or(false);
  const std::string head = names.head;
  sliced->model.head =
      tied ? models::Linear(sliced->model.embedding, nullptr, options)
           : models::Linear(*folder.find(head + ".weight"), folder.find(head + ".bias"), options);
  config.heads.heads /= ranks.size();
  config.heads.kv_heads /= ranks.size();
  config.feed_forward /= ranks.size();
  sliced->model.compute = options;
  return sliced;
}

}  // namespace tensor_parallel
