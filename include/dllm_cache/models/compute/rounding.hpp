// SPDX-License-Identifier: Apache-2.0
#pragma once

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include <cstring>
#include <type_traits>

#include "dllm_cache/base/lanes.hpp"
#include "dllm_cache/base/scalar.hpp"

namespace dllm_cache::inline v0_1::models {

/// What products multiply: float or Eigen::bfloat16.
template <class T>
concept ProductScalar = std::is_same_v<T, float> || std::is_same_v<T, Eigen::bfloat16>;

}  // namespace dllm_cache::inline v0_1::models

// Rounding of numbers that only products read, where a processor's own instruction may be used: it
// takes subnormal numbers for 0. Features are rounded by the core, on every machine alike.
namespace dllm_cache::inline v0_1::models::detail {

namespace lanes = base;
using FloatLanes = lanes::Lanes<float>;

/// Writes 16 floats as Element (float or Eigen::bfloat16), rounded to nearest even.
template <class Element>
inline void round_lanes(const FloatLanes& from, Element* to) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<Element, Eigen::bfloat16>) {
    const auto halves = _mm512_cvtneps_pbh((__m512)from);
    std::memcpy(static_cast<void*>(to), &halves, sizeof(halves));
    return;
  }
#endif
  lanes::store_lanes<float, Element>(from, to);
}

/// Writes `factor * from` as Element, rounded to nearest even.
template <class Element>
void round_row(const float* from, Element* to, Index count, float factor = 1.0F) {
  Index done = 0;
  for (; done + lanes::lane_count <= count; done += lanes::lane_count) {
    FloatLanes numbers;
    lanes::load_lanes<float, float>(from + done, numbers);
    round_lanes<Element>(numbers * factor, to + done);
  }
  for (; done < count; ++done) to[done] = static_cast<Element>(factor * from[done]);
}

}  // namespace dllm_cache::inline v0_1::models::detail
