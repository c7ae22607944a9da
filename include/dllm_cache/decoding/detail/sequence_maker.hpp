// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <memory>
#include <memory_resource>
#include <optional>
#include <span>
#include <utility>

#include "dllm_cache/decoding/denoising_model.hpp"
#include "dllm_cache/decoding/detail/loop_sequence.hpp"

namespace dllm_cache::inline v0_1::detail {

/// Makes the sequences of a DenoisingLoop: checks what it is given, and knows what a sequence looks
/// like to a cache.
template <class Engine>
class SequenceMaker {
 public:
  using Model = typename Engine::ModelType;
  using Cache = typename Engine::Cache;
  using Selector = typename Cache::SelectorType;

  SequenceMaker(Model& model, std::pmr::memory_resource* resource, Selector selector)
      : m_model(&model), m_resource(resource), m_selector(std::move(selector)) {}

  [[nodiscard]] const Selector& selector() const { return m_selector; }

  /// The state of a new sequence; throws std::invalid_argument.
  [[nodiscard]] SequenceState state(std::span<const std::int32_t> prompt,
                                    const DecodingOptions& options) const {
    check_tokens(prompt, "prompt", count_embeddings(*m_model));
    check_tokens(options.suppress_tokens, "suppress_tokens", m_model->vocabulary());
    check_tokens(options.commit_last, "commit_last", m_model->vocabulary());
    if (options.commit_next && m_model->prediction_shift() == 0)
      base::refuse_argument(
          "DenoisingLoop: commit_next needs a model whose rows predict the next one's token");
    return SequenceState(prompt, options, m_model->special_tokens());
  }
  /// The state of a saved one; throws std::runtime_error.
  [[nodiscard]] SequenceState state(SnapshotReader& in) const {
    SequenceState state = SequenceState::restored(in, m_model->special_tokens());
    for (const std::int32_t token : state.tokens())
      if (token < 0 || token >= count_embeddings(*m_model))
        in.refuse("tokens must be in [0, ", count_embeddings(*m_model), "), got ", token);
    return state;
  }

  /// A sequence as a cache sees it. To it a prompt ends where the first gap begins: what follows
  /// changes.
  [[nodiscard]] SequenceShape shape_of(const SequenceState& state) const {
    const Index shift = m_model->prediction_shift();
    SequenceShape shape = state.layout().shape(shift);
    if (!state.has_gaps()) return shape;
    shape.prompt = std::max(state.first_to_fill(), shift);
    shape.response = static_cast<Index>(state.tokens().size()) - shape.prompt;
    return shape;
  }

  /// What a new sequence's policy is told of predictions: nothing yet. Throws like
  /// AnyPolicy::traits.
  [[nodiscard]] Observations observations(const SequenceState& state,
                                          const AnyPolicy& policy) const {
    return {policy.traits(shape_of(state)), state.tokens().size(), m_model->vocabulary()};
  }

  /// The unconditional run of a sequence, where its options want one.
  [[nodiscard]] std::optional<UnconditionalRun<Cache>> guided(const SequenceState& state,
                                                              const AnyPolicy& policy) const {
    const DecodingOptions& options = state.options();
    if (!(options.guidance_scale > 0.0)) return std::nullopt;
    return UnconditionalRun<Cache>(
        cache(state, policy),
        Guidance(options.guidance_scale, options.guidance_interval,
                 static_cast<Index>(state.tokens().size()) - state.first_to_fill(),
                 m_model->vocabulary()),
        state.tokens().size());
  }

  [[nodiscard]] std::unique_ptr<LoopSequence<Cache>> sequence(Index number, SequenceState state,
                                                              const AnyPolicy& policy) const {
    Cache features = cache(state, policy);
    auto run = guided(state, policy);
    Observations observed = observations(state, policy);
    auto made =
        std::make_unique<LoopSequence<Cache>>(number, std::move(state), std::move(features));
    made->observed = std::move(observed);
    made->guided = std::move(run);
    return made;
  }

 private:
  static void check_tokens(std::span<const std::int32_t> tokens, const char* what, Index most) {
    for (const std::int32_t token : tokens)
      if (token < 0 || token >= most)
        base::refuse_argument("DenoisingLoop: ", what, " must hold tokens in [0, ", most, "), got ",
                              token);
  }

  [[nodiscard]] Cache cache(const SequenceState& state, const AnyPolicy& policy) const {
    return Engine::make_cache(*m_model, shape_of(state), policy, m_resource, m_selector);
  }

  Model* m_model;
  std::pmr::memory_resource* m_resource;
  Selector m_selector;
};

}  // namespace dllm_cache::inline v0_1::detail
