// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "dllm_cache/models/checkpoint/checkpoint_folder.hpp"

namespace dllm_cache::inline v0_1::models::detail {

/// Keys of config.json under which quantisers say what they did.
inline constexpr std::array<std::string_view, 3> quantisation_keys = {
    "quantization_config", "quantization", "compression_config"};

/// What names of tensors end with that only quantised checkpoints have.
inline constexpr std::array<std::string_view, 14> quantised_endings = {
    ".qweight",       ".qzeros",       ".scales",         ".weight_scale", ".weight_scale_inv",
    ".weight_packed", ".weight_shape", ".absmax",         ".quant_map",    ".nested_absmax",
    ".SCB",           ".g_idx",        ".weight_scale_2", ".zero_point"};

/// Whether weights of this type can only be quantised ones.
[[nodiscard]] constexpr bool is_quantised(TensorType type) {
  return !is_float(type) && type != TensorType::F64 && type != TensorType::C64;
}

/// `quant_method "gptq", bits 4`: what an object of quantisation_keys says, in one line.
[[nodiscard]] inline std::string quantisation_text(const nlohmann::json& settings) {
  std::string text;
  for (const char* key : {"quant_method", "quant_type", "quant_algo", "format", "fmt", "mode",
                          "bits", "w_bit", "group_size", "bnb_4bit_quant_type"}) {
    const auto found = settings.find(key);
    if (found != settings.end() && !found->is_null() && !found->is_structured())
      text += (text.empty() ? "" : ", ") + std::string(key) + " " + json_text(*found);
  }
  for (const char* key : {"load_in_4bit", "load_in_8bit"})
    if (const auto found = settings.find(key); found != settings.end() && *found == true)
      text += (text.empty() ? "" : ", ") + std::string(key);
  return text;
}

inline constexpr std::string_view read_types = ", weights of F32, F16 and BF16 are read";

/// Refuses a checkpoint whose config.json says that it is quantised.
inline void refuse_quantised(const ConfigReader& reader) {
  for (const std::string_view key : quantisation_keys) {
    const nlohmann::json* const settings = reader.find(key);
    if (settings == nullptr || *settings == false ||
        (settings->is_structured() && settings->empty()))
      continue;
    const std::string how =
        settings->is_object() ? quantisation_text(*settings) : json_text(*settings);
    reader.refuse_file("the checkpoint is quantised (key ", in_quotes(key),
                       how.empty() ? "" : ": " + how, ")", read_types);
  }
}

/// Refuses a checkpoint whose tensors say that it is quantised, by their names or types.
inline void refuse_quantised(const CheckpointFolder& folder) {
  folder.for_each([&](const Tensor& tensor) {
    const std::string_view name = tensor.name;
    for (const std::string_view ending : quantised_endings)
      if (name.ends_with(ending))
        refuse_tensor(folder.path(), name, "the checkpoint is quantised, as this name says",
                      read_types);
    if (name.ends_with(".weight") && is_quantised(tensor.type))
      refuse_tensor(folder.path(), name, "the checkpoint is quantised, this weight is of type ",
                    name_of(tensor.type), read_types);
  });
}

}  // namespace dllm_cache::inline v0_1::models::detail
