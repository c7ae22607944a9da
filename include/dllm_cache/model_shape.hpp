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
  /// Query heads, at most 2^16; 0: not said, and no policy can watch attention. They divide
  /// `query_width` into heads of one width, which divides `kv_width`; key heads divide them.
  Index heads = 0;
  double attention_scale = 0.0;  ///< What `q . k` is multiplied by; 0: 1 / sqrt(head width).
  Index verify_width = 0;  ///< Width of the feature that layers compute for verifying, at most
                           ///< 2^24; 0: none. See ComputesVerifyFeatures.

  /// Width of a head; `heads` must not be 0.
  [[nodiscard]] constexpr Index head_width() const { return query_width / heads; }
  /// Key heads; `heads` must not be 0.
  [[nodiscard]] constexpr Index kv_heads() const { return kv_width / head_width(); }

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
  const auto check_optional = [](const char* field, Index value, Index most) {
    if (value < 0 || value > most)
      base::refuse_argument("ModelShape: ", field, " must be in [0, ", most, "], got ", value);
  };
  check_optional("heads", shape.heads, Index{1} << 16);
  check_optional("verify_width", shape.verify_width, Index{1} << 24);
  if (!(shape.attention_scale >= 0.0 && shape.attention_scale <= 1e6))
    base::refuse_argument("ModelShape: attention_scale must be in [0, 10^6], got ",
                          shape.attention_scale);
  if (shape.heads == 0) return;
  if (shape.query_width % shape.heads != 0)
    base::refuse_argument("ModelShape: heads must divide query_width = ", shape.query_width,
                          ", got ", shape.heads);
  if (shape.kv_width % shape.head_width() != 0)
    base::refuse_argument("ModelShape: kv_width must be a multiple of the head width = ",
                          shape.head_width(), ", got ", shape.kv_width);
  if (shape.heads % shape.kv_heads() != 0)
    base::refuse_argument("ModelShape: heads must be a multiple of the key heads = ",
                          shape.kv_heads(), ", got ", shape.heads);
}

}  // namespace dllm_cache::inline v0_1
