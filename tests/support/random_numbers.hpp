// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "dllm_cache/base/matrix_view.hpp"

namespace dllm_cache::testing {

/// SplitMix64: the same numbers from the same seed everywhere.
class RandomNumbers {
 public:
  explicit RandomNumbers(std::uint64_t seed) : m_state(seed) {}

  std::uint64_t next() {
    std::uint64_t z = (m_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  /// Uniform in [-1, 1).
  double signed_unit() { return static_cast<double>(next() >> 11) * 0x1p-52 - 1.0; }
  /// Uniform in [0, 1).
  double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  /// Uniform in [0, count).
  Index below(Index count) {
    return static_cast<Index>(next() % static_cast<std::uint64_t>(count));
  }
  template <class T>
  std::vector<T> vector(Index count, double scale = 1.0) {
    std::vector<T> numbers(static_cast<std::size_t>(count));
    for (T& number : numbers) number = static_cast<T>(signed_unit() * scale);
    return numbers;
  }

 private:
  std::uint64_t m_state;
};

}  // namespace dllm_cache::testing
