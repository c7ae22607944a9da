// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>

#include "dllm_cache/models/checkpoint/file_error.hpp"
#include "dllm_cache/models/checkpoint/json_file.hpp"

// Typed readers of a model's config.json. Each exists twice: `config_integer` wants the key,
// `optional_config_integer` gives none where it is absent. A null counts as absent, because
// Python writes null for None. All throw std::runtime_error naming file, key, what is legal and
// what was found; `file` serves for these messages only.

namespace dllm_cache::inline v0_1::models {

namespace detail {

// The value of `key`, or nullptr where it is absent or null.
inline const nlohmann::json* find_config(const nlohmann::json& config,
                                         const std::filesystem::path& file, std::string_view key) {
  if (!config.is_object()) {
    refuse_file(
        file, "key " + in_quotes(key) + ": expected it in a JSON object, got " + json_text(config));
  }
  const auto found = config.find(key);
  return found == config.end() || found->is_null() ? nullptr : &*found;
}

[[noreturn]] inline void refuse_config(const std::filesystem::path& file, std::string_view key,
                                       const std::string& expected, const nlohmann::json* value) {
  refuse_file(file, "key " + in_quotes(key) + ": expected " + expected + ", got " +
                        (value == nullptr ? "none" : json_text(*value)));
}

inline std::string integer_range(std::int64_t min, std::int64_t max) {
  return "an integer in [" + std::to_string(min) + ", " + std::to_string(max) + "]";
}

inline std::string number_range(double min, double max) {
  std::ostringstream text;
  text.precision(std::numeric_limits<double>::digits10);
  text << "a number in [" << min << ", " << max << "]";
  return text.str();
}

}  // namespace detail

/// The integer `key` if it is there; legal: [min, max]. 2.0 is not an integer.
inline std::optional<std::int64_t> optional_config_integer(const nlohmann::json& config,
                                                           const std::filesystem::path& file,
                                                           std::string_view key, std::int64_t min,
                                                           std::int64_t max) {
  const nlohmann::json* const value = detail::find_config(config, file, key);
  if (value == nullptr) return std::nullopt;
  constexpr auto largest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  const bool fits = value->is_number_integer() &&
                    !(value->is_number_unsigned() && value->get<std::uint64_t>() > largest);
  const std::int64_t integer = fits ? value->get<std::int64_t>() : 0;
  if (!fits || integer < min || integer > max) {
    detail::refuse_config(file, key, detail::integer_range(min, max), value);
  }
  return integer;
}

/// The integer `key`, which must be there; legal: [min, max]. 2.0 is not an integer.
inline std::int64_t config_integer(const nlohmann::json& config, const std::filesystem::path& file,
                                   std::string_view key, std::int64_t min, std::int64_t max) {
  const auto value = optional_config_integer(config, file, key, min, max);
  if (!value) detail::refuse_config(file, key, detail::integer_range(min, max), nullptr);
  return *value;
}

/// The number `key` if it is there, written as an integer or not; legal: [min, max].
inline std::optional<double> optional_config_number(const nlohmann::json& config,
                                                    const std::filesystem::path& file,
                                                    std::string_view key, double min, double max) {
  const nlohmann::json* const value = detail::find_config(config, file, key);
  if (value == nullptr) return std::nullopt;
  const double number =
      value->is_number() ? value->get<double>() : std::numeric_limits<double>::quiet_NaN();
  // Written so that NaN, in the value or in the bounds, is refused.
  if (!(number >= min && number <= max)) {
    detail::refuse_config(file, key, detail::number_range(min, max), value);
  }
  return number;
}

/// The number `key`, which must be there, written as an integer or not; legal: [min, max].
inline double config_number(const nlohmann::json& config, const std::filesystem::path& file,
                            std::string_view key, double min, double max) {
  const auto value = optional_config_number(config, file, key, min, max);
  if (!value) detail::refuse_config(file, key, detail::number_range(min, max), nullptr);
  return *value;
}

/// The truth value `key` if it is there; 0, 1 and strings are refused.
inline std::optional<bool> optional_config_bool(const nlohmann::json& config,
                                                const std::filesystem::path& file,
                                                std::string_view key) {
  const nlohmann::json* const value = detail::find_config(config, file, key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) detail::refuse_config(file, key, "true or false", value);
  return value->get<bool>();
}

/// The truth value `key`, which must be there; 0, 1 and strings are refused.
inline bool config_bool(const nlohmann::json& config, const std::filesystem::path& file,
                        std::string_view key) {
  const auto value = optional_config_bool(config, file, key);
  if (!value) detail::refuse_config(file, key, "true or false", nullptr);
  return *value;
}

/// The string `key` if it is there.
inline std::optional<std::string> optional_config_string(const nlohmann::json& config,
                                                         const std::filesystem::path& file,
                                                         std::string_view key) {
  const nlohmann::json* const value = detail::find_config(config, file, key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) detail::refuse_config(file, key, "a string", value);
  return value->get<std::string>();
}

/// The string `key`, which must be there.
inline std::string config_string(const nlohmann::json& config, const std::filesystem::path& file,
                                 std::string_view key) {
  auto value = optional_config_string(config, file, key);
  if (!value) detail::refuse_config(file, key, "a string", nullptr);
  return *std::move(value);
}

}  // namespace dllm_cache::inline v0_1::models
