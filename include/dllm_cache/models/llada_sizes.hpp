// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "dllm_cache/models/biases.hpp"
#include "dllm_cache/models/checkpoint/config.hpp"
#include "dllm_cache/models/load_parts.hpp"
#include "dllm_cache/models/transformer_model.hpp"

namespace dllm_cache::inline v0_1::models::detail {

/// Reads the sizes of a LLaDA under its own names; the vocabulary is that of read_vocabulary().
inline void read_llada_sizes(const ConfigReader& reader, TransformerConfig& config) {
  constexpr Index widest = Index{1} << 24;
  config.layers = reader.integer("n_layers", 1, 1 << 16);
  config.width = reader.integer("d_model", 1, widest);
  config.heads.heads = reader.integer("n_heads", 1, 1 << 16);
  const bool multi_query = reader.optional_bool("multi_query_attention").value_or(false);
  config.heads.kv_heads = reader.optional_integer("n_kv_heads", 1, config.heads.heads)
                              .value_or(multi_query ? 1 : config.heads.heads);
  require_divisor(reader, "n_kv_heads", config.heads);
  if (config.width % (2 * config.heads.heads) != 0)
    reader.refuse("d_model", base::text("an even multiple of n_heads = ", config.heads.heads));
  config.heads.head_dim = config.width / config.heads.heads;
  const auto head_dim = reader.optional_integer("head_dim", 1, widest);
  if (head_dim && *head_dim != config.heads.head_dim)
    reader.refuse("head_dim",
                  base::text("d_model / n_heads = ", config.heads.head_dim, ", null or absent"));
  const auto ratio = reader.optional_integer("mlp_ratio", 1, 1024);
  const auto hidden = reader.optional_integer("mlp_hidden_size", 1, widest);
  config.feed_forward =
      hidden || !ratio ? reader.integer("mlp_hidden_size", 1, widest) : *ratio * config.width;
}

/// Rows of the embedding under LLaDA's names, and below which number its tokens are. MMaDA widens
/// the embedding for images: `new_vocab_size` says to what.
[[nodiscard]] inline Index read_vocabulary(const ConfigReader& reader, TransformerConfig& config) {
  constexpr Index most_tokens = Index{1} << 31;
  const Index vocabulary = reader.integer("vocab_size", 1, most_tokens);
  if (const auto widened = reader.optional_integer("new_vocab_size", 1, most_tokens)) {
    const Index all = std::max(vocabulary, *widened);
    config.vocabulary =
        std::max(all, reader.optional_integer("embedding_size", 1, most_tokens).value_or(all));
    return all;
  }
  config.vocabulary =
      reader.optional_integer("embedding_size", vocabulary, most_tokens).value_or(vocabulary);
  return vocabulary;
}

/// Rules of the biases under LLaDA's names.
[[nodiscard]] inline BiasRules llada_bias_rules(const ConfigReader& reader) {
  const BiasRule all = bias_rule(reader, {"include_bias"});
  return {.norms = bias_rule(reader, {"bias_for_layer_norm", "include_bias"}),
          .query_key_value = all.wanted == true ? all : bias_rule(reader, {"include_qkv_bias"}),
          .output = all,
          .feed_forward = all,
          .head = all};
}

}  // namespace dllm_cache::inline v0_1::models::detail
