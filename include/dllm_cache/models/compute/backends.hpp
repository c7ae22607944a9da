// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dllm_cache/models/compute/backend_list.hpp"
#include "dllm_cache/models/compute/eigen_backend.hpp"

// The one place that asks which backends are built in. To add one: its name in backend.hpp, a
// struct as BackendList wants it in headers of its own, and a place in the list here.
#if DLLM_CACHE_HAS_ONEDNN
#include "dllm_cache/models/compute/onednn_backend.hpp"
namespace dllm_cache::inline v0_1::models::detail {
using Backends = BackendList<EigenBackend, OneDnnBackend>;
}
#else
namespace dllm_cache::inline v0_1::models::detail {
using Backends = BackendList<EigenBackend>;
}
#endif

namespace dllm_cache::inline v0_1::models {

/// Whether the rows of products are bf16, not float: for ProductInput::resize.
[[nodiscard]] constexpr bool multiplies_bf16(const ComputeOptions& options) {
  return detail::Backends::multiplies_bf16(options);
}

/// Whether a model can be loaded with these options: their backend is built in and has products of
/// their precision on this processor. Any thread may ask.
[[nodiscard]] inline bool can_compute(const ComputeOptions& options) {
  return detail::Backends::computes(options);
}

}  // namespace dllm_cache::inline v0_1::models
