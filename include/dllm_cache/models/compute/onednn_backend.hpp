// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dllm_cache/models/compute/backend.hpp"
#include "dllm_cache/models/compute/onednn.hpp"
#include "dllm_cache/models/compute/onednn_attention.hpp"

namespace dllm_cache::inline v0_1::models {

/// Computing with oneDNN, as BackendList wants it.
struct OneDnnBackend {
  static constexpr Backend id = Backend::OneDnn;
  static constexpr bool multiplies_bf16 = true;
  [[nodiscard]] static bool computes(Precision precision) {
    return precision != Precision::Bfloat16 || detail::onednn_multiplies_bf16();
  }
  using Weights = PackedWeights;
  using Products = OneDnnProducts;
  using Attention = OneDnnAttention;
};

}  // namespace dllm_cache::inline v0_1::models
