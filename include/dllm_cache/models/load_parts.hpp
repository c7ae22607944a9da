// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "dllm_cache/models/checkpoint/checkpoint_folder.hpp"
#include "dllm_cache/models/transformer_model.hpp"

// What the loaders of all models share.
namespace dllm_cache::inline v0_1::models {

namespace detail {

/// Refuses a checkpoint whose `key` is there and true: a variant that these layers do not compute.
inline void refuse_true(const CheckpointFolder& folder, const char* key) {
  if (optional_config_bool(folder.config(), folder.config_path(), key).value_or(false))
    refuse_config(folder.config_path(), key, "false or absent", &folder.config().at(key));
}

/// Refuses a checkpoint whose `key` is there and is not `expected`.
inline void require_string(const CheckpointFolder& folder, const char* key,
                           const std::string& expected) {
  const auto value = optional_config_string(folder.config(), folder.config_path(), key);
  if (value && *value != expected)
    refuse_config(folder.config_path(), key, "\"" + expected + "\" or absent",
                  &folder.config().at(key));
}

/// Refuses a number of key heads that does not divide the heads.
inline void require_divisor(const CheckpointFolder& folder, const char* key, Index heads,
                            Index kv_heads) {
  if (heads % kv_heads != 0)
    refuse_config(folder.config_path(), key,
                  "a divisor of the number of heads, " + std::to_string(heads),
                  &folder.config().at(key));
}

inline RmsNorm load_norm(const CheckpointFolder& folder, const std::string& name, Index width,
                         bool bias, double epsilon) {
  RmsNorm norm;
  norm.weight = read_floats(folder.weight(name + ".weight", {width}));
  if (bias) norm.bias = read_floats(folder.weight(name + ".bias", {width}));
  norm.epsilon = static_cast<float>(epsilon);
  return norm;
}

inline Linear load_linear(const CheckpointFolder& folder, const std::string& name, Index outputs,
                          Index inputs, bool bias, const ComputeOptions& options) {
  const Tensor& weight = folder.weight(name + ".weight", {outputs, inputs});
  return Linear(weight, bias ? &folder.weight(name + ".bias", {outputs}) : nullptr, options);
}

/// The head: a tensor of its own, or the embedding when the two are tied.
inline Linear load_head(const CheckpointFolder& folder, const std::string& name,
                        const TransformerModel& model, bool tied, bool bias,
                        const ComputeOptions& options) {
  if (tied) return Linear(model.embedding, nullptr, options);
  return load_linear(folder, name, model.config.vocabulary, model.config.width, bias, options);
}

}  // namespace detail

}  // namespace dllm_cache::inline v0_1::models
