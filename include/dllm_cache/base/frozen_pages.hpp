// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <memory_resource>
#include <new>
#include <span>
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace dllm_cache::inline v0_1::base {

/// Bytes that any number of owners begin with: each allocation is a private view of them, of which
/// the operating system copies a page when it is first written. So owners share what none of them
/// changes, and see contiguous memory all the same.
///
/// A larger allocation than there are bytes comes from `upstream`, without contents. Thread-safe
/// where upstream is. Linux alone; elsewhere freeze() gives nothing.
class FrozenPages : public std::pmr::memory_resource {
 public:
  /// Keeps a copy of `bytes`; null where the system has no such memory, or too little. `upstream`
  /// must outlive what is made.
  [[nodiscard]] static std::shared_ptr<FrozenPages> freeze(std::span<const std::byte> bytes,
                                                           std::pmr::memory_resource* upstream) {
#if defined(__linux__)
    if (bytes.empty()) return nullptr;
    auto pages = std::make_shared<FrozenPages>(Key{}, bytes.size(), upstream);
    pages->m_file = memfd_create("dllm_cache", MFD_CLOEXEC);
    if (pages->m_file < 0) return nullptr;
    for (std::size_t done = 0; done < bytes.size();) {
      const ssize_t written = write(pages->m_file, bytes.data() + done, bytes.size() - done);
      if (written <= 0) return nullptr;
      done += static_cast<std::size_t>(written);
    }
    return pages;
#else
    static_cast<void>(bytes);
    static_cast<void>(upstream);
    return nullptr;
#endif
  }

  struct Key {};  // which freeze() alone makes
  FrozenPages(Key, std::size_t size, std::pmr::memory_resource* upstream)
      : m_size(size), m_upstream(upstream) {}
  FrozenPages(const FrozenPages&) = delete;
  FrozenPages& operator=(const FrozenPages&) = delete;
  ~FrozenPages() override {
#if defined(__linux__)
    if (m_file >= 0) close(m_file);
#endif
  }

  [[nodiscard]] std::pmr::memory_resource* upstream() const { return m_upstream; }

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
#if defined(__linux__)
    if (bytes <= m_size) {
      void* const memory =
          mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, m_file, 0);  // page-aligned
      if (memory == MAP_FAILED) throw std::bad_alloc();
      return memory;
    }
#endif
    return m_upstream->allocate(bytes, alignment);
  }
  void do_deallocate(void* memory, std::size_t bytes, std::size_t alignment) override {
#if defined(__linux__)
    if (bytes <= m_size) {
      munmap(memory, bytes);
      return;
    }
#endif
    m_upstream->deallocate(memory, bytes, alignment);
  }
  [[nodiscard]] bool do_is_equal(const memory_resource& other) const noexcept override {
    return this == &other;
  }

  std::size_t m_size;
  std::pmr::memory_resource* m_upstream;
  int m_file = -1;
};

}  // namespace dllm_cache::inline v0_1::base
