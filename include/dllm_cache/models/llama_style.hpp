// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "dllm_cache/models/checkpoint/checkpoint_folder.hpp"
#include "dllm_cache/models/load_parts.hpp"
#include "dllm_cache/models/transformer_model.hpp"

// Checkpoints under the names of Llama and Qwen2.
namespace dllm_cache::inline v0_1::models::detail {

/// In what the families under these names differ.
struct LlamaStyle {
  const char* architecture;  ///< Where config.json names none.
  double epsilon;            ///< Of norms, where config.json says nothing.
  Index prediction_shift = 0;
};

/// Whether linear maps of a kind have a bias: as the key says where it is there, else as the first
/// layer's tensor is there or not. Refuses a bias that stands in the files though the key says
/// that there is none.
[[nodiscard]] inline bool has_bias(const CheckpointFolder& folder, const char* key,
                                   const std::string& map) {
  const ConfigReader reader = folder.config_reader();
  const bool there = folder.find(map + ".bias") != nullptr;
  const std::optional<bool> said = key == nullptr ? std::nullopt : reader.optional_bool(key);
  if (said && !*said && there)
    reader.refuse(key, "true or absent, since the tensor " + map + ".bias is there");
  return said.value_or(there);
}

/// Reads such a checkpoint; throws like load_llada.
[[nodiscard]] inline std::shared_ptr<const TransformerModel> load_llama_style(
    const CheckpointFolder& folder, const ComputeOptions& options, const TokenChoice& tokens,
    const LlamaStyle& style) {
  const ConfigReader reader = folder.config_reader();
  constexpr Index widest = Index{1} << 24;
  constexpr Index most_tokens = Index{1} << 31;

  auto model = std::make_shared<TransformerModel>();
  begin_model(folder, KeyStyle::Llama, style.architecture, options, *model);
  TransformerConfig& config = model->config;
  config.layers = reader.integer("num_hidden_layers", 1, 1 << 16);
  config.width = reader.integer("hidden_size", 1, widest);
  config.heads.heads = reader.integer("num_attention_heads", 1, 1 << 16);
  config.heads.kv_heads = reader.optional_integer("num_key_value_heads", 1, config.heads.heads)
                              .value_or(config.heads.heads);
  require_divisor(reader, "num_key_value_heads", config.heads);
  const auto head_dim = reader.optional_integer("head_dim", 2, widest);
  if (!head_dim && config.width % config.heads.heads != 0)
    reader.refuse("hidden_size",
                  base::text("a multiple of num_attention_heads = ", config.heads.heads));
  config.heads.head_dim = head_dim ? *head_dim : config.width / config.heads.heads;
  if (config.heads.head_dim % 2 != 0)
    reader.refuse(head_dim ? "head_dim" : "hidden_size",
                  "even in each head, for the rotary embedding");
  config.feed_forward = reader.integer("intermediate_size", 1, widest);
  config.vocabulary = reader.integer("vocab_size", 1, most_tokens);
  read_rotary(reader, config);
  config.max_positions =
      reader.optional_integer("max_position_embeddings", 1, most_tokens).value_or(0);
  const double epsilon = reader.optional_number("rms_norm_eps", 0.0, 1.0).value_or(style.epsilon);
  config.prediction_shift = style.prediction_shift;
  config.special = special_tokens(folder, config.vocabulary, tokens);
  // Qwen2 has a window only where it says so; others have one where they name its size.
  if (reader.find("use_sliding_window") == nullptr && reader.find("sliding_window") != nullptr)
    reader.refuse("sliding_window", "null or absent; attention within a window is not computed");
  if (const nlohmann::json* types = reader.find("layer_types"))
    for (const nlohmann::json& type : *types)
      if (type != "full_attention")
        reader.refuse("layer_types", "full_attention in every layer; others are not computed");

  const TensorNames& names = llama_names();
  const std::string first = names.of_layer(0);
  load_tensors(folder, names,
               {.query_key_value = has_bias(folder, "attention_bias", first + names.query),
                .output = has_bias(folder, nullptr, first + names.output),
                .feed_forward = has_bias(folder, "mlp_bias", first + names.gate),
                .head = has_bias(folder, nullptr, names.head)},
               epsilon, *model);
  return model;
}

}  // namespace dllm_cache::inline v0_1::models::detail
