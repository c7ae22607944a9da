// SPDX-License-Identifier: Apache-2.0
#pragma once

#ifndef __cpp_exceptions
#error "dllm_cache reports errors by exceptions: compile with exceptions (no -fno-exceptions)"
#endif

#include <array>
#include <charconv>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>

// Messages are put together here, out of line, so that the paths that never throw stay short.
namespace dllm_cache::inline v0_1::base {

/// Joins the parts with `<<`; a number with a point is written so that no other reads the same.
template <class... Parts>
[[nodiscard]] std::string text(const Parts&... parts) {
  std::ostringstream out;
  const auto write = [&out](const auto& part) {
    if constexpr (std::is_floating_point_v<std::remove_cvref_t<decltype(part)>>) {
      std::array<char, 32> digits{};
      const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), part).ptr;
      out.write(digits.data(), end - digits.data());
    } else {
      out << part;
    }
  };
  (write(parts), ...);
  return out.str();
}

/// Throws std::invalid_argument with the joined parts: class, field, legal range, value.
template <class... Parts>
[[noreturn]] void refuse_argument(const Parts&... parts) {
  throw std::invalid_argument(text(parts...));
}

/// Throws std::logic_error with the joined parts: a call out of order, or a plan that cannot be
/// carried out.
template <class... Parts>
[[noreturn]] void refuse_call(const Parts&... parts) {
  throw std::logic_error(text(parts...));
}

}  // namespace dllm_cache::inline v0_1::base
