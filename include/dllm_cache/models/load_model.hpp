// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <memory>

#include "dllm_cache/models/dream.hpp"
#include "dllm_cache/models/family.hpp"
#include "dllm_cache/models/llada.hpp"
#include "dllm_cache/models/load_transformer.hpp"
#include "dllm_cache/models/transformer_runner.hpp"

namespace dllm_cache::inline v0_1::models {

/// Opens a Hugging Face checkpoint folder and reads the model that its config.json names: one of
/// `families`. TransformerModel::warnings has what a program should tell its user.
///
/// Throws std::runtime_error naming the file and the reason, std::invalid_argument for a token of
/// `tokens` outside the vocabulary and for options that can_compute() denies, before any weight is
/// packed; see CheckpointFolder, family_of and load_llada.
[[nodiscard]] inline std::shared_ptr<const TransformerModel> load_model(
    const std::filesystem::path& path, const ComputeOptions& options = {},
    const TokenChoice& tokens = {}) {
  // What config.json says comes before any damage of the weights.
  const nlohmann::json config = read_json_object(path / "config.json");
  const ConfigReader reader(config, path / "config.json");
  const Family& family = family_of(reader);
  const CheckpointFolder folder(path);
  return detail::load_transformer(folder, family, options, tokens);
}

}  // namespace dllm_cache::inline v0_1::models
