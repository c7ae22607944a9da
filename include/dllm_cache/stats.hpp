// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dllm_cache/base/matrix_view.hpp"

namespace dllm_cache::inline v0_1 {

/// Work done in committed steps, in rows; plain numbers, add them as you like.
struct RowCounts {
  Index rows = 0;        ///< Rows that went through the layers, summed over steps.
  Index values = 0;      ///< Values computed, summed over steps and layers.
  Index recomputed = 0;  ///< Rows recomputed (key, query, delta), summed over steps and layers.

  RowCounts& operator+=(const RowCounts& other) {
    rows += other.rows;
    values += other.values;
    recomputed += other.recomputed;
    return *this;
  }
  friend bool operator==(const RowCounts&, const RowCounts&) = default;
};

}  // namespace dllm_cache::inline v0_1
