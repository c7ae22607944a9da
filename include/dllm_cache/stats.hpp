// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dllm_cache/base/matrix_view.hpp"

namespace dllm_cache {

/// Work done in committed steps, in rows; plain numbers, add them as you like.
struct RowCounts {
  Index flow = 0;    ///< Rows that passed through the layers, summed over steps.
  Index value = 0;   ///< Values computed, summed over steps and layers.
  Index update = 0;  ///< Rows recomputed (key, query, update), summed over steps and layers.
  Index head = 0;    ///< Rows whose logits were computed, summed over steps; the decoding loop's.

  RowCounts& operator+=(const RowCounts& other) {
    flow += other.flow;
    value += other.value;
    update += other.update;
    head += other.head;
    return *this;
  }
  friend bool operator==(const RowCounts&, const RowCounts&) = default;
};

}  // namespace dllm_cache
