// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <memory>

#include "dllm_cache/models/special_ids.hpp"
#include "dllm_cache/models/transformer_model.hpp"

namespace programs {

/// models::load_model(), compiled once for all programs; prints its warnings to stderr.
[[nodiscard]] std::shared_ptr<const dllm_cache::models::TransformerModel> open_model(
    const std::filesystem::path& folder, const dllm_cache::models::ComputeOptions& options = {},
    const dllm_cache::models::TokenChoice& tokens = {});

/// Whether the model in a folder is decoded like Dream, by its config.json alone: what may be asked
/// of it is then known before its weights are read. Throws std::runtime_error naming the file, also
/// for a model of none of the families that are read.
[[nodiscard]] bool is_dream(const std::filesystem::path& folder);

}  // namespace programs
