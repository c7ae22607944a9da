// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "dllm_cache/models/llama_style.hpp"

namespace dllm_cache::inline v0_1::models {

/// Reads a Dream checkpoint (Dream-v0-Base/Instruct-7B, Dream-Coder, DiffuCoder and kin):
/// Qwen2-style config keys and tensor names, a head that predicts the next row's token. Biases of
/// queries, keys and values are read where `attention_bias` is true, or absent and they are there.
///
/// Throws like load_llada.
[[nodiscard]] inline std::shared_ptr<const TransformerModel> load_dream(
    const CheckpointFolder& folder, const ComputeOptions& options = {},
    const TokenChoice& tokens = {}) {
  return detail::load_llama_style(
      folder, options, tokens,
      {.architecture = "DreamModel", .epsilon = 1e-6, .prediction_shift = 1});
}

}  // namespace dllm_cache::inline v0_1::models
