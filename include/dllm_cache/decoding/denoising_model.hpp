// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstdint>
#include <span>

#include "dllm_cache/decoding/sequence_state.hpp"
#include "dllm_cache/feature_cache.hpp"
#include "dllm_cache/layer.hpp"

namespace dllm_cache::inline v0_1 {

/// Part of DenoisingModel: write `ModelShape shape() const`, `Index vocabulary() const` (logits a
/// row), `Index prediction_shift() const` (0, or 1 when row i - 1 predicts token i) and
/// `SpecialTokens special_tokens() const`.
template <class M>
concept DescribesModel = requires(const M& model) {
  { model.shape() } -> std::convertible_to<ModelShape>;
  { model.vocabulary() } -> std::convertible_to<Index>;
  { model.prediction_shift() } -> std::convertible_to<Index>;
  { model.special_tokens() } -> std::convertible_to<SpecialTokens>;
};

/// Part of DenoisingModel: write `void embed(std::span<const std::int32_t> tokens,
/// MatrixView<float> x)`: `x [tokens, d]`.
template <class M>
concept EmbedsTokens = requires(M& model, std::span<const std::int32_t> tokens,
                                MatrixView<float> x) {
  { model.embed(tokens, x) } -> std::same_as<void>;
};

/// Part of DenoisingModel: write `L layer(Index number)` that gives a TransformerLayer (a handle).
template <class M, class Stored>
concept HasLayers = requires(M& model, Index number) {
  requires TransformerLayer < std::remove_reference_t<decltype(model.layer(number))>,
  float, Stored > ;
};

/// Part of DenoisingModel: write `void logits(MatrixView<const float> x, MatrixView<float>
/// logits)`: final norm and head, `x [m, d] -> logits [m, vocabulary]`.
template <class M>
concept ComputesLogits = requires(M& model, MatrixView<const float> x, MatrixView<float> logits) {
  { model.logits(x, logits) } -> std::same_as<void>;
};

/// What a DenoisingModel may have besides: `Index embeddings() const`, at least `vocabulary()`.
///
/// Tokens of a prompt from `vocabulary()` up to there name rows that no text stands for, such as
/// those that an image encoder computed; `embed` knows them, and nothing predicts them.
template <class M>
concept HasMoreEmbeddings = requires(const M& model) {
  { model.embeddings() } -> std::convertible_to<Index>;
};

namespace detail {

/// Tokens that a model can embed: [0, count).
template <DescribesModel M>
[[nodiscard]] Index count_embeddings(const M& model) {
  if constexpr (HasMoreEmbeddings<M>)
    return model.embeddings();
  else
    return model.vocabulary();
}

}  // namespace detail

/// A masked diffusion language model as the denoising loop sees it: embedding, layers, head.
///
/// Rules no concept can check: the functions may throw and are never given zero rows; one thread
/// uses the object at a time.
template <class M, class Stored = float>
concept DenoisingModel =
    DescribesModel<M> && EmbedsTokens<M> && HasLayers<M, Stored> && ComputesLogits<M>;

}  // namespace dllm_cache::inline v0_1
