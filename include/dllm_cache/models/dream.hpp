// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "dllm_cache/models/checkpoint/checkpoint_folder.hpp"
#include "dllm_cache/models/load_parts.hpp"
#include "dllm_cache/models/transformer_model.hpp"

namespace dllm_cache::inline v0_1::models {

/// Reads a Dream checkpoint (Dream-v0-Base/Instruct-7B and kin): Qwen2-style config keys and tensor
/// names, biases on queries, keys and values, a head that predicts the next row's token.
///
/// Throws std::runtime_error like load_llada: naming file, key or tensor, expected and found.
[[nodiscard]] inline std::shared_ptr<const TransformerModel> load_dream(
    const CheckpointFolder& folder, const ComputeOptions& options = {}) {
  const ConfigReader reader = folder.config_reader();
  constexpr Index widest = Index{1} << 24;

  auto model = std::make_shared<TransformerModel>();
  model->compute = options;
  TransformerConfig& config = model->config;
  config.layers = reader.integer("num_hidden_layers", 1, 1 << 16);
  config.width = reader.integer("hidden_size", 1, widest);
  config.heads.heads = reader.integer("num_attention_heads", 1, 1 << 16);
  config.heads.kv_heads = reader.optional_integer("num_key_value_heads", 1, config.heads.heads)
                              .value_or(config.heads.heads);
  detail::require_divisor(reader, "num_key_value_heads", config.heads);
  const auto head_dim = reader.optional_integer("head_dim", 2, widest);
  if (!head_dim && config.width % config.heads.heads != 0)
    reader.refuse("hidden_size",
                  base::text("a multiple of num_attention_heads = ", config.heads.heads));
  config.heads.head_dim = head_dim ? *head_dim : config.width / config.heads.heads;
  if (config.heads.head_dim % 2 != 0)
    reader.refuse(head_dim ? "head_dim" : "hidden_size",
                  "even in each head, for the rotary embedding");
  config.feed_forward = reader.integer("intermediate_size", 1, widest);
  config.vocabulary = reader.integer("vocab_size", 1, Index{1} << 31);
  config.rotary_theta = reader.optional_number("rope_theta", 1.0, 1e12).value_or(10000.0);
  const double epsilon = reader.optional_number("rms_norm_eps", 0.0, 1.0).value_or(1e-6);
  config.prediction_shift = 1;
  config.special = detail::special_tokens(reader, config.vocabulary);
  detail::require_string(reader, "hidden_act", "silu");
  detail::refuse_true(reader, "use_sliding_window");
  if (reader.find("rope_scaling") != nullptr) reader.refuse("rope_scaling", "null or absent");

  detail::load_tensors(folder, dream_names(), {.query_key_value = true}, epsilon, *model);
  return model;
}

}  // namespace dllm_cache::inline v0_1::models
