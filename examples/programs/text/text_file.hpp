// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>

namespace programs {

/// All of a file, "" for an empty one; throws std::runtime_error naming the file.
[[nodiscard]] inline std::string read_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  // Reading a folder opens but does not read; reading an empty file fails too.
  if (!file || (!(text << file.rdbuf()) && !std::filesystem::is_regular_file(path)))
    throw std::runtime_error(path.string() + ": cannot be read");
  return text.str();
}

/// Replaces a file's content, `-` stands for standard output; throws std::runtime_error naming it.
inline void write_text(const std::string& path, const std::string& text) {
  if (path == "-") {
    std::cout << text << std::flush;
    return;
  }
  std::ofstream file(path, std::ios::binary);
  if (!(file << text << std::flush)) throw std::runtime_error(path + ": cannot be written");
}

}  // namespace programs
