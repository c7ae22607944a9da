// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "dllm_cache/models/compute/backends.hpp"

namespace dllm_cache::testing {

/// Every way to compute that this build has on this processor.
inline std::vector<models::ComputeOptions> all_options() {
  std::vector<models::ComputeOptions> all;
  for (const models::Precision precision :
       {models::Precision::Float32, models::Precision::Bfloat16}) {
    for (const models::Backend backend : {models::Backend::Eigen, models::Backend::OneDnn})
      if (const models::ComputeOptions options{backend, precision}; models::can_compute(options))
        all.push_back(options);
  }
  return all;
}

}  // namespace dllm_cache::testing
