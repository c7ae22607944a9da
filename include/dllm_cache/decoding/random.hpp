// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "dllm_cache/base/mix_bits.hpp"

namespace dllm_cache::inline v0_1 {

/// Names one row of one step of one sequence: random numbers depend on nothing else, so that a
/// batch draws what single runs draw, in whatever order.
struct RandomKey {
  std::uint64_t seed = 0;
  std::uint64_t sequence = 0;
  std::uint64_t step = 0;
  std::uint64_t row = 0;
};

/// Independent uses of randomness within one row.
enum class RandomUse : std::uint64_t { Token = 1, Confidence = 2, Order = 3 };

/// A stream of uniform numbers for one row, addressed by index rather than drawn in order.
class RowRandom {
 public:
  RowRandom(const RandomKey& key, RandomUse use)
      : m_base(base::mix_bits(static_cast<std::uint64_t>(use))) {
    // Chained, so that (1, 2) and (2, 1) differ.
    for (const std::uint64_t part : {key.seed, key.sequence, key.step, key.row})
      m_base = base::mix_bits(m_base ^ part);
  }

  /// Number `index` of the stream, uniform in the open interval (0, 1).
  [[nodiscard]] double uniform(std::uint64_t index) const {
    const std::uint64_t bits = base::mix_bits(m_base + index * 0xd1342543de82ef95ULL);
    // 52 bits: with 53 the half would be rounded away, up to 1 at the end.
    return (static_cast<double>(bits >> 12) + 0.5) * 0x1.0p-52;
  }

  /// Number `index` of the stream, standard Gumbel: -log(-log(u)).
  [[nodiscard]] double gumbel(std::uint64_t index) const {
    return -std::log(-std::log(uniform(index)));
  }

 private:
  std::uint64_t m_base;
};

}  // namespace dllm_cache::inline v0_1
