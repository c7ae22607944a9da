// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>

#include "dllm_cache/sequence_shape.hpp"

namespace dllm_cache::inline v0_1 {

/// What the caller knows about one sequence before a step; a span is empty (not known) or has one
/// entry a row, and is only read during the call that it is given to.
struct StepInput {
  Range block = {};                            ///< Active block; empty: the whole response.
  Index block_step = 0;                        ///< Steps this sequence has done in the block.
  std::span<const std::uint8_t> masked = {};   ///< 1: the row's token is still the mask.
  std::span<const std::uint8_t> changed = {};  ///< 1: token changed since the last committed step.
  /// What the last prediction of a row's token was like, as far as the row was predicted: the
  /// probability of the likeliest token, in [0, 1]; 0 where there was none.
  std::span<const float> confidence = {};
  /// Committed steps since the row's token last changed, 0 where `changed`; 65535: longer, or
  /// never.
  std::span<const std::uint16_t> unchanged_steps = {};
  /// 1: the row's token was given and never changes; empty: so is the prompt, and nothing else.
  std::span<const std::uint8_t> given = {};
  /// Nothing is to be found in the block any more: the step stores its final features (and may
  /// predict what follows it).
  bool block_done = false;
  /// 1: the caller may commit the row's token after this step. Empty: it does not say.
  std::span<const std::uint8_t> candidates = {};
  // Of the last prediction of each row, like `confidence`:
  std::span<const float> entropy = {};  ///< Entropy of it, in nats; 0 where there was none.
  /// The likeliest token's probability less the second's, in [0, 1]; 0 where there was none.
  std::span<const float> gap = {};
  /// KL divergence of it from the prediction before, in nats, at least 0; infinity where there were
  /// fewer than two.
  std::span<const float> change = {};
};

/// What a policy sees: the caller's knowledge, the shape and the cache's own counters.
struct StepContext : StepInput {
  SequenceShape shape;
  Index layers = 0;  ///< Layers of the model, at least 1.
  Index step = 0;    ///< Committed steps of this sequence so far.
  /// Rows `[0, settled)` have final features: they were recomputed with the tokens that they still
  /// have, over keys that are final too, and lie before open(). 0 where attention is bidirectional,
  /// since every row then sees those that change.
  Index settled = 0;
  /// Nothing that is stored may be read: every live row that the plan does not hide is recomputed,
  /// whatever it says. Only policies with a memory are asked then; see CachePolicy.
  bool stale = false;

  [[nodiscard]] Range prompt() const { return {0, shape.prompt}; }
  [[nodiscard]] Range response() const { return {shape.prompt, shape.rows()}; }
  /// The block being decoded: `block`, or the response when the caller named none.
  [[nodiscard]] Range active_block() const { return block.empty() ? response() : block; }
  /// Whether a row's token was given and never changes; `0 <= row < shape.rows()` (unchecked).
  [[nodiscard]] bool is_given(Index row) const {
    return given.empty() ? row < shape.prompt : given[static_cast<std::size_t>(row)] != 0;
  }
  /// Whether nothing is to be found at a row: its token was given, and so was the one it predicts.
  [[nodiscard]] bool rests(Index row) const {
    const Index predicted = row + shape.prediction_shift;
    return is_given(row) && (predicted >= shape.rows() || is_given(predicted));
  }
  /// The first row whose token may still change: with block-causal attention that of the block of
  /// attention in which the active block lies, or what follows it where it is done; else 0.
  [[nodiscard]] Index open() const {
    if (shape.attention_block == 0) return 0;
    const Range active = active_block();
    return block_done ? shape.key_end(std::max<Index>(active.end - 1, 0))
                      : shape.block_begin(active.begin);
  }
  /// Rows before open() that are not settled: a step that reads their keys must recompute them.
  [[nodiscard]] Range to_settle() const { return {settled, open()}; }
  /// Rows that are not settled, to the end of live().
  [[nodiscard]] Range unsettled() const { return {settled, live().end}; }
  /// Rows that exist in this step: with block-causal attention nothing after the active block.
  [[nodiscard]] Range live() const {
    if (shape.attention_block == 0) return {0, shape.rows()};
    return {0, shape.key_end(std::max<Index>(active_block().end - 1, 0))};
  }
};

/// Interval of a refresh that never falls due after the first step.
inline constexpr Index never = std::numeric_limits<Index>::max();

/// The largest step or count that a sequence can be resumed with: from there no run overflows.
inline constexpr Index most_counted = never / 4;

}  // namespace dllm_cache::inline v0_1
