// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace dllm_cache::inline v0_1::base {

/// Finaliser of SplitMix64 (Steele, Lea, Flood 2014): every bit of the input moves every bit.
[[nodiscard]] constexpr std::uint64_t mix_bits(std::uint64_t bits) {
  bits += 0x9e3779b97f4a7c15ULL;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9ULL;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebULL;
  return bits ^ (bits >> 31);
}

}  // namespace dllm_cache::inline v0_1::base
