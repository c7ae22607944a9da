// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <memory>

#include "dllm_cache/models/dream.hpp"
#include "dllm_cache/models/family.hpp"
#include "dllm_cache/models/llada.hpp"
#include "dllm_cache/models/transformer_runner.hpp"

namespace dllm_cache::inline v0_1::models {

/// Opens a Hugging Face checkpoint folder and reads the model that its config.json names.
///
/// `tokens` says what the checkpoint does not: its mask, or further tokens that end a text. Throws
/// std::runtime_error naming the file and the reason; see CheckpointFolder, family_of and
/// load_llada. TransformerModel::warnings says what is odd about a checkpoint that was read.
[[nodiscard]] inline std::shared_ptr<const TransformerModel> load_model(
    const std::filesystem::path& path, const ComputeOptions& options = {},
    const TokenChoice& tokens = {}) {
  const CheckpointFolder folder(path);
  switch (family_of(folder.config_reader())) {
    case Family::Llada:
      return load_llada(folder, options, tokens);
    case Family::Dream:
      break;
  }
  return load_dream(folder, options, tokens);
}

}  // namespace dllm_cache::inline v0_1::models
