// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "dllm_cache/models/biases.hpp"
#include "dllm_cache/models/check_config.hpp"
#include "dllm_cache/models/checkpoint/checkpoint_folder.hpp"
#include "dllm_cache/models/family.hpp"
#include "dllm_cache/models/rotary_config.hpp"
#include "dllm_cache/models/special_ids.hpp"
#include "dllm_cache/models/tensor_names.hpp"
#include "dllm_cache/models/transformer_model.hpp"
#include "dllm_cache/models/unread_tensors.hpp"

// What the loaders of all models share.
namespace dllm_cache::inline v0_1::models {

namespace detail {

/// Refuses a number of key heads that does not divide the heads.
inline void require_divisor(const ConfigReader& reader, const char* key, const HeadShape& shape) {
  if (shape.heads % shape.kv_heads != 0)
    reader.refuse(key, base::text("a divisor of the number of heads, ", shape.heads));
}

/// The epsilon of the norms: `rms_norm_eps`, or `absent`, without which the key must be there;
/// other models of this shape call it `layer_norm_eps`, which must not differ.
[[nodiscard]] inline double norm_epsilon(const ConfigReader& reader, std::optional<double> absent) {
  const auto named = reader.optional_number("layer_norm_eps", 0.0, 1.0);
  const auto own = reader.optional_number("rms_norm_eps", 0.0, 1.0);
  if (!own && !absent) reader.refuse("rms_norm_eps", "a number in [0, 1]");
  const double epsilon = own ? *own : *absent;
  if (named && *named != epsilon)
    reader.refuse("layer_norm_eps", base::text("rms_norm_eps = ", epsilon, ", null or absent"));
  return epsilon;
}

/// What is read of every kind in the same way: keys that must be known, blocks of attention,
/// positions, special tokens. `config.vocabulary` and `config.heads` are set; tokens are below
/// `vocabulary`.
inline void read_common(const ConfigReader& reader, const Family& kind, const TokenChoice& tokens,
                        Index vocabulary, TransformerModel& model) {
  TransformerConfig& config = model.config;
  if (auto warning = check_keys(reader, kind.naming, kind.block_key))
    model.warnings.push_back(*std::move(warning));
  config.attention_block = attention_block(reader, kind);
  const RotaryConfig rotary = rotary_config(reader);
  config.rotary_theta = rotary.theta.value_or(10000.0);
  config.rotary_scaling = rotary.scaling.value_or(RotaryScaling{});
  for (const char* key : {"max_sequence_length", "max_position_embeddings"})
    if (const auto most = reader.optional_integer(key, 1, Index{1} << 40))
      config.max_positions =
          config.max_positions == 0 ? *most : std::min(config.max_positions, *most);
  config.special = SpecialIds(reader, vocabulary).read(tokens, model.warnings);
}

/// Reads the tensors of a checkpoint, by their names, into a model whose `config` and `compute` are
/// set. Absent biases are zero where config.json does not ask for them, see has_biases(). A tensor
/// of a layer that would not be read is refused. Weights stay mapped where the backend reads them
/// in place; norms and biases are copied.
inline void load_tensors(const CheckpointFolder& folder, const TensorNames& names,
                         const BiasRules& rules, double epsilon, TransformerModel& model) {
  const TransformerConfig& config = model.config;
  const Index width = config.width, queries = config.query_width(), keys = config.kv_width();
  const bool tied = folder.config_reader().optional_bool(names.tied).value_or(false);
  const Biases biases = find_biases(folder, names, config.layers, rules, tied);
  const auto norm = [&](const std::string& name, Index size, bool bias) {
    RmsNorm made;
    made.weight = read_floats(folder.weight(name + ".weight", {size}));
    if (bias) made.bias = read_floats(folder.weight(name + ".bias", {size}));
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
    layer.attention_norm = norm(prefix + names.attention_norm, width, biases.norms);
    layer.feed_forward_norm = norm(prefix + names.feed_forward_norm, width, biases.norms);
    layer.query = linear(prefix + names.query, queries, width, biases.query_key_value);
    layer.key = linear(prefix + names.key, keys, width, biases.query_key_value);
    layer.value = linear(prefix + names.value, keys, width, biases.query_key_value);
    if (model.compute.verify_rank != 0)
      layer.verify = ValueProjection(folder.weight(prefix + names.value + ".weight", {keys, width}),
                                     model.compute.verify_rank, model.compute);
    if (names.has_query_key_norms()) {  // one weight for all heads
      layer.query_norm = norm(prefix + names.query_norm, config.heads.head_dim, false);
      layer.key_norm = norm(prefix + names.key_norm, config.heads.head_dim, false);
    }
    layer.output = linear(prefix + names.output, width, queries, biases.output);
    layer.gate = linear(prefix + names.gate, config.feed_forward, width, biases.feed_forward);
    layer.up = linear(prefix + names.up, config.feed_forward, width, biases.feed_forward);
    layer.down = linear(prefix + names.down, width, config.feed_forward, biases.feed_forward);
  }
  model.final_norm = norm(names.final_norm, width, biases.norms);
  model.head = tied ? Linear(model.embedding, nullptr, model.compute)
                    : linear(names.head, config.vocabulary, width, biases.head);
  if (auto warning = check_unread(folder, names, tied))
    model.warnings.push_back(*std::move(warning));
}

}  // namespace detail

}  // namespace dllm_cache::inline v0_1::models
