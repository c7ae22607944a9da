// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dllm_cache/base/matrix_view.hpp"

// 1 where oneDNN is linked (the CMake target dllm_cache::models sets it).
#ifndef DLLM_CACHE_HAS_ONEDNN
#define DLLM_CACHE_HAS_ONEDNN 0
#endif

namespace dllm_cache::inline v0_1::models {

/// Who computes the matrix products of the bundled models.
enum class Backend {
  Eigen,  ///< Always there.
  OneDnn  ///< Where the library was built with oneDNN 2.6 or newer; weights are packed once at
          ///< load.
};

/// What weights and products are computed in; sums are always float32.
enum class Precision {
  Float32,
  Bfloat16  ///< Weights, and with oneDNN the rows that meet them, rounded to bf16.
};

/// A backend's name, for messages.
[[nodiscard]] constexpr const char* name_of(Backend backend) {
  switch (backend) {
    case Backend::Eigen:
      return "Eigen";
    case Backend::OneDnn:
      return "oneDNN";
  }
  return "unknown";
}

/// A precision's name, for messages.
[[nodiscard]] constexpr const char* name_of(Precision precision) {
  return precision == Precision::Float32 ? "float32" : "bf16";
}

/// Whether oneDNN was built in.
inline constexpr bool has_onednn = DLLM_CACHE_HAS_ONEDNN != 0;

/// How a model computes (see can_compute()); chosen at load, since weights are laid out for it.
struct ComputeOptions {
  Backend backend = has_onednn ? Backend::OneDnn : Backend::Eigen;
  Precision precision = Precision::Float32;
  /// Rank of the projection by which rows may be verified in place of their values, in [1, kv
  /// width]; 0: there is none. See ValueProjection and SpaCachePolicy.
  Index verify_rank = 0;
};

}  // namespace dllm_cache::inline v0_1::models
