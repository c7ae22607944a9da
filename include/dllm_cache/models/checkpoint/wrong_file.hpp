// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cctype>
#include <string>
#include <string_view>

namespace dllm_cache::inline v0_1::models::detail {

/// A kind of file that often lies where another one is expected.
struct WrongFile {
  std::string_view begins;  ///< In lower case.
  std::string_view meaning;
};

/// What a clone without git-lfs, a failed download or a renamed file leaves behind.
inline constexpr std::array<WrongFile, 7> wrong_files = {{
    {"version https://git-lfs",
     "a Git LFS pointer, which only names the file: download the file itself (`git lfs pull`)"},
    {"<!doctype", "a page of HTML, as failed downloads leave: download the file again"},
    {"<html", "a page of HTML, as failed downloads leave: download the file again"},
    {"<?xml", "an XML text, as failed downloads leave: download the file again"},
    {"gguf", "a GGUF file, which is not read"},
    {"pk\x03\x04", "a zip archive, as PyTorch saves weights: convert it to safetensors"},
    {"entry not found", "the answer of a failed download: download the file again"},
}};

/// What the file with this content is, where it is none of those that are read; else empty.
[[nodiscard]] inline std::string_view wrong_kind(std::string_view content) {
  while (!content.empty() && std::isspace(static_cast<unsigned char>(content.front())) != 0)
    content.remove_prefix(1);
  const auto same = [](char a, char b) {
    return std::tolower(static_cast<unsigned char>(a)) == static_cast<unsigned char>(b);
  };
  for (const WrongFile& file : wrong_files)
    if (content.size() >= file.begins.size() &&
        std::equal(file.begins.begin(), file.begins.end(), content.begin(),
                   [&](char expected, char found) { return same(found, expected); }))
      return file.meaning;
  return {};
}

}  // namespace dllm_cache::inline v0_1::models::detail
