// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <charconv>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dllm_cache/decoding/special_tokens.hpp"
#include "dllm_cache/models/checkpoint/config.hpp"
#include "dllm_cache/models/checkpoint/json_file.hpp"

namespace dllm_cache::inline v0_1::models {

/// Special tokens that the caller of load_model() knows better than the checkpoint.
struct TokenChoice {
  /// The mask token in place of the checkpoint's; in [0, vocabulary - 1].
  std::optional<std::int32_t> mask = {};
  /// More tokens that end a text, behind those of the checkpoint; each in [0, vocabulary - 1].
  std::vector<std::int32_t> end = {};
  bool end_alone = false;  ///< `end` stands for all: the checkpoint's are not read.
};

namespace detail {

/// Whether there is an entry of that name; links count even when they dangle, so that the message
/// is then about the file that was meant.
[[nodiscard]] inline bool has_entry(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::symlink_status(path, error).type() !=
         std::filesystem::file_type::not_found;
}

/// What models call their mask where no file names it: LLaDA, its kin and A2D, Fast-dLLM v2, SDAR,
/// Stable-DiffCoder.
inline constexpr std::array<const char*, 5> mask_texts = {"<|mdm_mask|>", "<|mask|>", "|<MASK>|",
                                                          "<MASK>", "<[MASK_TOKEN]>"};

/// Finds the special tokens of a checkpoint in its folder.
class SpecialIds {
 public:
  /// `config` reads config.json of the folder; tokens are below `vocabulary`.
  SpecialIds(const ConfigReader& config, Index vocabulary)
      : m_config(config), m_folder(config.file().parent_path()), m_vocabulary(vocabulary) {
    const std::filesystem::path path = m_folder / "generation_config.json";
    if (has_entry(path)) m_generation = read_json_object(path);
  }

  /// The choice's tokens and the checkpoint's; adds to `warnings` where two files disagree.
  ///
  /// Ends are those of generation_config.json, then those of config.json, as Python's generate()
  /// knows them: the first fills what follows a text. Where neither speaks of them the tokenizer's
  /// `eos_token` ends a text. The mask is the choice's, else that of config.json, of
  /// generation_config.json, or of the tokenizer's files.
  [[nodiscard]] SpecialTokens read(const TokenChoice& choice,
                                   std::vector<std::string>& warnings) const {
    SpecialTokens special;
    const ConfigReader generation = generation_reader();
    for (const ConfigReader* reader : {&generation, &m_config})
      for (const std::int32_t token : list(*reader, "eos_token_id"))
        if (!choice.end_alone) special.end_of_text.add(token);
    if (!choice.end_alone && generation.find("eos_token_id") == nullptr &&
        m_config.find("eos_token_id") == nullptr)
      if (const auto token = end_of_tokenizer()) special.end_of_text.add(*token);
    for (const std::int32_t token : choice.end) special.end_of_text.add(checked("end", token));
    special.mask = choice.mask ? checked("mask", *choice.mask) : find_mask(generation, warnings);
    return special;
  }

 private:
  [[nodiscard]] ConfigReader generation_reader() const {
    return {m_generation, m_folder / "generation_config.json"};
  }

  [[nodiscard]] std::int32_t checked(const char* what, std::int32_t token) const {
    if (token < 0 || token >= m_vocabulary)
      base::refuse_argument(what, "_token must be in [0, ", m_vocabulary - 1, "], got ", token);
    return token;
  }

  // An integer, a list of them, or none: -1 and null say so, too.
  [[nodiscard]] std::vector<std::int32_t> list(const ConfigReader& reader, const char* key) const {
    const nlohmann::json* const value = reader.find(key);
    if (value == nullptr) return {};
    std::vector<std::int32_t> tokens;
    const auto add = [&](const nlohmann::json& item) {
      constexpr std::int64_t too_large = std::int64_t{1} << 62;
      const bool fits = item.is_number_integer() &&
                        !(item.is_number_unsigned() && item.get<std::uint64_t>() > too_large);
      const std::int64_t token = fits ? item.get<std::int64_t>() : -2;
      if (token < -1 || token >= m_vocabulary)
        reader.refuse_file("key ", in_quotes(key), ": expected integers in [-1, ", m_vocabulary - 1,
                           "], got ", json_text(item));
      if (token >= 0) tokens.push_back(static_cast<std::int32_t>(token));
    };
    if (value->is_array())
      for (const nlohmann::json& item : *value) add(item);
    else
      add(*value);
    return tokens;
  }

  // One token, or none.
  [[nodiscard]] std::optional<std::int32_t> single(const ConfigReader& reader,
                                                   const char* key) const {
    const auto token = reader.optional_integer(key, -1, m_vocabulary - 1);
    return token && *token >= 0 ? std::optional(static_cast<std::int32_t>(*token)) : std::nullopt;
  }

