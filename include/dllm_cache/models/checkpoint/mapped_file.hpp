// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>
#include <utility>

#include "dllm_cache/models/checkpoint/file_descriptor.hpp"
#include "dllm_cache/models/checkpoint/file_error.hpp"

namespace dllm_cache::inline v0_1::models {

/// A whole file, mapped read-only into memory (POSIX mmap); unmapped by the destructor.
///
/// Movable, not copyable; a move keeps the address of the bytes. Const methods may be called from
/// any number of threads. The file must not shrink while it is mapped: the system answers a read
/// behind its new end with a signal, not with an error. Replacing it by rename is safe.
class MappedFile {
 public:
  /// Maps `path`, following links; an empty file gives an empty span. Throws std::runtime_error
  /// naming the file when it is missing, unreadable or not a regular file.
  explicit MappedFile(const std::filesystem::path& path) {
    // Without O_NONBLOCK the opening of a named pipe waits for a writer, perhaps for ever.
    const detail::FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!file.valid()) detail::refuse_system(path, "opening", errno);
    struct ::stat status {};
    if (::fstat(file.get(), &status) != 0) detail::refuse_system(path, "reading its size", errno);
    if (S_ISDIR(status.st_mode)) detail::refuse_file(path, "expected a file, got a folder");
    if (!S_ISREG(status.st_mode))
      detail::refuse_file(path, "expected a regular file, got a device, pipe or socket");
    m_size = static_cast<std::size_t>(status.st_size);
    if (m_size == 0) return;  // mmap refuses a length of 0
    void* const address = ::mmap(nullptr, m_size, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (address == MAP_FAILED) detail::refuse_system(path, "mapping", errno);
    m_data = static_cast<std::byte*>(address);
  }

  MappedFile(MappedFile&& other) noexcept
      : m_data(std::exchange(other.m_data, nullptr)), m_size(std::exchange(other.m_size, 0)) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(m_data, other.m_data);
    std::swap(m_size, other.m_size);
    return *this;
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() {
    if (m_data != nullptr) ::munmap(m_data, m_size);
  }

  /// The bytes of the file, valid as long as this object or the one it was moved to lives.
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return {m_data, m_size}; }

  /// The same bytes as characters.
  [[nodiscard]] std::string_view text() const noexcept {
    return m_data == nullptr ? std::string_view{}
                             : std::string_view{reinterpret_cast<const char*>(m_data), m_size};
  }

 private:
  std::byte* m_data = nullptr;
  std::size_t m_size = 0;
};

}  // namespace dllm_cache::inline v0_1::models
