// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dllm_cache/models/checkpoint/config.hpp"
#include "dllm_cache/models/load_parts.hpp"
#include "dllm_cache/models/transformer_model.hpp"

namespace dllm_cache::inline v0_1::models::detail {

/// Reads the sizes under the names of Llama and Qwen2, the vocabulary among them.
inline void read_llama_sizes(const ConfigReader& reader, TransformerConfig& config) {
  constexpr Index widest = Index{1} << 24;
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
  config.vocabulary = reader.integer("vocab_size", 1, Index{1} << 31);
}

/// Rules of the biases under these names: `attention_bias` and `mlp_bias`. Qwen2 has biases on
/// queries, keys and values, Llama with `attention_bias` on the output, too: there the files
/// decide.
[[nodiscard]] inline BiasRules llama_bias_rules(const ConfigReader& reader) {
  const BiasRule attention = bias_rule(reader, {"attention_bias"});
  return {.norms = {},
          .query_key_value = attention,
          .output = attention.wanted == true ? BiasRule{} : attention,
          .feed_forward = bias_rule(reader, {"mlp_bias"}),
          .head = {}};
}

}  // namespace dllm_cache::inline v0_1::models::detail
