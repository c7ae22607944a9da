// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dllm_cache/models/compute/backend.hpp"
#include "dllm_cache/models/compute/eigen_attention.hpp"
#include "dllm_cache/models/compute/eigen_weights.hpp"
#include "dllm_cache/models/compute/parallel.hpp"
#include "dllm_cache/models/compute/product_input.hpp"

namespace dllm_cache::inline v0_1::models {

/// Products with weights that Eigen reads; keeps nothing between calls.
class EigenProducts {
 public:
  /// Rows that inputs and padded outputs of a product of `rows` rows need memory for.
  [[nodiscard]] static Index padded_rows(Index rows) { return rows; }

  /// y `[m, outputs]` = x `[m, inputs]` W^T; x is float and overlaps no y.
  void multiply(const EigenWeights& weights, const ProductRows& x, MatrixView<float> y,
                bool /*padded*/, ThreadTeam& team) {
    weights.multiply(dense_view(x.floats, x.rows, weights.inputs()), y, team);
  }
};

/// Computing with Eigen, as BackendList wants it.
struct EigenBackend {
  static constexpr Backend id = Backend::Eigen;
  static constexpr bool multiplies_bf16 = false;
  [[nodiscard]] static bool computes(Precision /*precision*/) { return true; }
  using Weights = EigenWeights;
  using Products = EigenProducts;
  using Attention = EigenAttention;
};

}  // namespace dllm_cache::inline v0_1::models
