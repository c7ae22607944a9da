// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "dllm_cache/models/checkpoint/checkpoint_folder.hpp"
#include "dllm_cache/models/tensor_names.hpp"
#include "dllm_cache/models/transformer_model.hpp"

// What the loaders of all models share.
namespace dllm_cache::inline v0_1::models {

namespace detail {

/// Refuses a checkpoint whose `key` is there and true: a variant that these layers do not compute.
inline void refuse_true(const ConfigReader& reader, const char* key) {
  if (reader.optional_bool(key).value_or(false)) reader.refuse(key, "false or absent");
}

/// Refuses a checkpoint whose `key` is there and is not `expected`.
inline void require_string(const ConfigReader& reader, const char* key,
                           const std::string& expected) {
  const auto value = reader.optional_string(key);
  if (value && *value != expected) reader.refuse(key, "\"" + expected + "\" or absent");
}

/// Refuses a number of key heads that does not divide the heads.
inline void require_divisor(const ConfigReader& reader, const char* key, const HeadShape& shape) {
  if (shape.heads % shape.kv_heads != 0)
    reader.refuse(key, base::text("a divisor of the number of heads, ", shape.heads));
}

/// The mask, which must be a token, and the end of a text, which may be absent.
[[nodiscard]] inline SpecialTokens special_tokens(const ConfigReader& reader, Index vocabulary) {
  return {.mask = static_cast<std::int32_t>(reader.integer("mask_token_id", 0, vocabulary - 1)),
          .end_of_text = static_cast<std::int32_t>(
              reader.optional_integer("eos_token_id", 0, vocabulary - 1).value_or(no_token))};
}

/// Which norms and linear maps of a checkpoint have a bias.
struct Biases {
  bool norms = false;
  bool query_key_value = false;
  bool others = false;  ///< All other linear maps.
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
  model.architecture = names.architecture;
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
    layer.output = linear(prefix + names.output, width, queries, biases.others);
    layer.gate = linear(prefix + names.gate, config.feed_forward, width, biases.others);
    layer.up = linear(prefix + names.up, config.feed_forward, width, biases.others);
    layer.down = linear(prefix + names.down, width, config.feed_forward, biases.others);
  }
  model.final_norm = norm(names.final_norm);
  const bool tied = folder.config_reader().optional_bool(names.tied).value_or(false);
  model.head = tied ? Linear(model.embedding, nullptr, model.compute)
                    : linear(names.head, config.vocabulary, width, biases.others);
}

}  // namespace detail

}  // namespace dllm_cache::inline v0_1::models
