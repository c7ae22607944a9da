// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory_resource>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dllm_cache::inline v0_1 {

/// Memory for features of long sequences: asks Linux to back large blocks with 2 MiB pages, and
/// passes everything else, and all of it elsewhere, on to `upstream`.
///
/// Attention reads a few columns of every cached row, and those lie so far apart that with small
/// pages the translation of addresses costs as much as the reading. Thread-safe where upstream is.
class LargePages : public std::pmr::memory_resource {
 public:
  /// `upstream` must outlive this resource.
  explicit LargePages(
      std::pmr::memory_resource* upstream = std::pmr::get_default_resource()) noexcept
      : m_upstream(upstream) {}

 private:
  static constexpr std::size_t page = std::size_t{2} << 20;

  // Below two pages the part that would lie in whole ones is not worth the alignment.
  static std::size_t aligned(std::size_t bytes, std::size_t alignment) {
    return bytes >= 2 * page ? std::max(alignment, page) : alignment;
  }

  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    void* const memory = m_upstream->allocate(bytes, aligned(bytes, alignment));
#if defined(__linux__)
    // Advice, which may be refused: small pages serve as well, only slower.
    if (bytes >= 2 * page) static_cast<void>(madvise(memory, bytes, MADV_HUGEPAGE));
#endif
    return memory;
  }
  void do_deallocate(void* memory, std::size_t bytes, std::size_t alignment) override {
    m_upstream->deallocate(memory, bytes, aligned(bytes, alignment));
  }
  [[nodiscard]] bool do_is_equal(const memory_resource& other) const noexcept override {
    const auto* const same = dynamic_cast<const LargePages*>(&other);
    return same != nullptr && *same->m_upstream == *m_upstream;
  }

  std::pmr::memory_resource* m_upstream;
};

/// One LargePages for the whole program, over operator new.
[[nodiscard]] inline std::pmr::memory_resource* large_pages() {
  static LargePages pages(std::pmr::new_delete_resource());
  return &pages;
}

}  // namespace dllm_cache::inline v0_1
