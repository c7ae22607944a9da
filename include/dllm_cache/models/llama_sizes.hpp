// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "dllm_cache/models/checkpoint/config.hpp"
#include "dllm_cache/models/family.hpp"
#include "dllm_cache/models/load_parts.hpp"
#include "dllm_cache/models/transformer_model.hpp"

namespace dllm_cache::inline v0_1::models::detail {

/// Reads the sizes under the names of Llama and Qwen, the vocabulary among them. A head has so many
/// dimensions where config.json is silent (`absent_head_dim`), or the width shared out (0).
inline void read_llama_sizes(const ConfigReader& reader, Index absent_head_dim,
                             TransformerConfig& config) {
  constexpr Index widest = Index{1} << 24;
  config.layers = reader.integer("num_hidden_layers", 1, 1 << 16);
  config.width = reader.integer("hidden_size", 1, widest);
  config.heads.heads = reader.integer("num_attention_heads", 1, 1 << 16);
  config.heads.kv_heads = reader.optional_integer("num_key_value_heads", 1, config.heads.heads)
                              .value_or(config.heads.heads);
  require_divisor(reader, "num_key_value_heads", config.heads);
  auto head_dim = reader.optional_integer("head_dim", 2, widest);
  if (!head_dim && absent_head_dim != 0) head_dim = absent_head_dim;
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

/// Rules of the biases under these names: `attention_bias` and `mlp_bias`, and what the kind says
/// where they are absent. Qwen2 has biases on queries, keys and values, Llama and Qwen3 with
/// `attention_bias` on the output, too: where the kind does not tell, the files decide.
[[nodiscard]] inline BiasRules llama_bias_rules(const ConfigReader& reader, const Family& kind) {
  const BiasRule named = bias_rule(reader, {"attention_bias"});
  BiasRules rules{.norms = {},
                  .query_key_value = named,
                  .output = named.wanted == true ? BiasRule{} : named,
                  .feed_forward = bias_rule(reader, {"mlp_bias"}),
                  .head = {}};
  if (kind.biases == AttentionBiases::AsStored) return rules;
  const std::string architecture(kind.architecture);
  const BiasRule none{.wanted = false, .reason = architecture + " has none"};
  const bool qwen2 = kind.biases == AttentionBiases::QueryKeyValue;
  if (!named.wanted)
    rules.query_key_value = qwen2 ? BiasRule{true, architecture + " has it"} : none;
  rules.output = qwen2 ? none : rules.query_key_value;
  return rules;
}

}  // namespace dllm_cache::inline v0_1::models::detail
