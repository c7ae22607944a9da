// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dllm_cache/base/matrix_view.hpp"

// Sixteen numbers at a time with the vector types of g++ and clang: they stay in registers, which
// small Eigen arrays do not, and compile to whatever the target has.
namespace dllm_cache::inline v0_1::base {

inline constexpr Index lane_count = 16;

template <class T>
struct LanesOf {
  typedef T Type __attribute__((vector_size(lane_count * sizeof(T))));  // using cannot say this
};
template <class T>
using Lanes = typename LanesOf<T>::Type;

template <class Stored, class Scalar>
inline constexpr bool bf16_and_float =
    std::is_same_v<Stored, Eigen::bfloat16>&& std::is_same_v<Scalar, float>;

// Vectors are handed over by reference: by value their calling convention depends on the target.

/// Reads 16 elements of any stored type.
template <class Stored, class Scalar>
inline void load_lanes(const Stored* from, Lanes<Scalar>& to) {
  if constexpr (std::is_same_v<Stored, Scalar>) {
    std::memcpy(&to, from, sizeof(to));
  } else if constexpr (bf16_and_float<Stored, Scalar>) {
    Lanes<std::uint16_t> halves;
    std::memcpy(&halves, static_cast<const void*>(from), sizeof(halves));
    const Lanes<std::uint32_t> bits = __builtin_convertvector(halves, Lanes<std::uint32_t>) << 16;
    std::memcpy(&to, &bits, sizeof(to));
  } else {
    for (Index i = 0; i < lane_count; ++i) to[i] = static_cast<Scalar>(from[i]);
  }
}

/// Writes 16 elements, rounded to nearest even where the stored type is narrower, as Eigen does.
template <class Scalar, class Stored>
inline void store_lanes(const Lanes<Scalar>& from, Stored* to) {
  if constexpr (std::is_same_v<Stored, Scalar>) {
    std::memcpy(to, &from, sizeof(from));
  } else if constexpr (bf16_and_float<Stored, Scalar>) {
    Lanes<std::uint32_t> bits;
    std::memcpy(&bits, &from, sizeof(bits));
    const Lanes<std::uint32_t> rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
    // Rounding could carry a NaN over into an infinity: a NaN keeps its sign and becomes quiet.
    const auto nan = (Lanes<std::uint32_t>)((bits & 0x7fffffffU) > 0x7f800000U);
    const Lanes<std::uint32_t> quiet = ((bits >> 16) & 0x8000U) | 0x7fc0U;
    const Lanes<std::uint16_t> halves =
        __builtin_convertvector((rounded & ~nan) | (quiet & nan), Lanes<std::uint16_t>);
    std::memcpy(static_cast<void*>(to), &halves, sizeof(halves));
  } else {
    for (Index i = 0; i < lane_count; ++i) to[i] = static_cast<Stored>(from[i]);
  }
}

}  // namespace dllm_cache::inline v0_1::base
