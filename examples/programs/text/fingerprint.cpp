// SPDX-License-Identifier: Apache-2.0
#include "programs/text/fingerprint.hpp"

#include <algorithm>
#include <array>
#include <fstream>
#include <vector>

#include "programs/text/text_file.hpp"

namespace programs {

std::string Fingerprint::text() const {
  std::string digits(16, '0');
  for (std::size_t i = 0; i < digits.size(); ++i)
    digits[i] = "0123456789abcdef"[(m_hash >> (60 - 4 * i)) & 15U];
  return digits;
}

std::string model_fingerprint(const std::filesystem::path& folder) {
  Fingerprint all;
  all.add(read_text(folder / "config.json"));
  std::vector<std::filesystem::path> weights;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.path().extension() == ".safetensors") weights.push_back(entry.path());
  std::sort(weights.begin(), weights.end());
  constexpr std::uint64_t blocks = 64;
  std::array<char, 4096> block{};
  for (const auto& path : weights) {
    const std::uint64_t size = std::filesystem::file_size(path);
    all.add(size);
    std::ifstream file(path, std::ios::binary);
    for (std::uint64_t i = 0; i < blocks; ++i) {
      const std::uint64_t last = size > block.size() ? size - block.size() : 0;
      file.clear();
      if (!file.seekg(static_cast<std::streamoff>(last / (blocks - 1) * i)))
        throw std::runtime_error(path.string() + ": cannot be read");
      file.read(block.data(), block.size());
      all.add(std::as_bytes(std::span(block).first(static_cast<std::size_t>(file.gcount()))));
    }
  }
  return all.text();
}

}  // namespace programs
