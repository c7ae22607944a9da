// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace programs {

/// Bytes as base64 with padding (RFC 4648, section 4).
[[nodiscard]] inline std::string to_base64(std::span<const std::uint8_t> bytes) {
  constexpr char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t at = 0; at < bytes.size(); at += 3) {
    const std::size_t have = bytes.size() - at < 3 ? bytes.size() - at : 3;
    std::uint32_t group = 0;
    for (std::size_t i = 0; i < 3; ++i)
      group = group << 8U | (i < have ? std::uint32_t{bytes[at + i]} : 0U);
    for (std::size_t i = 0; i < 4; ++i)
      text += i <= have ? digits[group >> (18U - 6U * i) & 63U] : '=';
  }
  return text;
}

}  // namespace programs
