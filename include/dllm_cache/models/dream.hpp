// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "dllm_cache/models/checkpoint/checkpoint_folder.hpp"
#include "dllm_cache/models/family.hpp"
#include "dllm_cache/models/load_transformer.hpp"
#include "dllm_cache/models/transformer_model.hpp"

namespace dllm_cache::inline v0_1::models {

/// Reads a Dream checkpoint (Dream-v0-Base/Instruct-7B, Dream-Coder, DiffuCoder and kin):
/// Qwen2-style config keys and tensor names, a head that predicts the next row's token. Biases are
/// those that the files have; absent ones are zero.
///
/// Throws like load_llada: naming file, key or tensor, expected and found.
[[nodiscard]] inline std::shared_ptr<const TransformerModel> load_dream(
    const CheckpointFolder& folder, const ComputeOptions& options = {},
    const TokenChoice& tokens = {}) {
  return detail::load_transformer(
      folder, required_family(folder.config_reader(), Computation::Dream), options, tokens);
}

}  // namespace dllm_cache::inline v0_1::models
