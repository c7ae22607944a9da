// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cctype>
#include <filesystem>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "dllm_cache/models/checkpoint/file_error.hpp"
#include "dllm_cache/models/checkpoint/parse_json.hpp"
#include "dllm_cache/models/checkpoint/tensor.hpp"

// Quantised checkpoints are not read. What recognises them serves the message alone: without it the
// first packed weight would be called misshapen or missing, as if the file were damaged.
namespace dllm_cache::inline v0_1::models {

/// Whether weights of that type are codes of a quantised checkpoint: whole numbers of up to 32 bits
/// (which may hold several codes each) and floats of 8 bits.
[[nodiscard]] constexpr bool is_quantised_type(TensorType type) {
  switch (type) {
    case TensorType::F8_E5M2:
    case TensorType::F8_E4M3:
    case TensorType::F8_E8M0:
    case TensorType::F8_E4M3FNUZ:
    case TensorType::F8_E5M2FNUZ:
    case TensorType::I32:
    case TensorType::I16:
    case TensorType::I8:
    case TensorType::U32:
    case TensorType::U16:
    case TensorType::U8:
      return true;
    default:
      return false;
  }
}

namespace detail {

/// Refuses a quantised checkpoint; `how` says by what it is known, for example "gptq, 4 bits".
[[noreturn]] inline void refuse_quantised(const std::filesystem::path& path, std::string_view how) {
  refuse_file(
      path, "the checkpoint is quantised (", how,
      "): only weights of type F32, F16 and BF16 are read, as in the checkpoint that it was "
      "made from");
}

/// Whether the name of an element type that TensorType lacks is one of at most 8 bits, as F4,
/// F6_E2M3, F8_E4M3FN, I4 or NF4: its first number says so.
[[nodiscard]] inline bool is_narrow_type(std::string_view name) {
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  const auto upper = [](char c) { return c >= 'A' && c <= 'Z'; };
  const auto first = std::find_if_not(name.begin(), name.end(), upper);
  const auto last = std::find_if_not(first, name.end(), digit);
  return first != name.begin() && last - first == 1 && *first >= '1' && *first <= '8';
}

/// Describes what config.json says about the quantisation of the weights.
class ConfigQuantisation {
 public:
  /// The words of `config`, an object, or none where it says nothing or that nothing is quantised:
  /// no key, null, false, an empty object, "none" or a loader's switches that are all off.
  [[nodiscard]] static std::optional<std::string> describe(const nlohmann::json& config) {
    for (const char* key : {"quantization_config", "compression_config", "quantization"}) {
      const auto found = config.find(key);
      if (found == config.end() || says_nothing(*found)) continue;
      std::string words = ConfigQuantisation(*found).words();
      // MLX writes the same object under two keys, neither with a method.
      if (config.contains("quantization") && !has_method(*found))
        words = words.empty() ? "MLX" : "MLX, " + words;
      return words.empty() ? std::string(key) : std::string(key) + ": " + words;
    }
    return std::nullopt;
  }

 private:
  using Keys = std::initializer_list<const char*>;
  static constexpr Keys methods = {"quant_method", "quant_algo", "method", "quant_library"};

  explicit ConfigQuantisation(const nlohmann::json& said) : m_said(said) {}

  [[nodiscard]] static const nlohmann::json* find(const nlohmann::json& in, Keys keys) {
    if (!in.is_object()) return nullptr;
    for (const char* key : keys)
      if (const auto found = in.find(key); found != in.end() && !found->is_null()) return &*found;
    return nullptr;
  }

  [[nodiscard]] static bool is_true(const nlohmann::json& in, Keys keys) {
    return std::any_of(keys.begin(), keys.end(), [&](const char* key) {
      const nlohmann::json* const value = find(in, {key});
      return value != nullptr && value->is_boolean() && value->get<bool>();
    });
  }

  [[nodiscard]] static bool has_method(const nlohmann::json& said) {
    return said.is_string() || find(said, methods) != nullptr;
  }

  // Null, false, 0, "", "none", {} and [].
  [[nodiscard]] static bool is_none(const nlohmann::json& value) {
    if (value.is_number()) return value.get<double>() == 0;
    if (value.is_string()) {
      std::string text = value.get<std::string>();
      for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      return text.empty() || text == "none" || text == "null";
    }
    return value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
           (value.is_structured() && value.empty());
  }

  [[nodiscard]] static bool says_nothing(const nlohmann::json& said) {
    if (!said.is_object()) return is_none(said);
    if (std::all_of(said.begin(), said.end(), is_none)) return true;
    if (const nlohmann::json* const method = find(said, methods)) {
      if (is_none(*method)) return true;
      if (*method != "bitsandbytes") return false;
    }
    // The switches of bitsandbytes: the other keys have values even when both are off.
    const bool switched =
        find(said, {"load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit"}) != nullptr;
    return switched &&
           !is_true(said, {"load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit"});
  }

