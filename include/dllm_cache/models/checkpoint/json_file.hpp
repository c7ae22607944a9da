// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "dllm_cache/models/checkpoint/file_error.hpp"
#include "dllm_cache/models/checkpoint/mapped_file.hpp"

namespace dllm_cache::inline v0_1::models {

/// The deepest nesting of objects and arrays that is read. A safetensors header has 3 levels and
/// a config.json a few more; code that walks or copies JSON recurses once a level.
inline constexpr std::size_t max_json_depth = 64;

/// The longest JSON text that is read, in bytes; the limit of the safetensors format for a header.
inline constexpr std::size_t max_json_bytes = 100'000'000;

namespace detail {

// First pass over a JSON text: refuses what nlohmann::json::parse would let through, builds
// nothing. (parse's own callback could do the same, but it rescans the parent at the end of each
// child, which makes a header of many tensors quadratic.)
class JsonGuard final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit JsonGuard(const std::filesystem::path& path) : m_path(path) {}

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool start_array(std::size_t) override { return open(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    if (!m_open.back().insert(name).second) {
      refuse_file(m_path,
                  "key " + in_quotes(name) + " stands twice in one JSON object, expected once");
    }
    return true;
  }

  bool parse_error(std::size_t position, const std::string& token,
                   const nlohmann::json::exception&) override {
    // The library's own text repeats the token, which may be as long as the file.
    refuse_file(m_path, "not valid JSON at byte " + std::to_string(position) + ", near " +
                            in_quotes(token));
  }

 private:
  bool open() {
    if (m_open.size() == max_json_depth) {
      refuse_file(m_path, "JSON nested too deep, expected at most " +
                              std::to_string(max_json_depth) + " levels");
    }
    m_open.emplace_back();
    return true;
  }
  bool close() {
    m_open.pop_back();
    return true;
  }

  const std::filesystem::path& m_path;
  std::vector<std::set<std::string>> m_open;  // the keys of every object or array not yet closed
};

// A JSON value for a message: short, on one line, whatever bytes its strings hold.
inline std::string json_text(const nlohmann::json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array() && value.size() > 8) {
    return "an array of " + std::to_string(value.size());
  }
  if (value.is_string()) return in_quotes(value.get_ref<const std::string&>());
  const std::string text = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  return text.size() <= 200 ? text : text.substr(0, 200) + "...";
}

}  // namespace detail

/// Parses `text`, which was found in the file `path`, as JSON.
///
/// Stricter than nlohmann::json::parse: also refused are a key that stands twice in one object, a
/// nesting deeper than `max_json_depth` and a NUL byte (at which that parser would stop reading).
/// Throws std::runtime_error naming the file and the place.
inline nlohmann::json parse_json(std::string_view text, const std::filesystem::path& path) {
  if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos) {
    detail::refuse_file(path, "not valid JSON: NUL byte at byte " + std::to_string(nul));
  }
  detail::JsonGuard guard(path);
  nlohmann::json::sax_parse(text.begin(), text.end(), &guard);
  return nlohmann::json::parse(text.begin(), text.end());
}

/// Reads a JSON file whose outermost value is an object, at most `max_json_bytes` long.
///
/// Throws std::runtime_error naming the file when it is missing, too long, not JSON in the sense of
/// parse_json, or another kind of value.
inline nlohmann::json read_json_object(const std::filesystem::path& path) {
  const MappedFile file(path);
  if (file.bytes().size() > max_json_bytes) {
    detail::refuse_file(path, "expected at most " + std::to_string(max_json_bytes) +
                                  " bytes of JSON, got " + std::to_string(file.bytes().size()));
  }
  nlohmann::json result = parse_json(file.text(), path);
  if (!result.is_object()) {
    detail::refuse_file(path, "expected a JSON object, got " + detail::json_text(result));
  }
  return result;
}

}  // namespace dllm_cache::inline v0_1::models
