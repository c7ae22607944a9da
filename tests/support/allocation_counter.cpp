// SPDX-License-Identifier: Apache-2.0
#include "tests/support/allocation_counter.hpp"

#include <cstddef>
#include <cstdlib>
#include <new>

namespace dllm_cache::testing {
AllocationCounter allocation_counter;
}

namespace {

// Not inlined: the compiler would see new and free, and take them for a mismatch.
[[gnu::noinline]] void* take_or_null(std::size_t bytes, std::size_t alignment) noexcept {
  auto& counter = dllm_cache::testing::allocation_counter;
  if (counter.counting && counter.counted++ == counter.failing) return nullptr;
  if (alignment <= alignof(std::max_align_t)) return std::malloc(bytes == 0 ? 1 : bytes);
  return std::aligned_alloc(alignment, (bytes / alignment + 1) * alignment);
}
void* take(std::size_t bytes, std::size_t alignment) {
  if (void* memory = take_or_null(bytes, alignment)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void give(void* memory) noexcept { std::free(memory); }

constexpr std::size_t plain = 1;
std::size_t number(std::align_val_t alignment) { return static_cast<std::size_t>(alignment); }

}  // namespace

void* operator new(std::size_t n) { return take(n, plain); }
void* operator new[](std::size_t n) { return take(n, plain); }
void* operator new(std::size_t n, std::align_val_t a) { return take(n, number(a)); }
void* operator new[](std::size_t n, std::align_val_t a) { return take(n, number(a)); }
void* operator new(std::size_t n, const std::nothrow_t&) noexcept { return take_or_null(n, plain); }
void* operator new[](std::size_t n, const std::nothrow_t&) noexcept {
  return take_or_null(n, plain);
}
void* operator new(std::size_t n, std::align_val_t a, const std::nothrow_t&) noexcept {
  return take_or_null(n, number(a));
}
void* operator new[](std::size_t n, std::align_val_t a, const std::nothrow_t&) noexcept {
  return take_or_null(n, number(a));
}
void operator delete(void* memory) noexcept { give(memory); }
void operator delete[](void* memory) noexcept { give(memory); }
void operator delete(void* memory, std::size_t) noexcept { give(memory); }
void operator delete[](void* memory, std::size_t) noexcept { give(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { give(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { give(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { give(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { give(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { give(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { give(memory); }
