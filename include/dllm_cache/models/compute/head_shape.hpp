// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dllm_cache/base/matrix_view.hpp"

namespace dllm_cache::inline v0_1::models {

/// How the columns of queries, keys and values divide into heads.
struct HeadShape {
  Index heads = 1;
  Index kv_heads = 1;  ///< Divides `heads`; consecutive query heads share a key head.
  Index head_dim = 1;
};

/// Floating-point operations of the attention of `rows` query rows over `keys` rows of keys and
/// values.
[[nodiscard]] inline double attention_operations(Index rows, Index keys, const HeadShape& shape) {
  return 4.0 * static_cast<double>(rows) * static_cast<double>(keys) *
         static_cast<double>(shape.heads * shape.head_dim);
}

}  // namespace dllm_cache::inline v0_1::models
