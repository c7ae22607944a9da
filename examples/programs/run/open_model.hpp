// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <memory>

#include "dllm_cache/models/transformer_model.hpp"

namespace programs {

/// models::load_model(), compiled once for all programs.
[[nodiscard]] std::shared_ptr<const dllm_cache::models::TransformerModel> open_model(
    const std::filesystem::path& folder, const dllm_cache::models::ComputeOptions& options = {});

}  // namespace programs
