// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "dllm_cache/models/checkpoint/checkpoint_folder.hpp"
#include "dllm_cache/models/family.hpp"
#include "dllm_cache/models/llada_sizes.hpp"
#include "dllm_cache/models/llama_sizes.hpp"
#include "dllm_cache/models/load_parts.hpp"
#include "dllm_cache/models/transformer_model.hpp"

namespace dllm_cache::inline v0_1::models::detail {

/// The kind whose names a checkpoint has: a LLaDA without `d_model` has those of Llama.
[[nodiscard]] inline const Family& as_named(const ConfigReader& reader, const Family& family) {
  const bool renamed = family.naming == Naming::LLaDA && reader.find("d_model") == nullptr &&
                       reader.find("hidden_size") != nullptr;
  return renamed ? renamed_llada : family;
}

/// Reads a checkpoint of any kind: what differs between kinds stands in `family`, nothing of it
/// here. Weights stay mapped; norms and biases are read.
///
/// Throws what load_llada() throws.
[[nodiscard]] inline std::shared_ptr<const TransformerModel> load_transformer(
    const CheckpointFolder& folder, const Family& family, const ComputeOptions& options,
    const TokenChoice& tokens) {
  const ConfigReader reader = folder.config_reader();
  const Family& kind = as_named(reader, family);
  auto model = std::make_shared<TransformerModel>();
  model->compute = options;
  TransformerConfig& config = model->config;
  config.prediction_shift = kind.prediction_shift;
  config.decoder = kind.decoder;
  const bool llada = kind.naming == Naming::LLaDA;
  if (llada)
    read_llada_sizes(reader, config);
  else
    read_llama_sizes(reader, kind.head_dim, config);
  // Tokens are below this number; MMaDA's embedding has rows behind them.
  const Index vocabulary = llada ? read_vocabulary(reader, config) : config.vocabulary;
  read_common(reader, kind, tokens, vocabulary, *model);
  const BiasRules rules = llada ? llada_bias_rules(reader) : llama_bias_rules(reader, kind);
  load_tensors(folder, *kind.names, rules, norm_epsilon(reader, kind.norm_epsilon), *model);
  return model;
}

}  // namespace dllm_cache::inline v0_1::models::detail
