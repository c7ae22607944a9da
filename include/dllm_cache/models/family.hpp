// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "dllm_cache/models/checkpoint/config.hpp"

namespace dllm_cache::inline v0_1::models {

/// What a checkpoint is computed as.
enum class Computation {
  LLaDA,  ///< A row predicts its own token.
  Dream,  ///< A row predicts the next one's token.
};

/// A kind of checkpoint, as config.json names it.
struct Family {
  std::string_view architecture;  ///< The first of `architectures`.
  std::string_view model_type;
  Computation computation;
};

/// The kinds that are read. LLaDA-1.5 is a LLaDAModelLM; Dream-Coder and DiffuCoder are
/// DreamModels; of MMaDA and LLaDA-V the text part is computed.
inline constexpr std::array<Family, 4> families = {{
    {"LLaDAModelLM", "llada", Computation::LLaDA},
    {"MMadaModelLM", "mmada", Computation::LLaDA},
    {"LlavaLLaDAModelLM", "llava_llada", Computation::LLaDA},
    {"DreamModel", "Dream", Computation::Dream},
}};

namespace detail {

/// `LLaDAModelLM ("llada"), ...`, for messages.
[[nodiscard]] inline std::string family_list() {
  std::string text;
  for (const Family& family : families) {
    text += text.empty() ? "" : ", ";
    text += std::string(family.architecture) + " (\"" + std::string(family.model_type) + "\")";
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
    if (model_type == family.model_type) by_type = &family;
  }
  const Family* const found = architecture.empty() ? by_type : by_architecture;
  // An architecture says all; a type of another computation beside it says that something is wrong.
  const bool agree =
      by_type == nullptr || (found != nullptr && by_type->computation == found->computation);
  if (found != nullptr && agree) return *found;
  reader.refuse_file("the architecture ",
                     architecture.empty() ? "" : detail::in_quotes(architecture) + " with ",
                     "model_type ", model_type.empty() ? "none" : detail::in_quotes(model_type),
                     " is not supported, expected one of ", detail::family_list());
}

/// Refuses a checkpoint of another computation; throws std::runtime_error naming its architecture.
inline void require_computation(const ConfigReader& reader, Computation wanted) {
  const Family& family = family_of(reader);
  if (family.computation != wanted)
    reader.refuse_file("expected a checkpoint of ",
                       wanted == Computation::Dream ? "Dream" : "LLaDA", ", got architecture ",
                       family.architecture);
}

}  // namespace dllm_cache::inline v0_1::models
