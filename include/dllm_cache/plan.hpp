// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

#include "dllm_cache/base/error.hpp"
#include "dllm_cache/base/matrix_view.hpp"

namespace dllm_cache::inline v0_1 {

/// Half-open range `[begin, end)` of rows of one sequence, or of layers.
struct Range {
  Index begin = 0;
  Index end = 0;

  [[nodiscard]] constexpr Index size() const { return end - begin; }
  [[nodiscard]] constexpr bool empty() const { return end <= begin; }
  [[nodiscard]] constexpr bool contains(Index row) const { return begin <= row && row < end; }
  friend constexpr bool operator==(Range, Range) = default;
};

/// Shape of one sequence: prompt rows `[0, prompt)`, response rows `[prompt, prompt + response)`.
struct SequenceShape {
  Index prompt = 0;            ///< Rows of the prompt, at least 0.
  Index response = 0;          ///< Rows of the response, at least 0; one row or more in all.
  Index prediction_shift = 0;  ///< Row `i - shift` predicts token `i`: LLaDA 0, Dream 1; <= prompt.
  Index attention_block = 0;   ///< Rows per block of block-causal attention; 0: bidirectional.
  Index attention_phase = 0;   ///< A row at which a block of attention begins.
  std::span<const std::int32_t> positions = {};  ///< Rotary position a row; empty: 0, 1, 2, ...
  /// Rows before the active block see no row behind their own: the block is decoded with
  /// block-causal attention, its final features are causal. Wants an attention block.
  bool causal_commit = false;

  /// Rows of the sequence, prompt and response.
  [[nodiscard]] constexpr Index rows() const { return prompt + response; }

  /// One past the last row whose key row `row` may see; the first is always row 0.
  [[nodiscard]] constexpr Index key_end(Index row) const {
    if (attention_block == 0) return rows();
    return std::min(rows(), attention_phase + (block_of(row) + 1) * attention_block);
  }
  /// The same in a step that decodes rows from `open` on; see StepContext::open() and
  /// `causal_commit`.
  [[nodiscard]] constexpr Index key_end(Index row, Index open) const {
    return causal_commit && row < open ? row + 1 : key_end(row);
  }
  /// First row of the block of attention that `row` lies in; 0 where attention is bidirectional.
  [[nodiscard]] constexpr Index block_begin(Index row) const {
    if (attention_block == 0) return 0;
    return std::max<Index>(0, attention_phase + block_of(row) * attention_block);
  }

 private:
  // Floor division: rows before the phase belong to blocks with negative numbers.
  [[nodiscard]] constexpr Index block_of(Index row) const {
    const Index offset = row - attention_phase;
    return offset >= 0 ? offset / attention_block
                       : -((attention_block - 1 - offset) / attention_block);
  }
};

/// Refuses a shape that no cache can serve; throws std::invalid_argument naming the field.
inline void check_shape(const SequenceShape& shape) {
  // Row counts multiply with widths into byte counts: this bound keeps every product in range.
  constexpr Index most = Index{1} << 31;
  if (shape.prompt < 0 || shape.prompt > most)
    base::refuse_argument("SequenceShape: prompt must be in [0, 2^31], got ", shape.prompt);
  if (shape.response < 0 || shape.response > most)
    base::refuse_argument("SequenceShape: response must be in [0, 2^31], got ", shape.response);
  if (shape.rows() < 1)
    base::refuse_argument("SequenceShape: prompt + response must be at least 1 row, got 0");
  if (shape.prediction_shift < 0 || shape.prediction_shift > shape.prompt)
    base::refuse_argument("SequenceShape: prediction_shift must be in [0, prompt = ", shape.prompt,
                          "], got ", shape.prediction_shift);
  if (shape.attention_block < 0 || shape.attention_block > most)
    base::refuse_argument("SequenceShape: attention_block must be in [0, 2^31], got ",
                          shape.attention_block);
  if (shape.attention_phase < 0 || shape.attention_phase > shape.rows())
    base::refuse_argument("SequenceShape: attention_phase must be in [0, rows = ", shape.rows(),
                          "], got ", shape.attention_phase);
  if (shape.causal_commit && shape.attention_block == 0)
    base::refuse_argument(
        "SequenceShape: causal_commit needs an attention_block of at least 1, got 0");
  if (!shape.positions.empty() && static_cast<Index>(shape.positions.size()) != shape.rows())
    base::refuse_argument("SequenceShape: positions must be empty or one a row (", shape.rows(),
                          "), got ", shape.positions.size());
}

/// What the caller knows about one sequence before a step; a span is empty (not known) or has one
/// entry a row, and is only read during the call that it is given to.
struct StepInput {
  Range block = {};                            ///< Active block; empty: the whole response.
  Index block_step = 0;                        ///< Steps this sequence has done in the block.
  std::span<const std::uint8_t> masked = {};   ///< 1: the row's token is still the mask.
  std::span<const std::uint8_t> changed = {};  ///< 1: token changed since the last committed step.
  std::span<const float> confidence = {};      ///< Last known confidence of a row's prediction.
  /// Committed steps since the row's token last changed, 0 where `changed`; 65535: longer, or
  /// never.
  std::span<const std::uint16_t> unchanged_steps = {};
  /// 1: the row's token was given and never changes; empty: so is the prompt, and nothing else.
  std::span<const std::uint8_t> given = {};
  /// Nothing is to be found in the block any more: the step stores its final features (and may
  /// predict what follows it).
  bool block_done = false;
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

/// What happens to a row in a step, ordered by work.
enum class RowAction : std::uint8_t {
  Absent,  ///< Not in the pass; others see the cached key and value.
  Reuse,   ///< In the pass; every layer adds the cached delta.
  Verify,  ///< In the pass; the value is computed and stored, the rest only if the row is selected.
  Recompute  ///< In the pass; value, key, query and delta are computed.
};

/// Similarity threshold of a plan under which every verified row may be selected.
inline constexpr double no_similarity_threshold = std::numeric_limits<double>::infinity();

/// A policy's decision for one step: one action a row, how many `Verify` rows are selected, and
/// in which layers the cache is used at all (outside, every row in the pass is recomputed).
///
/// A policy is given a plan in which every row is absent and `cached_layers` holds all layers, and
/// asks for actions; of several for a row the one with most work wins. `rows` may also be written
/// directly.
struct StepPlan {
  std::vector<RowAction> rows;  ///< One action a row of the sequence.
  Index verify_count = 0;       ///< Rows selected among the verified ones, in every cached layer.
  /// Of these, rows at least this similar are left alone (cosine; any number but NaN).
  double similarity_threshold = no_similarity_threshold;
  Range cached_layers;      ///< Layers in which actions hold.
  std::string_view policy;  ///< Name for messages.

