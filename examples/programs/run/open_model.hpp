// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <memory>

#include "dllm_cache/models/transformer_model.hpp"
#include "programs/options/settings.hpp"
#include "programs/text/warnings.hpp"

namespace programs {

/// models::load_model(), compiled once for all programs, with the tokens that were asked for; says
/// what is to be known about the checkpoint.
[[nodiscard]] std::shared_ptr<const dllm_cache::models::TransformerModel> open_model(
    const std::filesystem::path& folder, const dllm_cache::models::ComputeOptions& options,
    const TokenSettings& tokens, Warnings& warnings);

/// The same options with what a policy wants of the layers: a projection to verify rows by.
[[nodiscard]] dllm_cache::models::ComputeOptions options_for(
    dllm_cache::models::ComputeOptions options, const dllm_cache::AnyPolicy& policy);

/// How the model in a folder is decoded, by its config.json alone: what may be asked of it is then
/// known before its weights are read. Throws std::runtime_error naming the file.
[[nodiscard]] ModelDecoding decoding_of(const std::filesystem::path& folder);

}  // namespace programs
