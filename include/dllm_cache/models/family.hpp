// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <string_view>

#include "dllm_cache/models/checkpoint/config.hpp"

namespace dllm_cache::inline v0_1::models {

/// Families of models that are computed.
enum class Family { Llada, Dream };

namespace detail {

/// What config.json calls a model of a family: the first of its `architectures`, and its
/// `model_type` where it names no architecture.
struct FamilyName {
  std::string_view architecture, model_type;
  Family family;
};

inline constexpr std::array<FamilyName, 4> family_names = {
    {{"LLaDAModelLM", "llada", Family::Llada},
     {"LlavaLLaDAModelLM", "llava_llada", Family::Llada},
     {"MMadaModelLM", "mmada", Family::Llada},
     {"DreamModel", "Dream", Family::Dream}}};

}  // namespace detail

/// The family that config.json names. `model_type` alone does not tell: more than one architecture
/// calls itself llada. Throws std::runtime_error naming architecture and type of another model, and
/// those that are supported.
[[nodiscard]] inline Family family_of(const ConfigReader& reader) {
  const nlohmann::json* const list = reader.find("architectures");
  std::optional<std::string> architecture;
  if (list != nullptr) {
    if (!list->is_array() || (!list->empty() && !list->front().is_string()))
      reader.refuse("architectures", "a list of names, or absent");
    if (!list->empty()) architecture = list->front().get<std::string>();
  }
  const std::string type = architecture ? reader.optional_string("model_type").value_or("")
                                        : reader.string("model_type");
  const auto known =
      std::find_if(detail::family_names.begin(), detail::family_names.end(), [&](const auto& name) {
        return architecture ? name.architecture == *architecture : name.model_type == type;
      });
  if (known != detail::family_names.end()) return known->family;
  constexpr const char* supported =
      "LLaDA (architecture LLaDAModelLM, under its own names or Llama's), MMaDA's text part "
      "(MMadaModelLM), LLaDA-V's (LlavaLLaDAModelLM) or Dream and its kin (DreamModel)";
  if (architecture)
    reader.refuse("architectures", base::text(supported, "; ", *architecture, " with model_type \"",
                                              type, "\" is another model, which is not supported"));
  reader.refuse("model_type", supported);
}

}  // namespace dllm_cache::inline v0_1::models
