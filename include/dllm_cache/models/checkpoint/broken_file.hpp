// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cctype>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

#include "dllm_cache/models/checkpoint/file_error.hpp"

// What downloads leave in place of a file.
namespace dllm_cache::inline v0_1::models::detail {

/// Whether `text` begins with `start`, given in small letters, whatever its letters' case.
[[nodiscard]] inline bool begins_with(std::string_view text, std::string_view start) {
  return text.size() >= start.size() &&
         std::equal(start.begin(), start.end(), text.begin(), [](char wanted, char found) {
           return wanted == static_cast<char>(std::tolower(static_cast<unsigned char>(found)));
         });
}

/// Refuses a Git LFS pointer, which is what `git clone` leaves where git-lfs is not installed.
inline void refuse_pointer(const std::filesystem::path& path, std::string_view text) {
  if (!text.starts_with("version https://git-lfs")) return;
  constexpr std::string_view key = "\nsize ";
  std::string_view size;
  if (const std::size_t found = text.find(key); found != std::string_view::npos) {
    size = text.substr(found + key.size());
    size = size.substr(0, std::min<std::size_t>(size.find_first_not_of("0123456789"), 20));
  }
  refuse_file(path, "a Git LFS pointer in place of the file, which must be downloaded itself",
              size.empty() ? "" : " (", size, size.empty() ? "" : " bytes)",
              ": run `git lfs pull`");
}

/// Refuses what is no `expected` (for example "JSON") but the leaving of a download: an empty file,
/// a Git LFS pointer, a web page. A file of another format is called by its name.
inline void refuse_broken(const std::filesystem::path& path, std::string_view text,
                          std::string_view expected) {
  if (text.empty())
    refuse_file(path, "an empty file, the download is incomplete: expected ", expected,
                ", got 0 bytes");
  refuse_pointer(path, text);
  // A page may begin with a mark of its byte order and blanks.
  std::string_view start = text.substr(text.starts_with("\xEF\xBB\xBF") ? 3 : 0);
  start.remove_prefix(std::min(start.find_first_not_of(" \t\r\n"), start.size()));
  for (const char* page : {"<!doctype", "<html", "<head", "<?xml", "<error"})
    if (begins_with(start, page))
      refuse_file(path,
                  "a web page (HTML or XML) in place of the file, perhaps the message of a "
                  "download that failed: expected ",
                  expected, ", got ", in_quotes(start.substr(0, 40)));
  // The first bytes of files that carry weights, too.
  constexpr std::array<std::pair<std::string_view, std::string_view>, 6> formats = {{
      {"GGUF", "a GGUF file"},
      {std::string_view("PK\x03\x04", 4), "a zip archive, perhaps of PyTorch"},
      {"\x80\x02", "a pickle, perhaps of PyTorch"},
      {"\x1F\x8B", "a gzip archive"},
      {"\x89HDF", "an HDF5 file"},
      {"\x93NUMPY", "a NumPy file"},
  }};
  for (const auto& [magic, name] : formats)
    // The length of a safetensors header may begin with the same bytes; its '{' tells.
    if (text.starts_with(magic) && text.size() > 8 && text[8] != '{')
      refuse_file(path, "expected ", expected, ", got ", name);
}

}  // namespace dllm_cache::inline v0_1::models::detail
