// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "dllm_cache/base/error.hpp"
#include "dllm_cache/models/checkpoint/file_error.hpp"

namespace dllm_cache::inline v0_1::models {

/// The deepest nesting of objects and arrays in a file. A safetensors header has 3 levels and a
/// config.json a few more; code that walks or copies JSON recurses once a level.
inline constexpr std::size_t max_json_depth = 64;

/// What parse_json refuses; the message names the source of the text and the place.
struct JsonError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

namespace detail {

/// First pass over a JSON text: refuses what nlohmann::json::parse would let through, builds
/// nothing. (parse's own callback could do the same, but it rescans the parent at the end of each
/// child, which makes a header of many tensors quadratic.)
class JsonGuard final : public nlohmann::json_sax<nlohmann::json> {
 public:
  JsonGuard(std::string_view source, std::size_t size, std::size_t deepest)
      : m_source(source), m_size(size), m_deepest(deepest) {}

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
    if (!m_open.back().insert(name).second)
      refuse("key ", in_quotes(name), " stands twice in one JSON object, expected once");
    return true;
  }

  bool parse_error(std::size_t position, const std::string& token,
                   const nlohmann::json::exception&) override {
    // The parser met the end of the text where more had to come.
    if (position > m_size)
      refuse("not JSON at byte ", m_size, ", where it ends in the middle: it is cut short");
    // The library's own text repeats the token, which may be as long as the file.
    refuse("not JSON at byte ", position, ", near ", in_quotes(token));
  }

  /// Throws JsonError naming the source, with the joined parts.
  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    throw JsonError(base::text(m_source, ": ", parts...));
  }

 private:
  bool open() {
    if (m_open.size() == m_deepest) refuse("JSON nested deeper than ", m_deepest, " levels");
    m_open.emplace_back();
    return true;
  }
  bool close() {
    m_open.pop_back();
    return true;
  }

  std::string_view m_source;
  std::size_t m_size;
  std::size_t m_deepest;
  std::vector<std::set<std::string>> m_open;  // the keys of every object or array not yet closed
};

/// A JSON value for a message: short, on one line, whatever bytes its strings hold.
[[nodiscard]] inline std::string json_text(const nlohmann::json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array() && value.size() > 8) return "an array of " + std::to_string(value.size());
  if (value.is_string()) return in_quotes(value.get_ref<const std::string&>());
  const std::string text = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  return text.size() <= 200 ? text : text.substr(0, 200) + "...";
}

}  // namespace detail

/// Parses `text` as JSON of at most `deepest` levels of objects and arrays; `source` is what
/// messages call the text.
///
/// Stricter than nlohmann::json::parse: also refused are a key that stands twice in one object, a
/// deeper nesting and a NUL byte (at which that parser would stop reading). Throws JsonError.
[[nodiscard]] inline nlohmann::json parse_json(std::string_view text, std::string_view source,
                                               std::size_t deepest = max_json_depth) {
  detail::JsonGuard guard(source, text.size(), deepest);
  if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos)
    guard.refuse("not JSON: NUL byte at byte ", nul);
  nlohmann::json::sax_parse(text.begin(), text.end(), &guard);
  return nlohmann::json::parse(text.begin(), text.end());
}

}  // namespace dllm_cache::inline v0_1::models
