// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

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

}  // namespace dllm_cache::inline v0_1
