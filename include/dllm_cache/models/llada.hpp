// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "dllm_cache/models/checkpoint/checkpoint_folder.hpp"
#include "dllm_cache/models/llama_style.hpp"
#include "dllm_cache/models/load_parts.hpp"
#include "dllm_cache/models/transformer_model.hpp"

namespace dllm_cache::inline v0_1::models {

/// Reads a LLaDA checkpoint (LLaDA-8B-Base/Instruct, LLaDA-1.5 and their kin, the text part of
/// MMaDA): config keys and tensor names of `LLaDAModelLM` (GSAI-ML), or those of Llama where
/// config.json has `hidden_size` and no `d_model`, as converters and LLaDA-V write them.
///
/// Weights stay mapped; norms and biases are read. Throws std::runtime_error naming file, key or
/// tensor, what was expected and what was found: an absent or illegal key, a variant that is not
/// computed (see config_keys.hpp), a missing or misshapen tensor, a layer's tensor that is not
/// read; std::invalid_argument for a chosen token outside the vocabulary.
[[nodiscard]] inline std::shared_ptr<const TransformerModel> load_llada(
    const CheckpointFolder& folder, const ComputeOptions& options = {},
    const TokenChoice& tokens = {}) {
  const ConfigReader reader = folder.config_reader();
  if (reader.find("d_model") == nullptr && reader.find("hidden_size") != nullptr)
    return detail::load_llama_style(folder, options, tokens,
                                    {.architecture = "LLaDAModelLM", .epsilon = 1e-5});
  constexpr Index widest = Index{1} << 24;
  constexpr Index most_tokens = Index{1} << 31;

  auto model = std::make_shared<TransformerModel>();
  detail::begin_model(folder, KeyStyle::Llada, "LLaDAModelLM", options, *model);
  TransformerConfig& config = model->config;
  config.layers = reader.integer("n_layers", 1, 1 << 16);
  config.width = reader.integer("d_model", 1, widest);
  config.heads.heads = reader.integer("n_heads", 1, 1 << 16);
  const bool multi_query = reader.optional_bool("multi_query_attention").value_or(false);
  config.heads.kv_heads = reader.optional_integer("n_kv_heads", 1, config.heads.heads)
                              .value_or(multi_query ? 1 : config.heads.heads);
  detail::require_divisor(reader, "n_kv_heads", config.heads);
  if (config.width % (2 * config.heads.heads) != 0)
    reader.refuse("d_model", base::text("an even multiple of n_heads = ", config.heads.heads));
  config.heads.head_dim = config.width / config.heads.heads;
  const auto ratio = reader.optional_integer("mlp_ratio", 1, 1024);
  const auto hidden = reader.optional_integer("mlp_hidden_size", 1, widest);
  config.feed_forward =
      hidden || !ratio ? reader.integer("mlp_hidden_size", 1, widest) : *ratio * config.width;
  const Index vocabulary = reader.integer("vocab_size", 1, most_tokens);
  config.vocabulary =
      reader.optional_integer("embedding_size", vocabulary, most_tokens).value_or(vocabulary);
  detail::read_rotary(reader, config);
  config.max_positions = reader.optional_integer("max_sequence_length", 1, most_tokens).value_or(0);
  const double epsilon = reader.optional_number("rms_norm_eps", 0.0, 1.0).value_or(1e-5);
  config.special = detail::special_tokens(folder, vocabulary, tokens);
  const bool tied = reader.optional_bool("weight_tying").value_or(false);
  if (reader.optional_bool("tie_word_embeddings").value_or(tied) && !tied)
    reader.refuse("tie_word_embeddings", "false or absent beside weight_tying false");

  const bool bias = reader.optional_bool("include_bias").value_or(false);
  const bool qkv_bias = bias || reader.optional_bool("include_qkv_bias").value_or(false);
  const bool norm_bias = reader.optional_bool("bias_for_layer_norm").value_or(bias);
  detail::load_tensors(folder, llada_names(),
                       {.norms = norm_bias,
                        .query_key_value = qkv_bias,
                        .output = bias,
                        .feed_forward = bias,
                        .head = bias},
                       epsilon, *model);
  return model;
}

}  // namespace dllm_cache::inline v0_1::models
