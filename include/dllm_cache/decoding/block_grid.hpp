// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "dllm_cache/decoding/decoding_options.hpp"
#include "dllm_cache/plan.hpp"

namespace dllm_cache::inline v0_1 {

/// The blocks of one sequence, decoded one after the other: rows `[begin, end)` in pieces of
/// `length` rows, the last of which may be shorter.
///
/// A response is cut from its first row on, as in LLaDA's `generate`; a sequence with masks in its
/// prompt from row 0 on, as in `infill` of ZHZisZZ/dllm at 13ba372 (dllm/core/samplers/mdlm.py).
struct BlockGrid {
  Index begin = 0;
  Index end = 0;     ///< At least begin + 1.
  Index length = 1;  ///< At least 1.

  [[nodiscard]] Index count() const { return (end - begin + length - 1) / length; }
  /// Rows of a block, `0 <= number < count()` (unchecked).
  [[nodiscard]] Range block(Index number) const {
    const Index first = begin + number * length;
    return {first, std::min(first + length, end)};
  }
};

/// Where prompt, response and blocks of a sequence lie.
///
/// With block-causal attention a grid of blocks covers the prompt too: from row 0, where the first
/// block that is decoded may begin within the prompt and the response is rounded up to whole blocks
/// (SDAR, Fast-dLLM v2), or from the prompt's end, where the first block of the prompt and the last
/// one of the response may be short (BD3LM).
struct SequenceLayout {
  Index prompt = 0;
  Index rows = 0;  ///< All rows, with those behind the response that fill its last block.
  BlockGrid grid;  ///< What is decoded, block by block.
  Index attention_block = 0;
  Index attention_phase = 0;
  bool causal_commit = false;

  /// Rows of a prompt and what the options ask for; both are legal (unchecked; see check_decoding).
  SequenceLayout(Index prompt_rows, bool has_gaps, const DecodingOptions& options)
      : prompt(prompt_rows),
        rows(prompt_rows + options.response),
        attention_block(options.attention_block),
        causal_commit(options.causal_commit) {
    const Index attention = attention_block;
    Index begin = has_gaps ? 0 : prompt;
    if (attention > 0 && options.prompt_end_grid) {
      attention_phase = prompt % attention;
    } else if (attention > 0) {
      rows = (rows + attention - 1) / attention * attention;
      // The sub-block of the first mask, or block where there are none.
      const Index length = options.block_length == 0 ? attention : options.block_length;
      begin = begin / length * length;
    }
    Index length = options.block_length;
    if (length == 0) length = attention > 0 ? attention : rows - begin;
    grid = {begin, rows, length};
  }

  /// First row of the block of attention in which a block lies.
  [[nodiscard]] Index attention_begin(Range block) const {
    return shape().block_begin(block.begin);
  }
  /// The block of attention that ends before `row >= 1`, which begins one.
  [[nodiscard]] Range attention_before(Index row) const {
    return {shape().block_begin(row - 1), row};
  }
  /// The shape as a cache knows it, for a model with this shift.
  [[nodiscard]] SequenceShape shape(Index prediction_shift = 0) const {
    return {.prompt = prompt,
            .response = rows - prompt,
            .prediction_shift = prediction_shift,
            .attention_block = attention_block,
            .attention_phase = attention_phase,
            .causal_commit = causal_commit};
  }
};

}  // namespace dllm_cache::inline v0_1