  /// Asks that `range` be recomputed; throws std::logic_error when it is not within the rows.
  void recompute(Range range) { raise(range, RowAction::Recompute, "recompute"); }

  /// Asks that `range` be verified and its `count` least similar rows recomputed, `count >= 0`,
  /// but none that is at least as similar as `threshold` (any number but NaN; a row whose
  /// similarity is NaN is recomputed); throws std::logic_error on a second call in one plan, or a
  /// range not within the rows.
  void verify(Range range, Index count, double threshold = no_similarity_threshold) {
    if (m_verifies)
      base::refuse_call("StepPlan of policy ", policy, ": verify() may be called once a plan");
    if (count < 0)
      base::refuse_call("StepPlan of policy ", policy, ": verify() count must be at least 0, got ",
                        count);
    if (std::isnan(threshold))
      base::refuse_call("StepPlan of policy ", policy,
                        ": verify() threshold must be a number, got nan");
    raise(range, RowAction::Verify, "verify");
    verify_count = count;
    similarity_threshold = threshold;
    m_verifies = true;
  }

  /// Asks that `range` be in the pass with its cached deltas; throws like recompute().
  void reuse(Range range) { raise(range, RowAction::Reuse, "reuse"); }

  /// Empties the plan for `row_count` rows and `layers` layers; keeps its memory.
  void clear(Index row_count, Index layers, std::string_view policy_name) {
    rows.assign(static_cast<std::size_t>(row_count), RowAction::Absent);
    verify_count = 0;
    similarity_threshold = no_similarity_threshold;
    cached_layers = {0, layers};
    policy = policy_name;
    m_verifies = false;
  }

 private:
  void raise(Range range, RowAction asked, const char* what) {
    if (range.begin < 0 || range.end > static_cast<Index>(rows.size()) || range.begin > range.end)
      base::refuse_call("StepPlan of policy ", policy, ": ", what, "() range must lie in [0, ",
                        rows.size(), "), got [", range.begin, ", ", range.end, ")");
    for (Index row = range.begin; row < range.end; ++row) {
      RowAction& action = rows[static_cast<std::size_t>(row)];
      action = std::max(action, asked);
    }
  }

  bool m_verifies = false;
};

/// Interval of a refresh that never falls due after the first step.
inline constexpr Index never = std::numeric_limits<Index>::max();

/// The largest step or count that a sequence can be resumed with: from there no run overflows.
inline constexpr Index most_counted = never / 4;

}  // namespace dllm_cache::inline v0_1
