// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "dllm_cache/models/checkpoint/checkpoint_folder.hpp"
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
