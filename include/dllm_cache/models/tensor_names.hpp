// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
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
  /// Norms of each head of the queries and keys; nullptr: none.
  const char *query_norm = nullptr, *key_norm = nullptr;
  const char *gate, *up, *down;  // the router and experts of a mixture would stand here
  const char *final_norm, *head;
  const char* tied;  ///< Key of config.json: whether the head is the embedding.

  /// What the names of a layer's tensors begin with.
  [[nodiscard]] std::string of_layer(Index number) const {
    return layers + std::to_string(number) + ".";
  }
  /// Whether queries and keys are normed, head by head.
  [[nodiscard]] constexpr bool has_query_key_norms() const { return query_norm != nullptr; }
};

namespace detail {

/// The names that LLaDA has (GSAI-ML).
[[nodiscard]] constexpr TensorNames llada_style(const char* architecture) {
  return {.architecture = architecture,
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
}

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

/// The names that Qwen3 has there: Llama's, and norms of queries and keys.
[[nodiscard]] constexpr TensorNames qwen3_style(const char* architecture) {
  TensorNames names = llama_style(architecture);
  names.query_norm = "self_attn.q_norm";
  names.key_norm = "self_attn.k_norm";
  return names;
}

/// Names of every kind of checkpoint that has names of its own; see tensor_names().
inline constexpr std::array<TensorNames, 8> all_tensor_names = {{
    llada_style("LLaDAModelLM"),
    llama_style("LlavaLLaDAModelLM"),
    llama_style("DreamModel"),
    qwen3_style("SDARForCausalLM"),
    qwen3_style("A2DQwen3LMHeadModel"),
    llama_style("A2DQwen2LMHeadModel"),
    llama_style("Fast_dLLM_QwenForCausalLM"),
    llama_style("StableDiffcoderForCausalLM"),
}};

/// The names of an architecture, or nullptr.
[[nodiscard]] constexpr const TensorNames* find_tensor_names(std::string_view architecture) {
  for (const TensorNames& names : all_tensor_names)
    if (architecture == names.architecture) return &names;
  return nullptr;
}

}  // namespace detail

/// Names by TransformerModel::architecture; throws std::invalid_argument for one that is not known.
[[nodiscard]] inline const TensorNames& tensor_names(std::string_view architecture) {
  if (const TensorNames* const names = detail::find_tensor_names(architecture)) return *names;
  std::string known;
  for (const TensorNames& names : detail::all_tensor_names)
    known += (known.empty() ? "" : ", ") + std::string(names.architecture);
  base::refuse_argument("TensorNames: architecture must be one of ", known, ", got ", architecture);
}

/// Names in the checkpoints of LLaDA (GSAI-ML).
[[nodiscard]] inline const TensorNames& llada_names() { return tensor_names("LLaDAModelLM"); }

/// Names in the checkpoints of Dream, which are those of Qwen2.
[[nodiscard]] inline const TensorNames& dream_names() { return tensor_names("DreamModel"); }

/// Names in checkpoints of LLaDA that were renamed after Llama, as those of LLaDA-V are.
[[nodiscard]] inline const TensorNames& llama_named_llada() {
  return tensor_names("LlavaLLaDAModelLM");
}

}  // namespace dllm_cache::inline v0_1::models
