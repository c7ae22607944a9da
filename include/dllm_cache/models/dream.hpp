// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "dllm_cache/models/checkpoint/checkpoint_folder.hpp"
#include "dllm_cache/models/family.hpp"
#include "dllm_cache/models/llama_sizes.hpp"
#include "dllm_cache/models/load_parts.hpp"
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
  const ConfigReader reader = folder.config_reader();
  require_computation(reader, Computation::Dream);
  auto model = std::make_shared<TransformerModel>();
  model->compute = options;
  TransformerConfig& config = model->config;
  detail::read_llama_sizes(reader, config);
  const double epsilon = detail::norm_epsilon(reader, 1e-6);
  config.prediction_shift = 1;
  detail::read_common(reader, Naming::Llama, tokens, config.vocabulary, *model);
  detail::load_tensors(folder, dream_names(), detail::llama_bias_rules(reader), epsilon, *model);
  return model;
}

}  // namespace dllm_cache::inline v0_1::models
