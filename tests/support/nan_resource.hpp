// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstring>
#include <memory_resource>
#include <new>

namespace dllm_cache::testing {

/// Fills fresh memory with ones: a NaN in every stored type, so a value that is read before it was
/// written shows. Counts allocations, and fails from a given one on.
class NanResource final : public std::pmr::memory_resource {
 public:
  [[nodiscard]] long allocations() const { return m_allocations; }
  [[nodiscard]] std::size_t bytes_held() const { return m_held; }
  void fail_from_now_on(bool fail) { m_fail = fail; }

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    if (m_fail) throw std::bad_alloc();
    void* memory = std::pmr::new_delete_resource()->allocate(bytes, alignment);
    std::memset(memory, 0xff, bytes);
    ++m_allocations;
    m_held += bytes;
    return memory;
  }
  void do_deallocate(void* memory, std::size_t bytes, std::size_t alignment) override {
    m_held -= bytes;
    std::pmr::new_delete_resource()->deallocate(memory, bytes, alignment);
  }
  [[nodiscard]] bool do_is_equal(const memory_resource& other) const noexcept override {
    return this == &other;
  }

  long m_allocations = 0;
  std::size_t m_held = 0;
  bool m_fail = false;
};

}  // namespace dllm_cache::testing
