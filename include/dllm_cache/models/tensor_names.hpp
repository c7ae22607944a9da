// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "dllm_cache/base/matrix_view.hpp"

namespace dllm_cache::inline v0_1::models {

/// What a checkpoint's tensors are called, without the ".weight" or ".bias" behind every name.
struct TensorNames {
  const char* embedding;
  const char* layers;  ///< Before a layer's number; see of_layer().
  // Of a layer, behind of_layer().
  const char *attention_norm, *feed_forward_norm;
  const char *query, *key, *value, *output;
  const char *gate, *up, *down;
  const char *final_norm, *head;
  const char* tied;  ///< Key of config.json: whether the head is the embedding.

  /// What the names of a layer's tensors begin with.
  [[nodiscard]] std::string of_layer(Index number) const {
    return layers + std::to_string(number) + ".";
  }
};

/// Names in the checkpoints of LLaDA (GSAI-ML).
[[nodiscard]] inline const TensorNames& llada_names() {
  static constexpr TensorNames names{.embedding = "model.transformer.wte",
                                     .layers = "model.transformer.blocks.",
                                     .attention_norm = "attn_norm",
                                     .feed_forward_norm = "ff_norm",
                                     .query = "q_proj",
                                     .key = "k_proj",
                                     .value = "v_proj",
                                     .output = "attn_out",
                                     .gate = "ff_proj",
                                     .up = "up_proj",
                                     .down = "ff_out",
                                     .final_norm = "model.transformer.ln_f",
                                     .head = "model.transformer.ff_out",
                                     .tied = "weight_tying"};
  return names;
}

/// Names of Llama and Qwen2: in the checkpoints of Dream, and of LLaDA as converters write it.
[[nodiscard]] inline const TensorNames& llama_names() {
  static constexpr TensorNames names{.embedding = "model.embed_tokens",
                                     .layers = "model.layers.",
                                     .attention_norm = "input_layernorm",
                                     .feed_forward_norm = "post_attention_layernorm",
                                     .query = "self_attn.q_proj",
                                     .key = "self_attn.k_proj",
                                     .value = "self_attn.v_proj",
                                     .output = "self_attn.o_proj",
                                     .gate = "mlp.gate_proj",
                                     .up = "mlp.up_proj",
                                     .down = "mlp.down_proj",
                                     .final_norm = "model.norm",
                                     .head = "lm_head",
                                     .tied = "tie_word_embeddings"};
  return names;
}

}  // namespace dllm_cache::inline v0_1::models
