// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dllm_cache/base/error.hpp"
#include "dllm_cache/base/matrix_view.hpp"

namespace dllm_cache::inline v0_1 {

/// Widths of a model as the cache needs to know them.
struct ModelShape {
  Index layers = 0;       ///< Transformer layers, 1 to 2^16.
  Index width = 0;        ///< Width d of the hidden state, 1 to 2^24.
  Index query_width = 0;  ///< heads * head_dim, 1 to 2^24; may differ from `width`.
  Index kv_width = 0;     ///< kv_heads * head_dim of keys and of values, 1 to 2^24.
  /// Rows of keys and of values in memory are rounded up to a multiple of this, 1 to 4096; those
  /// behind the sequence are zero. For products that are fast over 16 or 32 rows at a time.
  Index row_multiple = 1;

  friend bool operator==(const ModelShape&, const ModelShape&) = default;
};

/// Refuses widths outside their legal range; throws std::invalid_argument naming the field.
inline void check_shape(const ModelShape& shape) {
  const auto check = [](const char* field, Index value, Index most) {
    if (value < 1 || value > most)
      base::refuse_argument("ModelShape: ", field, " must be in [1, ", most, "], got ", value);
  };
  check("layers", shape.layers, Index{1} << 16);
  check("width", shape.width, Index{1} << 24);
  check("query_width", shape.query_width, Index{1} << 24);
  check("kv_width", shape.kv_width, Index{1} << 24);
  check("row_multiple", shape.row_multiple, 4096);
}

}  // namespace dllm_cache::inline v0_1
