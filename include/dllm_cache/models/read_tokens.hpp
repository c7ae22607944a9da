// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "dllm_cache/decoding/special_tokens.hpp"
#include "dllm_cache/models/checkpoint/checkpoint_folder.hpp"
#include "dllm_cache/models/checkpoint/config.hpp"
#include "dllm_cache/models/checkpoint/json_file.hpp"

namespace dllm_cache::inline v0_1::models {

/// Tokens that a checkpoint does not name, or not all of them.
struct TokenChoice {
  std::optional<std::int32_t> mask = {};  ///< In place of the checkpoint's.
  std::vector<std::int32_t> ends = {};    ///< Behind those of the checkpoint.
};

namespace detail {

/// An optional JSON file of a checkpoint folder; an empty object where there is none.
[[nodiscard]] inline nlohmann::json read_optional_json(const std::filesystem::path& file) {
  std::error_code error;
  if (!std::filesystem::exists(file, error)) return nlohmann::json::object();
  return read_json_object(file);
}

/// The text of a special token, which stands in files as text or in an object.
[[nodiscard]] inline std::string token_text(const nlohmann::json& value) {
  const nlohmann::json& text =
      value.is_object() && value.contains("content") ? value.at("content") : value;
  return text.is_string() ? text.get<std::string>() : std::string();
}

/// The mask token's id where the tokenizer's files name a mask token and say its id.
[[nodiscard]] inline std::optional<Index> mask_of_tokenizer(const std::filesystem::path& folder) {
  const nlohmann::json config = read_optional_json(folder / "tokenizer_config.json");
  std::string mask = token_text(config.value("mask_token", nlohmann::json()));
  if (mask.empty())
    mask = token_text(read_optional_json(folder / "special_tokens_map.json")
                          .value("mask_token", nlohmann::json()));
  if (mask.empty()) return std::nullopt;
  const nlohmann::json added = config.value("added_tokens_decoder", nlohmann::json());
  if (added.is_object())
    for (const auto& [id, token] : added.items())
      if (token_text(token) == mask)
        if (const auto number = parse_option<Index>(id, OptionRange<Index>{})) return number;
  const nlohmann::json ids = read_optional_json(folder / "added_tokens.json");
  const auto found = ids.find(mask);
  if (found != ids.end() && found->is_number_integer()) return found->get<Index>();
  return std::nullopt;
}

/// Adds what `eos_token_id` says: a token, a list of them, or -1 and null for none.
inline void read_end_tokens(const ConfigReader& reader, Index vocabulary, EndTokens& to) {
  constexpr const char* key = "eos_token_id";
  const nlohmann::json* const value = reader.find(key);
  if (value == nullptr) return;
  const auto add = [&](const nlohmann::json& one) {
    const bool fits = one.is_number_integer() && one.get<Index>() >= -1 &&
                      one.get<Index>() < vocabulary &&
                      !(one.is_number_unsigned() &&
                        one.get<std::uint64_t>() >= static_cast<std::uint64_t>(vocabulary));
    if (!fits)
      reader.refuse(key, base::text("an integer in [0, ", vocabulary - 1,
                                    "], -1 for none, or a list of these"));
    to.add(static_cast<std::int32_t>(one.get<Index>()));
  };
  if (value->is_array())
    for (const nlohmann::json& one : *value) add(one);
  else
    add(*value);
}

/// Mask and end tokens of a checkpoint: from config.json and generation_config.json together, the
/// mask also from the tokenizer's files, and what was chosen on top.
///
/// Throws std::runtime_error naming file and key, and std::invalid_argument for a chosen token
/// outside [0, vocabulary).
[[nodiscard]] inline SpecialTokens special_tokens(const CheckpointFolder& folder, Index vocabulary,
                                                  const TokenChoice& choice) {
  const auto check = [&](const char* what, std::int32_t token) {
    if (token < 0 || token >= vocabulary)
      base::refuse_argument(what, " must be in [0, ", vocabulary, "), got ", token);
  };
  const ConfigReader config = folder.config_reader();
  const std::filesystem::path file = folder.path() / "generation_config.json";
  const nlohmann::json generation_json = read_optional_json(file);
  const ConfigReader generation(generation_json, file);
  SpecialTokens tokens;
  if (choice.mask) {
    check("mask_token", *choice.mask);
    tokens.mask = *choice.mask;
  } else {
    constexpr const char* key = "mask_token_id";
    std::optional<Index> mask = config.optional_integer(key, 0, vocabulary - 1);
    if (!mask) mask = generation.optional_integer(key, 0, vocabulary - 1);
    if (!mask) mask = mask_of_tokenizer(folder.path());
    if (!mask || *mask < 0 || *mask >= vocabulary)
      config.refuse(key, base::text("an integer in [0, ", vocabulary - 1,
                                    "], which no file of the checkpoint names; say it with "
                                    "--mask-token (mask_token in a request, TokenChoice in C++)"));
    tokens.mask = static_cast<std::int32_t>(*mask);
  }
  read_end_tokens(config, vocabulary, tokens.end_of_text);
  read_end_tokens(generation, vocabulary, tokens.end_of_text);
  for (const std::int32_t token : choice.ends) {
    check("end_token", token);
    tokens.end_of_text.add(token);
  }
  return tokens;
}

}  // namespace detail
}  // namespace dllm_cache::inline v0_1::models
