// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "dllm_cache/models/checkpoint/config.hpp"
#include "dllm_cache/models/config_keys.hpp"
#include "dllm_cache/models/tensor_names.hpp"

namespace dllm_cache::inline v0_1::models {

/// What a checkpoint is computed as.
enum class Computation : std::uint8_t {
  LLaDA,  ///< Llama's layers; a row predicts its own token.
  Dream,  ///< Qwen2's layers; a row predicts the next one's token.
  Own,    ///< As its Family says, which is a computation of its own.
};

/// Biases of the attention where no key of config.json speaks of them.
enum class AttentionBiases : std::uint8_t {
  AsStored,       ///< Those that the files have.
  QueryKeyValue,  ///< On queries, keys and values, which must have them (Qwen2).
  None,           ///< None may be there; `attention_bias` puts them on the output, too (Qwen3).
};

/// A kind of checkpoint: how config.json names it, and all that its computation has of its own. The
/// layers are those of one transformer; see TransformerModel and detail::load_transformer().
struct Family {
  std::string_view architecture;  ///< The first of `architectures`.
  std::string_view model_type;    ///< Empty: `architectures` alone names the kind.
  Computation computation = Computation::Own;
  const TensorNames* names = nullptr;
  Naming naming = Naming::Llama;            ///< Of the keys of config.json.
  Index prediction_shift = 0;               ///< Row `i - shift` predicts the token of row i.
  std::optional<double> norm_epsilon = {};  ///< Where config.json has none; none: it must have one.
  Index head_dim = 0;                       ///< Where config.json has none; 0: width / heads.
  AttentionBiases biases = AttentionBiases::AsStored;
  std::string_view block_key = {};  ///< Key of the block of block-causal attention.
  Index block = 0;                  ///< Rows of it where that key is absent; 0: bidirectional.
  std::string_view decoder = {};    ///< Loop that decodes by default.
  // What a mixture of experts has of its own (its router, keys and sizes) would stand here.
};

/// The kinds that are read. LLaDA-1.5 is a LLaDAModelLM; Dream-Coder and DiffuCoder are
/// DreamModels; of MMaDA and LLaDA-V the text part is computed.
///
/// Sources: JetAstra/SDAR at c2041a8 (SDAR-4B-Chat), ZHZisZZ/dllm at ca17675 (A2D), the folder of
/// Fast_dLLM_v2_7B, and ByteDance's modeling_stable_diffcoder.py: a LlamaForCausalLM in all but its
/// loop, which runs over blocks of 4. Stable-DiffCoder's `model_type` is "llama", which says
/// nothing.
inline constexpr std::array<Family, 9> families = {{
    {.architecture = "LLaDAModelLM",
     .model_type = "llada",
     .computation = Computation::LLaDA,
     .names = detail::find_tensor_names("LLaDAModelLM"),
     .naming = Naming::LLaDA,
     .norm_epsilon = 1e-5,
     .decoder = "llada"},
    {.architecture = "MMadaModelLM",
     .model_type = "mmada",
     .computation = Computation::LLaDA,
     .names = detail::find_tensor_names("LLaDAModelLM"),
     .naming = Naming::LLaDA,
     .norm_epsilon = 1e-5,
     .decoder = "llada"},
    {.architecture = "LlavaLLaDAModelLM",
     .model_type = "llava_llada",
     .computation = Computation::LLaDA,
     .names = detail::find_tensor_names("LLaDAModelLM"),
     .naming = Naming::LLaDA,
     .norm_epsilon = 1e-5,
     .decoder = "llada"},
    {.architecture = "DreamModel",
     .model_type = "Dream",
     .computation = Computation::Dream,
     .names = detail::find_tensor_names("DreamModel"),
     .prediction_shift = 1,
     .norm_epsilon = 1e-6,
     .decoder = "dream"},
    {.architecture = "SDARForCausalLM",
     .model_type = "sdar",
     .names = detail::find_tensor_names("SDARForCausalLM"),
     .norm_epsilon = 1e-6,
     .head_dim = 128,
     .biases = AttentionBiases::None,
     .block_key = "block_size",
     .block = 4,
     .decoder = "sdar"},
    {.architecture = "A2DQwen3LMHeadModel",
     .model_type = "a2d-qwen3",
     .names = detail::find_tensor_names("A2DQwen3LMHeadModel"),
     .norm_epsilon = 1e-6,
     .head_dim = 128,
     .biases = AttentionBiases::None,
     .decoder = "mdlm"},
    {.architecture = "A2DQwen2LMHeadModel",
     .model_type = "a2d-qwen2",
     .names = detail::find_tensor_names("A2DQwen2LMHeadModel"),
     .norm_epsilon = 1e-6,
     .biases = AttentionBiases::QueryKeyValue,
     .decoder = "mdlm"},
    {.architecture = "Fast_dLLM_QwenForCausalLM",
     .model_type = "Fast_dLLM_Qwen",
     .names = detail::find_tensor_names("Fast_dLLM_QwenForCausalLM"),
     .prediction_shift = 1,
     .norm_epsilon = 1e-6,
     .biases = AttentionBiases::QueryKeyValue,
     .block_key = "bd_size",
     .block = 32,
     .decoder = "fastdllm-v2"},
    {.architecture = "StableDiffcoderForCausalLM",
     .model_type = {},
     .names = detail::find_tensor_names("StableDiffcoderForCausalLM"),
     .norm_epsilon = 1e-6,
     .biases = AttentionBiases::None,
     .block = 4,
     .decoder = "sdar"},
}};

namespace detail {

/// LLaDA under Llama's names of keys and tensors, as converters write it and LLaDA-V has it.
inline constexpr Family renamed_llada = {.architecture = "LlavaLLaDAModelLM",
                                         .model_type = "llava_llada",
                                         .computation = Computation::LLaDA,
                                         .names = find_tensor_names("LlavaLLaDAModelLM"),
                                         .decoder = "llada"};

/// `LLaDAModelLM ("llada"), ...`, for messages.
[[nodiscard]] inline std::string family_list() {
  std::string text;
  for (const Family& family : families) {
    text += (text.empty() ? "" : ", ") + std::string(family.architecture);
    if (!family.model_type.empty()) text += " (" + in_quotes(family.model_type) + ")";
  }
  return text;
}

/// The first architecture of config.json, empty where there is none.
[[nodiscard]] inline std::string architecture_of(const ConfigReader& reader) {
  const nlohmann::json* const list = reader.find("architectures");
  if (list == nullptr || (list->is_array() && list->empty())) return {};
  if (!list->is_array() || !list->front().is_string())
    reader.refuse("architectures", "a list of names");
  return list->front().get<std::string>();
}

/// Whether two kinds are one computation under several names.
[[nodiscard]] inline bool are_computed_alike(const Family& a, const Family& b) {
  return &a == &b || (a.computation == b.computation && a.computation != Computation::Own);
}

}  // namespace detail

/// The kind of checkpoint that config.json names: by `architectures`, because one `model_type` may
/// stand for several, and by `model_type` where there are none.
///
/// Throws std::runtime_error naming the file, what was found and what is read.
[[nodiscard]] inline const Family& family_of(const ConfigReader& reader) {
  const std::string architecture = detail::architecture_of(reader);
  const std::string model_type = architecture.empty()
                                     ? reader.string("model_type")
                                     : reader.optional_string("model_type").value_or("");
  const Family* by_architecture = nullptr;
  const Family* by_type = nullptr;
  for (const Family& family : families) {
    if (architecture == family.architecture) by_architecture = &family;
    if (!model_type.empty() && model_type == family.model_type) by_type = &family;
  }
  const Family* const found = architecture.empty() ? by_type : by_architecture;
  // An architecture says all; a type of another computation beside it says that something is wrong.
  if (found != nullptr && (by_type == nullptr || detail::are_computed_alike(*by_type, *found)))
    return *found;
  reader.refuse_file("the architecture ",
                     architecture.empty() ? "" : detail::in_quotes(architecture) + " with ",
                     "model_type ", model_type.empty() ? "none" : detail::in_quotes(model_type),
                     " is not supported, expected one of ", detail::family_list());
}

/// Rows a block of block-causal attention that a checkpoint of this kind was made for; 0: attention
/// is bidirectional, or nothing is said. Throws std::runtime_error for a key outside [1, 65536].
[[nodiscard]] inline Index attention_block(const ConfigReader& reader, const Family& family) {
  if (family.block_key.empty()) return family.block;
  return reader.optional_integer(family.block_key, 1, 1 << 16).value_or(family.block);
}

/// The kind of checkpoint that config.json names, which must be of that computation; throws
/// std::runtime_error naming its architecture.
[[nodiscard]] inline const Family& required_family(const ConfigReader& reader, Computation wanted) {
  const Family& family = family_of(reader);
  if (family.computation != wanted)
    reader.refuse_file("expected a checkpoint of ",
                       wanted == Computation::Dream ? "Dream" : "LLaDA", ", got architecture ",
                       family.architecture);
  return family;
}

}  // namespace dllm_cache::inline v0_1::models
