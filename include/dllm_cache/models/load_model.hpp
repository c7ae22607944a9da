// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "dllm_cache/models/dream.hpp"
#include "dllm_cache/models/llada.hpp"
#include "dllm_cache/models/transformer_runner.hpp"

namespace dllm_cache::inline v0_1::models {

/// Opens a Hugging Face checkpoint folder and reads the model that its config.json names.
///
/// Throws std::runtime_error naming the file and the reason; see CheckpointFolder and load_llada.
[[nodiscard]] inline std::shared_ptr<const TransformerModel> load_model(
    const std::filesystem::path& path, const ComputeOptions& options = {}) {
  const CheckpointFolder folder(path);
  const ConfigReader reader = folder.config_reader();
  const std::string kind = reader.string("model_type");
  if (kind == "llada") return load_llada(folder, options);
  if (kind == "Dream") return load_dream(folder, options);
  reader.refuse("model_type", "\"llada\" or \"Dream\"");
}

}  // namespace dllm_cache::inline v0_1::models
