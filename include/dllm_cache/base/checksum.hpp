// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "dllm_cache/base/mix_bits.hpp"

namespace dllm_cache::inline v0_1::base {

/// 64-bit checksum against accidents, not against forgers: of the pieces in order, each with its
/// length. Pieces cut otherwise give another sum.
class Checksum {
 public:
  void add(std::span<const std::byte> piece) {
    add_word(0, piece.size());
    const std::byte* at = piece.data();
    std::size_t left = piece.size();
    // Four chains, so that the latency of a multiplication is hidden.
    for (; left >= stripe; at += stripe, left -= stripe)
      for (std::size_t lane = 0; lane < lanes; ++lane) {
        std::uint64_t word = 0;
        std::memcpy(&word, at + lane * sizeof(word), sizeof(word));
        add_word(lane, word);
      }
    std::array<std::uint64_t, lanes> rest{};
    if (left > 0) std::memcpy(rest.data(), at, left);
    for (std::size_t lane = 0; lane < lanes; ++lane) add_word(lane, rest[lane]);
  }

  [[nodiscard]] std::uint64_t value() const {
    std::uint64_t sum = 0;
    for (const std::uint64_t lane : m_lanes) sum = mix_bits(sum ^ lane);
    return sum;
  }

 private:
  static constexpr std::size_t lanes = 4;
  static constexpr std::size_t stripe = lanes * sizeof(std::uint64_t);

  void add_word(std::size_t lane, std::uint64_t word) {
    m_lanes[lane] = mix_bits(m_lanes[lane] ^ word);
  }

  std::array<std::uint64_t, lanes> m_lanes = {1, 2, 3, 4};
};

}  // namespace dllm_cache::inline v0_1::base
