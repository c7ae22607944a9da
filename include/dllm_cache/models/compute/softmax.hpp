// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "dllm_cache/models/compute/rounding.hpp"

// Attention takes as many exponentials as it has scores: on wide vectors and bf16 products they
// would cost as much as the products themselves if they were general ones.
namespace dllm_cache::inline v0_1::models::detail {

/// x := exp(x), to a few units in the last place; below -87 as at -87, above 88 as at 88, and NaN
/// stays NaN.
inline void exponentiate(FloatLanes& x) {
  using IntLanes = lanes::Lanes<std::int32_t>;
  // Written so that NaN passes both comparisons as it is.
  const FloatLanes low = FloatLanes{} - 87.0F, high = FloatLanes{} + 88.0F;
  x = x < low ? low : x;
  x = x > high ? high : x;
  // x = n ln 2 + r: adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  constexpr float rounder = 12582912.0F;
  const FloatLanes shifted = x * 1.44269504F + rounder;
  const FloatLanes whole = shifted - rounder;
  FloatLanes r = x - whole * 0.693359375F;  // ln 2 in two parts, of which the first is exact
  r = r + whole * 2.12194440e-4F;
  // Polynomial of exp on [-ln 2 / 2, ln 2 / 2] (Cephes, expf).
  FloatLanes p = r * 1.9875691500e-4F + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * (r * r) + r + 1.0F;
  IntLanes exponent;
  std::memcpy(&exponent, &shifted, sizeof(exponent));
  exponent = (exponent - 0x4b400000 + 127) << 23;  // the bits of the rounder, and the float's bias
  FloatLanes scale;
  std::memcpy(&scale, &exponent, sizeof(scale));
  x = p * scale;
}

/// Numbers of a row of scores or weights, with those behind the last one that row kernels may use.
[[nodiscard]] inline Index padded_count(Index count) {
  constexpr Index line = 2 * lanes::lane_count;  // whole cache lines in float32 and in bf16
  return (count + line - 1) / line * line;
}

/// weights `[padded_count(count)]` := exp(scores - their maximum), rounded to Element, of which
/// those behind `count` weigh nothing beside any other; returns their sum before rounding.
///
/// scores `[padded_count(count)]` may be written behind `count`; weights may be scores. Not
/// normalised: that is left to the far fewer elements of the output.
template <class Element>
float softmax_row(float* scores, Index count, Element* weights) {
  constexpr Index step = 2 * lanes::lane_count;
  const Index padded = padded_count(count);
  std::fill(scores + count, scores + padded, -std::numeric_limits<float>::infinity());
  FloatLanes even, odd, a, b;
  lanes::load_lanes<float, float>(scores, even);
  lanes::load_lanes<float, float>(scores + lanes::lane_count, odd);
  for (Index i = step; i < padded; i += step) {
    lanes::load_lanes<float, float>(scores + i, a);
    lanes::load_lanes<float, float>(scores + i + lanes::lane_count, b);
    even = a > even ? a : even;
    odd = b > odd ? b : odd;
  }
  even = odd > even ? odd : even;
  float best = even[0];
  for (Index i = 1; i < lanes::lane_count; ++i) best = std::max(best, even[i]);
  FloatLanes sum_even{}, sum_odd{};
  for (Index i = 0; i < padded; i += step) {
    lanes::load_lanes<float, float>(scores + i, a);
    lanes::load_lanes<float, float>(scores + i + lanes::lane_count, b);
    a -= best;
    b -= best;
    exponentiate(a);
    exponentiate(b);
    sum_even += a;
    sum_odd += b;
    round_lanes(a, weights + i);
    round_lanes(b, weights + i + lanes::lane_count);
  }
  sum_even += sum_odd;
  float sum = 0.0F;
  for (Index i = 0; i < lanes::lane_count; ++i) sum += sum_even[i];
  return sum;
}

/// softmax_row() of the first `seen` of `count` scores; the weights of the others are 0.
template <class Element>
float softmax_seen(float* scores, Index seen, Index count, Element* weights) {
  const float sum = softmax_row(scores, seen, weights);
  std::fill(weights + seen, weights + count, Element(0));
  return sum;
}

}  // namespace dllm_cache::inline v0_1::models::detail
