// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "dllm_cache/base/matrix_view.hpp"
#include "dllm_cache/models/compute/rounding.hpp"

namespace dllm_cache::inline v0_1::models::detail {

/// Packs columns `[begin, begin + count)` of rows `[first, first + rows)` densely as Element and
/// asks for those behind them.
///
/// Rows of a cache lie a power of two apart more often than not, so that they evict each other from
/// the first-level cache, and hardware does not foresee such strides.
template <class Element, class Stored>
void pack_columns(MatrixView<const Stored> kept, Index first, Index rows, Index begin, Index count,
                  Element* packed) {
  constexpr Index ahead = 64;  // rows: far enough for main memory to answer
  for (Index row = first; row < first + rows; ++row) {
    const Stored* const later = kept.row(std::min(row + ahead, kept.rows - 1)) + begin;
    for (Index column = 0; column < count; column += 64 / static_cast<Index>(sizeof(Stored)))
      __builtin_prefetch(later + column, 0, 2);
    const Stored* const from = kept.row(row) + begin;
    if constexpr (std::is_same_v<Stored, Element>) {
      Index done = 0;  // in place of a call: a head has a few hundred bytes
      for (; done + lanes::lane_count <= count; done += lanes::lane_count)
        std::memcpy(static_cast<void*>(packed + done), from + done,
                    lanes::lane_count * sizeof(Element));
      std::copy_n(from + done, count - done, packed + done);
    } else if constexpr (std::is_same_v<Stored, float>) {
      round_row(from, packed, count);
    } else {
      lanes::convert_row(from, packed, count);
    }
    packed += count;
  }
}

}  // namespace dllm_cache::inline v0_1::models::detail
