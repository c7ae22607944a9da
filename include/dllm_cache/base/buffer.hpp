// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory_resource>
#include <type_traits>
#include <utility>

#include "dllm_cache/base/matrix_view.hpp"

namespace dllm_cache::inline v0_1::base {

/// Memory of trivial elements that grows and never shrinks, aligned to a cache line.
///
/// Elements are not initialised: the planner proves that nothing is read before it was written, and
/// a test's memory resource can fill fresh memory with NaN to see it.
template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  static constexpr std::size_t alignment = 64;

  explicit Buffer(std::pmr::memory_resource* resource = std::pmr::get_default_resource())
      : m_resource(resource) {}
  Buffer(Buffer&& other) noexcept
      : m_resource(other.m_resource),
        m_data(std::exchange(other.m_data, nullptr)),
        m_capacity(std::exchange(other.m_capacity, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(m_resource, other.m_resource);
    std::swap(m_data, other.m_data);
    std::swap(m_capacity, other.m_capacity);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { release(); }

  /// Memory for `count >= 0` elements; contents are lost when it grows. Throws what the memory
  /// resource throws, and then keeps the old memory.
  T* ensure(Index count) {
    if (count > m_capacity) {
      void* fresh = m_resource->allocate(bytes(count), alignment);
      release();
      m_data = static_cast<T*>(fresh);
      m_capacity = count;
    }
    return m_data;
  }

  /// Dense view `[rows, cols]` of memory that ensure() has made large enough.
  [[nodiscard]] MatrixView<T> view(Index rows, Index cols) {
    return dense_view(ensure(rows * cols), rows, cols);
  }

  [[nodiscard]] T* data() { return m_data; }
  [[nodiscard]] const T* data() const { return m_data; }
  [[nodiscard]] std::pmr::memory_resource* resource() const { return m_resource; }

 private:
  static std::size_t bytes(Index count) { return static_cast<std::size_t>(count) * sizeof(T); }
  void release() noexcept {
    if (m_data != nullptr) m_resource->deallocate(m_data, bytes(m_capacity), alignment);
  }

  std::pmr::memory_resource* m_resource;
  T* m_data = nullptr;
  Index m_capacity = 0;
};

}  // namespace dllm_cache::inline v0_1::base
