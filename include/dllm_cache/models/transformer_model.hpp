// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dllm_cache/decoding/sequence_state.hpp"
#include "dllm_cache/feature_cache.hpp"
#include "dllm_cache/models/compute/head_shape.hpp"
#include "dllm_cache/models/compute/linear.hpp"
#include "dllm_cache/models/compute/row_operations.hpp"
#include "dllm_cache/models/value_projection.hpp"

namespace dllm_cache::inline v0_1::models {

/// What all kinds have in common: a pre-norm transformer with rotary embedding, grouped queries and
/// a gated feed-forward. Read from config.json by the loaders, which check the ranges.
struct TransformerConfig {
  Index layers = 0;
  Index width = 0;
  HeadShape heads;
  Index feed_forward = 0;
  Index vocabulary = 0;  ///< Rows of the embedding and logits a row.
  double rotary_theta = 1e4;
  RotaryScaling rotary_scaling;
  Index max_positions = 0;  ///< Rows that the model was made for, 0 where config.json has no word.
  Index prediction_shift = 0;
  /// Rows in a block of the block-causal attention that the checkpoint was made for; 0: it is
  /// bidirectional, or no one says.
  Index attention_block = 0;
  std::string decoder;  ///< Loop that decodes by default: llada, dream, mdlm, sdar, fastdllm-v2.
  SpecialTokens special;

  [[nodiscard]] Index query_width() const { return heads.heads * heads.head_dim; }
  [[nodiscard]] Index kv_width() const { return heads.kv_heads * heads.head_dim; }
};

/// Weights of one layer.
struct LayerWeights {
  RmsNorm attention_norm;
  RmsNorm feed_forward_norm;
  Linear query, key, value, output;
  ValueProjection verify;        ///< Empty where ComputeOptions::verify_rank is 0.
  RmsNorm query_norm, key_norm;  ///< `[head_dim]`, for each head by itself; empty weight: none.
  Linear gate, up, down;         // the router and experts of a mixture would stand here
};

/// A loaded model: const, shared between threads; see load_model and TransformerRunner.
struct TransformerModel {
  std::string architecture;  ///< Whose tensor names it has, for tensor_names().
  TransformerConfig config;
  ComputeOptions compute;  ///< What the weights were laid out for.
  Tensor embedding;        ///< `[vocabulary, width]`
  std::vector<LayerWeights> layers;
  RmsNorm final_norm;
  Linear head;                           ///< `[vocabulary, width]`; the embedding itself when tied.
  std::shared_ptr<const void> lifetime;  ///< Keeps the mapped weights alive.
  /// What of the checkpoint was not read though it may matter, one line each, without "warning".
  std::vector<std::string> warnings;
};

}  // namespace dllm_cache::inline v0_1::models
