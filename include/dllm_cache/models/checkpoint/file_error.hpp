// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

#include "dllm_cache/base/error.hpp"

namespace dllm_cache::inline v0_1::models::detail {

/// Text that a file chose, for a message: in quotes, cut and without control bytes, because a
/// hostile name may be megabytes long or hold escape sequences for the terminal that shows it.
/// (Not `quoted`, which std::quoted would take over for a std::string.)
[[nodiscard]] inline std::string in_quotes(std::string_view text) {
  constexpr std::size_t longest = 200;
  constexpr std::string_view digits = "0123456789abcdef";
  const bool cut = text.size() > longest;
  std::size_t length = cut ? longest : text.size();
  // Not in the middle of a UTF-8 sequence, which has at most 3 continuation bytes.
  for (int back = 0; cut && back < 3; ++back)
    if ((static_cast<unsigned char>(text[length]) & 0xC0U) == 0x80U) --length;
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

/// A path as messages begin with it.
[[nodiscard]] inline std::string path_text(const std::filesystem::path& path) {
  return "\"" + path.string() + "\"";
}

/// Throws std::runtime_error naming the file, with the joined parts: every refusal of a file starts
/// here, a good place for a breakpoint.
template <class... Parts>
[[noreturn]] void refuse_file(const std::filesystem::path& path, const Parts&... parts) {
  throw std::runtime_error(base::text(path_text(path), ": ", parts...));
}

/// The same, naming a tensor of the file, too.
template <class... Parts>
[[noreturn]] void refuse_tensor(const std::filesystem::path& path, std::string_view name,
                                const Parts&... parts) {
  refuse_file(path, "tensor ", in_quotes(name), ": ", parts...);
}

/// The same for an `action` that the system refused; `error` is an errno. `action` is a view
/// because building a string could change errno first.
[[noreturn]] inline void refuse_system(const std::filesystem::path& path, std::string_view action,
                                       int error) {
  refuse_file(path, action, " failed: ", std::generic_category().message(error));
}

}  // namespace dllm_cache::inline v0_1::models::detail