  [[nodiscard]] std::int32_t find_mask(const ConfigReader& generation,
                                       std::vector<std::string>& warnings) const {
    const auto own = single(m_config, "mask_token_id");
    const auto other = single(generation, "mask_token_id");
    if (own && other && *own != *other)
      warnings.push_back(base::text(path_text(generation.file()), ": key \"mask_token_id\": ",
                                    *other, " is not used, config.json has ", *own));
    if (own) return *own;
    if (other) return *other;
    if (const auto token = mask_of_tokenizer()) return *token;
    m_config.refuse_file(
        "key \"mask_token_id\": expected an integer in [0, ", m_vocabulary - 1,
        "], got none, and generation_config.json and the tokenizer's files have none: give the "
        "token with --mask-token, or TokenChoice::mask of load_model()");
  }

  // Where config.json is silent the tokenizer may name the mask and number it.
  [[nodiscard]] std::optional<std::int32_t> mask_of_tokenizer() const {
    const nlohmann::json settings = read("tokenizer_config.json");
    std::vector<std::string> texts;
    if (auto text = token_text(settings, "mask_token")) texts.push_back(*text);
    if (auto text = token_text(read("special_tokens_map.json"), "mask_token"))
      texts.push_back(*text);
    if (texts.empty()) texts.assign(mask_texts.begin(), mask_texts.end());
    return find_text(settings, texts, "mask");
  }

  // Where no configuration says what ends a text the tokenizer may.
  [[nodiscard]] std::optional<std::int32_t> end_of_tokenizer() const {
    const nlohmann::json settings = read("tokenizer_config.json");
    const auto text = token_text(settings, "eos_token");
    return text ? find_text(settings, {*text}, "end") : std::nullopt;
  }

  // The token of the first text that a file numbers; one file after the other.
  [[nodiscard]] std::optional<std::int32_t> find_text(const nlohmann::json& settings,
                                                      const std::vector<std::string>& texts,
                                                      const char* what) const {
    const auto found = [&](const nlohmann::json& file,
                           const auto& id_in) -> std::optional<std::int32_t> {
      for (const std::string& text : texts)
        if (const auto id = id_in(file, text)) return checked_id(*id, text, what);
      return std::nullopt;
    };
    if (const auto token = found(settings, id_in_decoder)) return token;
    if (const auto token = found(read("added_tokens.json"), id_in_map)) return token;
    return found(read("tokenizer.json"), id_in_tokenizer);  // large: last
  }

  [[nodiscard]] nlohmann::json read(const char* name) const {
    const std::filesystem::path path = m_folder / name;
    return has_entry(path) ? read_json_object(path) : nlohmann::json::object();
  }

  // A token is written as its text or as an object that has it.
  static std::optional<std::string> token_text(const nlohmann::json& object, const char* key) {
    const auto found = object.find(key);
    if (found == object.end()) return std::nullopt;
    if (found->is_string()) return found->get<std::string>();
    if (found->is_object()) return token_text(*found, "content");
    return std::nullopt;
  }

  static std::optional<std::int64_t> id_in_decoder(const nlohmann::json& settings,
                                                   const std::string& text) {
    const auto decoder = settings.find("added_tokens_decoder");
    if (decoder == settings.end() || !decoder->is_object()) return std::nullopt;
    for (const auto& [number, entry] : decoder->items()) {
      std::int64_t id = 0;
      const char* const end = number.data() + number.size();
      const auto [stop, error] = std::from_chars(number.data(), end, id);
      if (entry.is_object() && token_text(entry, "content") == text && stop == end &&
          error == std::errc())
        return id;
    }
    return std::nullopt;
  }

  static std::optional<std::int64_t> id_in_map(const nlohmann::json& added,
                                               const std::string& text) {
    const auto found = added.find(text);
    if (found == added.end() || !found->is_number_integer()) return std::nullopt;
    return found->get<std::int64_t>();
  }

  static std::optional<std::int64_t> id_in_tokenizer(const nlohmann::json& tokenizer,
                                                     const std::string& text) {
    const auto added = tokenizer.find("added_tokens");
    if (added == tokenizer.end() || !added->is_array()) return std::nullopt;
    for (const nlohmann::json& entry : *added)
      if (entry.is_object() && token_text(entry, "content") == text) return id_in_map(entry, "id");
    return std::nullopt;
  }

  [[nodiscard]] std::int32_t checked_id(std::int64_t id, const std::string& text,
                                        const char* what) const {
    if (id < 0 || id >= m_vocabulary)
      refuse_file(m_folder, "the tokenizer's ", what, " token ", in_quotes(text),
                  ": expected an id in [0, ", m_vocabulary - 1, "], got ", id);
    return static_cast<std::int32_t>(id);
  }

  const ConfigReader& m_config;
  std::filesystem::path m_folder;
  Index m_vocabulary;
  nlohmann::json m_generation = nlohmann::json::object();
};

}  // namespace detail

}  // namespace dllm_cache::inline v0_1::models
