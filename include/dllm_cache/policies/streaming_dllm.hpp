// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dllm_cache/policies/kept_suffix.hpp"

namespace dllm_cache::inline v0_1 {

/// Streaming-dLLM (arXiv 2601.17917; repository xiaoshideta/Streaming-dLLM at c4320c2, prefix cache
/// of generate.py for LLaDA-1.5).
///
/// Of the rows behind the block the first `suffix_window` exist, and the sequence's last one; the
/// others are not computed and nobody sees them. What exists is served by Fast-dLLM's prefix cache.
/// Its falling threshold is a rule of decoding (DecodingOptions::threshold_alpha), and so is its
/// end at a finished block with end-of-text.
struct StreamingDllmPolicy {
  Index suffix_window = 32;  ///< Rows behind the block that exist, at least 0; `window_size` (32).
  Index tail_keep = 1;       ///< Last rows of the sequence that exist, at least 0; `tail_keep` (1).

  static void visit_options(auto& self, auto&& visit) {
    visit("suffix_window", self.suffix_window, at_least(0), "rows behind the block that exist");
    visit("tail_keep", self.tail_keep, at_least(0), "last rows of the sequence that exist");
  }

  struct Memory {};  // rows are hidden in stale steps too

  [[nodiscard]] PolicyTraits traits(const SequenceShape&) const {
    return {.name = "streaming", .needs_block = true, .hides_rows = true};
  }

  void plan(const StepContext& context, Memory&, StepPlan& plan) const {
    const Index end = context.block.end, last = context.live().end;
    detail::plan_kept_suffix(
        context, detail::SuffixHost::Prefix,
        [&](Index row) { return row - end < suffix_window || last - row <= tail_keep; }, plan);
  }
};

}  // namespace dllm_cache::inline v0_1
