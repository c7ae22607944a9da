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

}  // namespace dllm_cache::inline v0_1::models
