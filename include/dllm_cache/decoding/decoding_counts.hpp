// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dllm_cache/stats.hpp"

namespace dllm_cache::inline v0_1 {

/// Work done in the committed steps of a sequence that is decoded: that of its layers, and the rows
/// whose logits were computed, summed over steps.
struct DecodingCounts : RowCounts {
  Index logits = 0;

  DecodingCounts& operator+=(const DecodingCounts& other) {
    RowCounts::operator+=(other);
    logits += other.logits;
    return *this;
  }
  friend bool operator==(const DecodingCounts&, const DecodingCounts&) = default;
};

}  // namespace dllm_cache::inline v0_1
