// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace programs {

/// FNV-1a of 64 bits over whatever is added: tells files apart, keeps no secret.
class Fingerprint {
 public:
  void add(std::span<const std::byte> bytes) {
    for (const std::byte one : bytes) {
      m_hash ^= static_cast<std::uint64_t>(one);
      m_hash *= 0x100000001b3ULL;
    }
  }
  /// A text and its length, so that "ab", "c" and "a", "bc" differ.
  void add(const std::string& text) {
    add(static_cast<std::uint64_t>(text.size()));
    add(std::as_bytes(std::span<const char>(text)));
  }
  void add(std::uint64_t number) { add(std::as_bytes(std::span<const std::uint64_t>(&number, 1))); }
  /// 16 hexadecimal digits.
  [[nodiscard]] std::string text() const;

 private:
  std::uint64_t m_hash = 0xcbf29ce484222325ULL;
};

/// A hash of a checkpoint folder: config.json whole, and of every weight file its size and 64
/// blocks spread over it. Throws std::runtime_error naming a file that cannot be read.
[[nodiscard]] std::string model_fingerprint(const std::filesystem::path& folder);

}  // namespace programs
