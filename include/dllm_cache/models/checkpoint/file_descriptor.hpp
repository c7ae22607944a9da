// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <utility>

namespace dllm_cache::inline v0_1::models::detail {

/// Owns a POSIX file descriptor; -1 is none.
class FileDescriptor {
 public:
  explicit FileDescriptor(int descriptor) noexcept : m_descriptor(descriptor) {}
  FileDescriptor(FileDescriptor&& other) noexcept
      : m_descriptor(std::exchange(other.m_descriptor, -1)) {}
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  FileDescriptor& operator=(FileDescriptor&&) = delete;
  ~FileDescriptor() {
    if (m_descriptor >= 0) ::close(m_descriptor);
  }

  [[nodiscard]] bool valid() const noexcept { return m_descriptor >= 0; }
  [[nodiscard]] int get() const noexcept { return m_descriptor; }

  /// Closes now and says whether it worked: network file systems report a failed write only here.
  [[nodiscard]] bool close() noexcept { return ::close(std::exchange(m_descriptor, -1)) == 0; }

 private:
  int m_descriptor;
};

}  // namespace dllm_cache::inline v0_1::models::detail
