// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "dllm_cache/base/error.hpp"
#include "dllm_cache/base/matrix_view.hpp"
#include "dllm_cache/models/checkpoint/file_error.hpp"
#include "dllm_cache/models/checkpoint/parse_json.hpp"

namespace dllm_cache::inline v0_1::models {

/// Reads typed values out of a model's config.json, of which it holds a reference.
///
/// An optional value is none where its key is absent or null, because Python writes null for None.
/// Everything throws std::runtime_error naming file, key, what is legal and what was found.
class ConfigReader {
 public:
  /// The object `config`, which was read from `file`.
  ConfigReader(const nlohmann::json& config, std::filesystem::path file)
      : m_config(config), m_file(std::move(file)) {}

  /// The value of a key, or nullptr where it is absent or null.
  [[nodiscard]] const nlohmann::json* find(std::string_view key) const {
    if (!m_config.is_object())
      detail::refuse_file(m_file, "key ", detail::in_quotes(key),
                          ": expected it in a JSON object, got ", detail::json_text(m_config));
    const auto found = m_config.find(key);
    return found == m_config.end() || found->is_null() ? nullptr : &*found;
  }

  /// Refuses the value of a key, or its absence.
  [[noreturn]] void refuse(std::string_view key, std::string_view expected) const {
    const nlohmann::json* const value = find(key);
    detail::refuse_file(m_file, "key ", detail::in_quotes(key), ": expected ", expected, ", got ",
                        value == nullptr ? "none" : detail::json_text(*value));
  }

  /// Refuses the file for the joined parts, which name the keys.
  template <class... Parts>
  [[noreturn]] void refuse_file(const Parts&... parts) const {
    detail::refuse_file(m_file, parts...);
  }

  /// The object that is read.
  [[nodiscard]] const nlohmann::json& object() const { return m_config; }
  /// The file that messages name.
  [[nodiscard]] const std::filesystem::path& file() const { return m_file; }

  /// The integer `key` if it is there; legal: [min, max]. 2.0 is not an integer.
  [[nodiscard]] std::optional<Index> optional_integer(std::string_view key, Index min,
                                                      Index max) const {
    const nlohmann::json* const value = find(key);
    if (value == nullptr) return std::nullopt;
    constexpr auto largest = static_cast<std::uint64_t>(std::numeric_limits<Index>::max());
    const bool fits = value->is_number_integer() &&
                      !(value->is_number_unsigned() && value->get<std::uint64_t>() > largest);
    const Index integer = fits ? value->get<Index>() : 0;
    if (!fits || integer < min || integer > max) refuse(key, integer_range(min, max));
    return integer;
  }
  /// The same of a key that must be there.
  [[nodiscard]] Index integer(std::string_view key, Index min, Index max) const {
    const std::optional<Index> value = optional_integer(key, min, max);
    if (!value) refuse(key, integer_range(min, max));
    return *value;
  }

  /// The number `key` if it is there, written as an integer or not; legal: [min, max].
  [[nodiscard]] std::optional<double> optional_number(std::string_view key, double min,
                                                      double max) const {
    const nlohmann::json* const value = find(key);
    if (value == nullptr) return std::nullopt;
    const double number =
        value->is_number() ? value->get<double>() : std::numeric_limits<double>::quiet_NaN();
    // Written so that NaN, in the value or in the bounds, is refused.
    if (!(number >= min && number <= max))
      refuse(key, base::text("a number in [", min, ", ", max, "]"));
    return number;
  }

  /// The truth value `key` if it is there; 0, 1 and strings are refused.
  [[nodiscard]] std::optional<bool> optional_bool(std::string_view key) const {
    const nlohmann::json* const value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_boolean()) refuse(key, "true or false");
    return value->get<bool>();
  }

  /// The string `key` if it is there.
  [[nodiscard]] std::optional<std::string> optional_string(std::string_view key) const {
    const nlohmann::json* const value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_string()) refuse(key, "a string");
    return value->get<std::string>();
  }
  /// The string `key`, which must be there.
  [[nodiscard]] std::string string(std::string_view key) const {
    std::optional<std::string> value = optional_string(key);
    if (!value) refuse(key, "a string");
    return *std::move(value);
  }

 private:
  [[nodiscard]] static std::string integer_range(Index min, Index max) {
    return base::text("an integer in [", min, ", ", max, "]");
  }

  const nlohmann::json& m_config;
  std::filesystem::path m_file;
};

}  // namespace dllm_cache::inline v0_1::models
