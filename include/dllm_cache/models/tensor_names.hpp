// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "dllm_cache/base/error.hpp"
#include "dllm_cache/base/matrix_view.hpp"

namespace dllm_cache::inline v0_1::models {

/// What a checkpoint's tensors are called, without the ".weight" or ".bias" behind every name.
struct TensorNames {
  const char* architecture;  ///< The first model that had these names, as config.json names it.
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
  static constexpr TensorNames names{.architecture = "LLaDAModelLM",
                                     .embedding = "model.transformer.wte",
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

namespace detail {

/// The names that Llama and Qwen2 have in Python's transformers.
[[nodiscard]] constexpr TensorNames llama_style(const char* architecture) {
  return {.architecture = architecture,
          .embedding = "model.embed_tokens",
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
}

}  // namespace detail

/// Names in the checkpoints of Dream, which are those of Qwen2.
[[nodiscard]] inline const TensorNames& dream_names() {
  static constexpr TensorNames names = detail::llama_style("DreamModel");
  return names;
}

/// Names in checkpoints of LLaDA that were renamed after Llama, as those of LLaDA-V are.
[[nodiscard]] inline const TensorNames& llama_named_llada() {
  static constexpr TensorNames names = detail::llama_style("LlavaLLaDAModelLM");
  return names;
}

/// Names by TransformerModel::architecture; throws std::invalid_argument for one that is not known.
[[nodiscard]] inline const TensorNames& tensor_names(std::string_view architecture) {
  for (const TensorNames* names : {&llada_names(), &dream_names(), &llama_named_llada()})
    if (architecture == names->architecture) return *names;
  base::refuse_argument(
      "TensorNames: architecture must be LLaDAModelLM, DreamModel or LlavaLLaDAModelLM, got ",
      architecture);
}

}  // namespace dllm_cache::inline v0_1::models
