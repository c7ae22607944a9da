// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace dllm_cache::testing {

/// The tiny LLaDA of the golden cases with a vocabulary of visible ASCII: token 0 is `!`, 93 is
/// `~`, 94 ends a text, 95 is the mask.
class TextModel {
 public:
  static constexpr std::int32_t letters = 94;

  /// Makes the folder `parent`/model.
  explicit TextModel(const std::filesystem::path& parent) : m_path(parent / "model") {
    std::filesystem::copy(std::filesystem::path(DLLM_CACHE_TEST_DATA) / "models" / "llada-tiny",
                          m_path);
    std::ofstream file(m_path / "vocab.txt");
    for (std::int32_t token = 0; token < letters; ++token) file << letter(token) << '\n';
    file << "<end>\n<mask>\n";
  }

  [[nodiscard]] const std::filesystem::path& path() const { return m_path; }
  /// The letter of a token below `letters`.
  [[nodiscard]] static char letter(std::int32_t token) { return static_cast<char>('!' + token); }
  [[nodiscard]] static std::vector<std::int32_t> encode(const std::string& text) {
    std::vector<std::int32_t> tokens;
    for (const char one : text) tokens.push_back(one - '!');
    return tokens;
  }

 private:
  std::filesystem::path m_path;
};

}  // namespace dllm_cache::testing
