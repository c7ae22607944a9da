// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <string>

#include "tests/fuzz/targets.hpp"

namespace dllm_cache::fuzz {

/// A file in memory that can be opened by a path, for as long as this object lives.
class MemoryFile {
 public:
  explicit MemoryFile(Input content) : m_file(memfd_create("fuzz", MFD_CLOEXEC)) {
    must(m_file >= 0, "there are files in memory");
    const auto size = static_cast<ssize_t>(content.size());
    must(::write(m_file, content.data(), content.size()) == size, "the file is written");
  }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  ~MemoryFile() { ::close(m_file); }

  [[nodiscard]] std::string path() const { return "/proc/self/fd/" + std::to_string(m_file); }

 private:
  int m_file;
};

}  // namespace dllm_cache::fuzz
