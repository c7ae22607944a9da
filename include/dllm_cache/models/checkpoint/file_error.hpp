// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

namespace dllm_cache::inline v0_1::models::detail {

// (Not `quoted`, which std::quoted would take over for a std::string.)
// Puts text that a file chose into a message: cut and without control bytes, because a hostile
// name may be megabytes long or hold escape sequences for the terminal that shows the message.
inline std::string in_quotes(std::string_view text) {
  constexpr std::size_t longest = 200;
  constexpr std::string_view digits = "0123456789abcdef";
  const bool cut = text.size() > longest;
  std::size_t length = cut ? longest : text.size();
  if (cut) {  // not in the middle of a UTF-8 sequence, which has at most 3 continuation bytes
    for (int back = 0; back < 3 && (static_cast<unsigned char>(text[length]) & 0xC0U) == 0x80U;
         ++back) {
      --length;
    }
  }
  std::string result = "\"";
  for (const char character : text.substr(0, length)) {
    const auto byte = static_cast<unsigned char>(character);
    if (byte < 0x20 || byte == 0x7F) {
      result += "\\x";
      result += digits[byte >> 4U];
      result += digits[byte & 0xFU];
    } else {
      result += character;
    }
  }
  result += cut ? "...\"" : "\"";
  return result;
}

// One place where every refusal of a file starts: a good breakpoint.
[[noreturn]] inline void refuse_file(const std::filesystem::path& path, const std::string& reason) {
  throw std::runtime_error("\"" + path.string() + "\": " + reason);
}

[[noreturn]] inline void refuse_tensor(const std::filesystem::path& path, std::string_view name,
                                       const std::string& reason) {
  refuse_file(path, "tensor " + in_quotes(name) + ": " + reason);
}

// `error` is an errno. `action` is a view because building a string could change errno first.
[[noreturn]] inline void refuse_system(const std::filesystem::path& path, std::string_view action,
                                       int error) {
  refuse_file(path, std::string(action) + " failed: " + std::generic_category().message(error));
}

}  // namespace dllm_cache::inline v0_1::models::detail
