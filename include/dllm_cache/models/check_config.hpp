// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dllm_cache/models/checkpoint/config.hpp"
#include "dllm_cache/models/config_keys.hpp"

namespace dllm_cache::inline v0_1::models {

namespace detail {

/// Whether names of the table have this key: separated by spaces, one with '*' is a beginning.
[[nodiscard]] inline bool has_name(std::string_view names, std::string_view key) {
  std::string_view rest = names;
  while (!rest.empty()) {
    const std::string_view name = rest.substr(0, rest.find(' '));
    rest.remove_prefix(std::min(rest.size(), name.size() + 1));
    if (name == key || (name.ends_with('*') && key.starts_with(name.substr(0, name.size() - 1))))
      return true;
  }
  return false;
}

/// The row of a key under these names, or nullptr. Whole names come before beginnings.
[[nodiscard]] inline const ConfigKeys* find_key(std::string_view key, Naming naming) {
  for (const ConfigKeys& row : config_keys)
    if ((row.naming == Naming::All || row.naming == naming) && has_name(row.names, key))
      return &row;
  return nullptr;
}

/// Refuses a restricted key whose value is none of the allowed ones; a list (`layer_types`) is
/// allowed where all its items are.
inline void check_restricted(const ConfigReader& reader, std::string_view key,
                             const ConfigKeys& row) {
  const nlohmann::json* const value = reader.find(key);
  if (value == nullptr) return;
  const nlohmann::json allowed = nlohmann::json::parse(row.allowed);
  const auto is_allowed = [&](const nlohmann::json& one) {
    return std::find(allowed.begin(), allowed.end(), one) != allowed.end();
  };
  if (is_allowed(*value) ||
      (value->is_array() && std::all_of(value->begin(), value->end(), is_allowed)))
    return;
  std::string expected;
  for (const nlohmann::json& one : allowed) expected += json_text(one) + ", ";
  // A list of many items is shown by the first that is not computed.
  const auto item = value->is_array() && !value->empty()
                        ? std::find_if_not(value->begin(), value->end(), is_allowed)
                        : value->end();
  reader.refuse_file("key ", in_quotes(key), ": expected ", expected, "null or absent, got ",
                     item != value->end() ? "a list with " + json_text(*item) : json_text(*value),
                     ": ", row.needed, " would be needed");
}

}  // namespace detail

/// Checks all keys of config.json against the table: config_keys. Gives a warning that names those
/// that it does not have, or none. `computed` are further keys, separated by spaces, that this kind
/// of model reads whatever the table says of them.
///
/// Throws std::runtime_error naming file, key and value of a restricted key.
[[nodiscard]] inline std::optional<std::string> check_keys(const ConfigReader& reader,
                                                           Naming naming,
                                                           std::string_view computed = {}) {
  std::string unknown;
  for (const auto& [key, value] : reader.object().items()) {
    if (detail::has_name(computed, key)) continue;
    const ConfigKeys* const row = detail::find_key(key, naming);
    if (row == nullptr && !value.is_null())
      unknown += (unknown.empty() ? "" : ", ") + detail::in_quotes(key);
    else if (row != nullptr && row->use == KeyUse::Restricted)
      detail::check_restricted(reader, key, *row);
  }
  if (unknown.empty()) return std::nullopt;
  return base::text(detail::path_text(reader.file()),
                    ": keys that are not known, and not read: ", unknown);
}

}  // namespace dllm_cache::inline v0_1::models
