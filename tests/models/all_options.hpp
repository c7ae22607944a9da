// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "dllm_cache/models/compute/backend.hpp"

namespace dllm_cache::testing {

/// Every way to compute that this build has.
inline std::vector<models::ComputeOptions> all_options() {
  std::vector<models::ComputeOptions> all;
  for (const models::Precision precision :
       {models::Precision::Float32, models::Precision::Bfloat16}) {
    all.push_back({models::Backend::Eigen, precision});
    if (models::has_onednn) all.push_back({models::Backend::OneDnn, precision});
  }
  return all;
}

}  // namespace dllm_cache::testing