  [[nodiscard]] std::string words() {
    if (!m_said.is_object()) {
      add(m_said);
      return m_words;
    }
    add(find(m_said, methods));
    const nlohmann::json* const weights = weight_scheme();
    if (is_true(m_said, {"load_in_4bit", "_load_in_4bit"})) {
      add_word("4 bits");
      add(find(m_said,
               {"bnb_4bit_quant_type"}));  // written for 8 bits, too, where it means nothing
    } else if (is_true(m_said, {"load_in_8bit", "_load_in_8bit"})) {
      add_word("8 bits");
    } else {
      const Keys bits = {"bits", "w_bit", "wbits", "nbits", "num_bits", "weight_bits"};
      const nlohmann::json* found = find(m_said, bits);
      if (found == nullptr && weights != nullptr) found = find(*weights, bits);
      if (found != nullptr) add_word(json_text(*found) + " bits");
    }
    add(find(m_said, {"quant_type", "fmt", "weights", "mode"}));
    if (weights != nullptr) add(find(*weights, {"type"}));
    add(find(m_said, {"format"}));
    const nlohmann::json* group = find(m_said, {"group_size", "q_group_size"});
    if (group == nullptr && weights != nullptr) group = find(*weights, {"group_size"});
    if (group != nullptr && group->is_number()) add_word("groups of " + json_text(*group));
    return m_words;
  }

  // How compressed-tensors says what the weights of its first group are; other libraries nest the
  // same one level down.
  [[nodiscard]] const nlohmann::json* weight_scheme() const {
    const nlohmann::json* groups = find(m_said, {"config_groups"});
    const nlohmann::json* const inner = find(m_said, {"quantization_config", "weights_config"});
    if (groups == nullptr && inner != nullptr) groups = find(*inner, {"config_groups"});
    if (groups == nullptr || !groups->is_object()) return inner;
    for (const nlohmann::json& group : *groups)
      if (const nlohmann::json* const weights = find(group, {"weights"})) return weights;
    return inner;
  }

  void add_word(const std::string& word) { m_words += (m_words.empty() ? "" : ", ") + word; }
  void add(const nlohmann::json* value) {
    if (value != nullptr) add(*value);
  }
  // Words without their quotes, unless they are odd. Of an object the name of its class, if torchao
  // wrote one; others say nothing on one line.
  void add(const nlohmann::json& value) {
    if (value.is_object()) {
      const nlohmann::json* const inner = find(value, {"default"});
      add(find(inner == nullptr ? value : *inner, {"_type"}));
    }
    if (value.is_structured()) return;
    const std::string text = json_text(value);
    const bool plain = value.is_string() && text == "\"" + value.get<std::string>() + "\"";
    add_word(plain ? value.get<std::string>() : text);
  }

  const nlohmann::json& m_said;
  std::string m_words;
};

/// What the name of a tensor beside the packed weights tells.
struct Companion {
  std::string_view ending;  ///< What its name ends with, after a '.' or alone.
  std::string_view what;
};

// No layer of a plain checkpoint has a tensor of such a name.
inline constexpr std::array<Companion, 25> companions = {{
    {"qweight", "as of GPTQ or AWQ"},
    {"qzeros", "as of GPTQ or AWQ"},
    {"weight.absmax", "as of bitsandbytes, 4 bits"},
    {"weight.quant_map", "as of bitsandbytes, 4 bits"},
    {"weight.nested_absmax", "as of bitsandbytes, 4 bits"},
    {"weight.quant_state.bitsandbytes__nf4", "as of bitsandbytes, 4 bits nf4"},
    {"weight.quant_state.bitsandbytes__fp4", "as of bitsandbytes, 4 bits fp4"},
    {"absmax", "as of bitsandbytes, 4 bits"},
    {"SCB", "as of bitsandbytes, 8 bits"},
    {"weight_format", "as of bitsandbytes, 8 bits"},
    {"weight_packed", "as of compressed-tensors"},
    {"weight_zero_point", "as of compressed-tensors"},
    {"weight_scale", "a scale of its weight"},
    {"weight_scales", "a scale of its weight"},
    {"weight_scale_2", "a scale of its weight"},
    {"weight_scale_inv", "a scale of its weight, as of fp8"},
    {"scale_weight", "a scale of its weight, as of fp8"},
    {"weight._data", "as of quanto"},
    {"weight._scale", "as of quanto"},
    {"weight_qdata", "as of torchao"},
    {"weight:qdata", "as of torchao"},
    {"W_q", "as of HQQ"},
    {"codebooks", "as of AQLM"},
    {"Qidxs", "as of QuIP#"},
    {"trellis", "as of EXL3"},
}};

/// What the name of a tensor tells about quantised weights beside it, or none.
[[nodiscard]] inline std::optional<std::string_view> quantisation_of_name(std::string_view name) {
  for (const auto& [ending, what] : companions)
    if (name.ends_with(ending) &&
        (name.size() == ending.size() || name[name.size() - ending.size() - 1] == '.'))
      return what;
  return std::nullopt;
}

}  // namespace detail

}  // namespace dllm_cache::inline v0_1::models
