// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstdint>
#include <span>

#include "dllm_cache/decoding/denoising_model.hpp"
#include "dllm_cache/policy.hpp"
#include "dllm_cache/step_lists.hpp"

namespace dllm_cache::inline v0_1 {

/// One sequence in a step that a StepModel carries out; pointers and spans are valid during the
/// call.
template <class Features>
struct SequenceStep {
  Features* features = nullptr;               ///< What make_features gave for this sequence.
  const StepLists* lists = nullptr;           ///< What is to be computed; see StepLists.
  std::span<const std::int32_t> tokens = {};  ///< One a row in the pass.
  std::span<const std::int32_t> wanted = {};  ///< Places of the rows in the pass whose logits are
                                              ///< wanted, ascending, each once; may be none.
  /// Rows recomputed, summed over layers. It is right as it is given where as many rows were
  /// selected as the plan says; a model that leaves similar rows alone writes what it did.
  Index recomputed = 0;
};

/// Part of StepModel: write `F make_features(const SequenceShape& shape, const PolicyTraits&
/// traits)` and name `F` `Features`: a movable object that holds keys and values `[rows, kv]` of
/// every layer of a sequence, and deltas `[traits.stored_deltas, d]`, and gives them back when it
/// is destroyed.
template <class M>
concept MakesFeatures = requires(M& model, const SequenceShape& shape, const PolicyTraits& traits) {
  { model.make_features(shape, traits) } -> std::same_as<typename M::Features>;
};

/// Part of StepModel: write `void forward(std::span<SequenceStep<Features>> batch,
/// MatrixView<float> logits)`: `logits [all wanted rows, vocabulary]`, those of the first sequence
/// first.
template <class M>
concept CarriesOutSteps = requires(M& model, std::span<SequenceStep<typename M::Features>> batch,
                                   MatrixView<float> logits) {
  { model.forward(batch, logits) } -> std::same_as<void>;
};

/// A masked diffusion language model that carries out whole steps, features included: a graph, a
/// device, another process. The denoising loop gives it lists and takes logits.
///
/// Rules no concept can check: forward() does for every sequence what StepLists says; where it
/// throws, the next step of each of them is a plain forward. Features may be copyable (then
/// sequences can be cloned) and may have `Index bytes() const`. One thread uses the object at a
/// time.
/// A model that leaves hidden rows out of attention (StepLists::seen) says so: `static constexpr
/// bool hides_rows = true`; others are given no policy that hides any, see check_listed().
template <class M>
concept StepModel = DescribesModel<M> && MakesFeatures<M> && CarriesOutSteps<M>;

/// Whether a step model leaves hidden rows out of attention.
template <StepModel M>
inline constexpr bool leaves_hidden_rows_out = [] {
  if constexpr (requires { M::hides_rows; })
    return static_cast<bool>(M::hides_rows);
  else
    return false;
}();

}  // namespace dllm_cache::inline v0_1
