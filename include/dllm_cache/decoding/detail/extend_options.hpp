// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dllm_cache/decoding/block_grid.hpp"
#include "dllm_cache/decoding/block_schedule.hpp"
#include "dllm_cache/decoding/check_decoding.hpp"
#include "dllm_cache/decoding/decoding_options.hpp"

namespace dllm_cache::inline v0_1::detail {

/// The options of a sequence whose response gets `rows` more rows: blocks keep their length, and
/// the steps that each of them has. Throws std::invalid_argument where that cannot be.
[[nodiscard]] inline DecodingOptions extend_options(DecodingOptions options, Index rows,
                                                    const BlockSchedule& blocks, Index prompt_rows,
                                                    bool has_gaps) {
  const Index most = most_rows - options.response;
  if (rows < 1 || rows > most)
    base::refuse_argument("SequenceState: rows must be in [1, ", most, "], got ", rows);
  options.response += rows;
  if (options.attention_block == 0 && options.block_length == 0)
    options.block_length = blocks.grid().length;
  if (options.steps > 0)
    options.steps = blocks.planned_steps_of_block() *
                    SequenceLayout(prompt_rows, has_gaps, options).grid.count();
  check_decoding(options, {.prompt_has_masks = has_gaps, .prompt_rows = prompt_rows}, field_words);
  return options;
}

}  // namespace dllm_cache::inline v0_1::detail
