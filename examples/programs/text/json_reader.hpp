// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dllm_cache/base/matrix_view.hpp"
#include "dllm_cache/models/checkpoint/parse_json.hpp"
#include "programs/text/errors.hpp"

namespace programs {

using dllm_cache::Index;

/// The JSON object in a text that nests at most `deepest` levels, in the strict sense of
/// dllm_cache::models::parse_json; throws BadRequest naming `where` and saying what the object
/// should be.
[[nodiscard]] inline nlohmann::json parse_object(const std::string& text, const std::string& where,
                                                 const std::string& what, int deepest = 8) {
  try {
    nlohmann::json json =
        dllm_cache::models::parse_json(text, where, static_cast<std::size_t>(deepest));
    if (!json.is_object()) throw BadRequest(where + ": " + what + " must be a JSON object");
    return json;
  } catch (const dllm_cache::models::JsonError& error) {
    throw BadRequest(error.what());
  }
}

/// Reads typed values out of one JSON object; everything throws BadRequest naming `where`, the key,
/// what is legal and what was found.
class JsonReader {
 public:
  JsonReader(const nlohmann::json& object, std::string where)
      : m_object(object), m_where(std::move(where)) {}

  /// Refuses the value of a key.
  [[noreturn]] void refuse(std::string_view key, std::string_view legal,
                           const nlohmann::json& got) const {
    std::string text = got.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
    if (text.size() > 60) text = text.substr(0, 57) + "...";
    throw BadRequest(m_where + ": " + std::string(key) + " must be " + std::string(legal) +
                     ", got " + text);
  }

  /// Reads the value of a key where it is there; null counts as absent.
  void read(const char* key, std::optional<Index>& to) const {
    if (const nlohmann::json* value = find(key)) to = integer(key, *value);
  }
  void read(const char* key, std::optional<std::uint64_t>& to) const {
    const nlohmann::json* value = find(key);
    if (value == nullptr) return;
    if (!value->is_number_unsigned()) refuse(key, "an integer in [0, 2^64)", *value);
    to = value->get<std::uint64_t>();
  }
  void read(const char* key, std::optional<double>& to) const {
    const nlohmann::json* value = find(key);
    if (value == nullptr) return;
    if (!value->is_number()) refuse(key, "a number", *value);
    to = value->get<double>();
  }
  void read(const char* key, std::optional<bool>& to) const {
    const nlohmann::json* value = find(key);
    if (value == nullptr) return;
    if (!value->is_boolean()) refuse(key, "true or false", *value);
    to = value->get<bool>();
  }
  void read(const char* key, std::optional<std::string>& to) const {
    const nlohmann::json* value = find(key);
    if (value == nullptr) return;
    if (!value->is_string()) refuse(key, "a string", *value);
    to = value->get<std::string>();
  }

  /// The value of a key; null counts as absent.
  [[nodiscard]] const nlohmann::json* find(const char* key) const {
    const auto found = m_object.find(key);
    return found == m_object.end() || found->is_null() ? nullptr : &*found;
  }

  /// Token ids of a list under a key; `legal` says what the key should hold.
  [[nodiscard]] std::vector<std::int32_t> token_ids(const char* key, const nlohmann::json& list,
                                                    std::string_view legal) const {
    if (!list.is_array()) refuse(key, legal, list);
    std::vector<std::int32_t> ids;
    ids.reserve(list.size());
    for (const nlohmann::json& id : list) {
      constexpr auto largest = static_cast<std::uint64_t>(std::numeric_limits<std::int32_t>::max());
      if (!id.is_number_unsigned() || id.get<std::uint64_t>() > largest) refuse(key, legal, id);
      ids.push_back(id.get<std::int32_t>());
    }
    return ids;
  }

  /// Refuses keys that are not known.
  template <std::size_t N>
  void refuse_others(const std::array<std::string_view, N>& known) const {
    for (const auto& [key, value] : m_object.items())
      if (std::find(known.begin(), known.end(), key) == known.end())
        throw BadRequest(m_where + ": unknown key \"" + key + "\"");
  }

 private:
  [[nodiscard]] Index integer(const char* key, const nlohmann::json& value) const {
    const bool fits = value.is_number_integer() &&
                      !(value.is_number_unsigned() &&
                        value.get<std::uint64_t>() >
                            static_cast<std::uint64_t>(std::numeric_limits<Index>::max()));
    if (!fits) refuse(key, "an integer", value);
    return value.get<Index>();
  }

  const nlohmann::json& m_object;
  std::string m_where;
};

}  // namespace programs
