// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "dllm_cache/models/checkpoint/checkpoint_folder.hpp"
#include "dllm_cache/models/config_keys.hpp"
#include "dllm_cache/models/read_rotary.hpp"
#include "dllm_cache/models/read_tokens.hpp"
#include "dllm_cache/models/tensor_names.hpp"
#include "dllm_cache/models/transformer_model.hpp"

// What the loaders of all models share.
namespace dllm_cache::inline v0_1::models {

namespace detail {

/// Begins a model: its name, how it is computed, and what is odd about its config.json. Throws
/// std::runtime_error for keys that ask for what is not computed.
inline void begin_model(const CheckpointFolder& folder, KeyStyle style, const char* architecture,
                        const ComputeOptions& options, TransformerModel& model) {
  const ConfigReader reader = folder.config_reader();
  const nlohmann::json* const named = reader.find("architectures");
  model.architecture = named != nullptr && named->is_array() && !named->empty()
                           ? named->front().get<std::string>()
                           : architecture;
  model.compute = options;
  std::string unknown;
  for (const std::string& key : check_config_keys(reader, folder.config(), style))
    unknown += (unknown.empty() ? "" : ", ") + key;
  if (!unknown.empty())
    model.warnings.push_back(folder.config_path().string() +
                             ": keys that are not known here, and do nothing: " + unknown);
}

/// Refuses a number of key heads that does not divide the heads.
inline void require_divisor(const ConfigReader& reader, const char* key, const HeadShape& shape) {
  if (shape.heads % shape.kv_heads != 0)
    reader.refuse(key, base::text("a divisor of the number of heads, ", shape.heads));
}

/// Which norms and linear maps of a checkpoint have a bias.
struct Biases {
  bool norms = false;
  bool query_key_value = false;
  bool output = false;
  bool feed_forward = false;
  bool head = false;
};

/// Reads the tensors of a checkpoint, by their names, into a model whose `config` and `compute` are
/// set. Weights stay mapped where the backend reads them in place; norms and biases are copied.
inline void load_tensors(const CheckpointFolder& folder, const TensorNames& names,
                         const Biases& biases, double epsilon, TransformerModel& model) {
  const TransformerConfig& config = model.config;
  const Index width = config.width, queries = config.query_width(), keys = config.kv_width();
  const auto norm = [&](const std::string& name) {
    RmsNorm made;
    made.weight = read_floats(folder.weight(name + ".weight", {width}));
    if (biases.norms) made.bias = read_floats(folder.weight(name + ".bias", {width}));
    made.epsilon = static_cast<float>(epsilon);
    return made;
  };
  const auto linear = [&](const std::string& name, Index outputs, Index inputs, bool bias) {
    const Tensor& weight = folder.weight(name + ".weight", {outputs, inputs});
    return Linear(weight, bias ? &folder.weight(name + ".bias", {outputs}) : nullptr,
                  model.compute);
  };
  model.names = &names;
  model.lifetime = folder.lifetime();
  model.embedding =
      folder.weight(std::string(names.embedding) + ".weight", {config.vocabulary, width});
  for (Index number = 0; number < config.layers; ++number) {
    const std::string prefix = names.of_layer(number);
    LayerWeights& layer = model.layers.emplace_back();
    layer.attention_norm = norm(prefix + names.attention_norm);
    layer.feed_forward_norm = norm(prefix + names.feed_forward_norm);
    layer.query = linear(prefix + names.query, queries, width, biases.query_key_value);
    layer.key = linear(prefix + names.key, keys, width, biases.query_key_value);
    layer.value = linear(prefix + names.value, keys, width, biases.query_key_value);
    layer.output = linear(prefix + names.output, width, queries, biases.output);
    layer.gate = linear(prefix + names.gate, config.feed_forward, width, biases.feed_forward);
    layer.up = linear(prefix + names.up, config.feed_forward, width, biases.feed_forward);
    layer.down = linear(prefix + names.down, width, config.feed_forward, biases.feed_forward);
  }
  model.final_norm = norm(names.final_norm);
  const bool tied = folder.config_reader().optional_bool(names.tied).value_or(false);
  model.head = tied ? Linear(model.embedding, nullptr, model.compute)
                    : linear(names.head, config.vocabulary, width, biases.head);
}

}  // namespace detail

}  // namespace dllm_cache::inline v0_1::models
