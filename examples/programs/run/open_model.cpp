// SPDX-License-Identifier: Apache-2.0
#include "programs/run/open_model.hpp"

#include "dllm_cache/models/load_model.hpp"

namespace programs {

std::shared_ptr<const dllm_cache::models::TransformerModel> open_model(
    const std::filesystem::path& folder, const dllm_cache::models::ComputeOptions& options) {
  return dllm_cache::models::load_model(folder, options);
}

}  // namespace programs
