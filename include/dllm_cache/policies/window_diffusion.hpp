// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dllm_cache/policy.hpp"

namespace dllm_cache::inline v0_1 {

/// Window-Diffusion (arXiv 2601.20332; repository vhicrgit/Window-Diffusion at d8bb349, `generate`
/// in llada/model/modeling_llada.py).
///
/// A full forward every `refresh_cycle` steps; after it the *window*, all known rows and the first
/// `window_tokens` masked ones, is all that exists until the next. In between the first
/// `active_tokens` masked rows are recomputed, with the rows decoded since.
/// Differs: of masked rows those in the window alone are active (the repository goes on behind it
/// where a cycle decodes more than the window has in reserve, with rows that nobody sees); what may
/// be committed is the loop's business, there are no blocks there. With a shifted head the rows
/// that predict the active ones flow too. Bidirectional attention only.
struct WindowDiffusionPolicy {
  Index refresh_cycle = 32;  ///< Steps between full forwards, at least 1; `refresh_cycle` (32).
  Index window_tokens = 64;  ///< Masked rows that exist, at least 1; `window_tokens` (64).
  Index active_tokens = 16;  ///< Masked rows that are recomputed, at least 1; `active_tokens` (16).

  static void visit_options(auto& self, auto&& visit) {
    visit("refresh_cycle", self.refresh_cycle, at_least(1), "steps between full forwards");
    visit("window_tokens", self.window_tokens, at_least(1), "masked rows that exist in between");
    visit("active_tokens", self.active_tokens, at_least(1), "masked rows that are recomputed");
  }

  struct Memory {
    std::vector<std::uint8_t> window;   ///< One flag a row; empty: all rows exist.
    std::vector<std::uint8_t> decoded;  ///< Rows decoded since the cycle's second step: one flag
                                        ///< a row, or empty.
    Index position = 0;                 ///< Steps done in the cycle.

    static void visit_fields(auto& self, auto&& visit) {
      visit("window", self.window);
      visit("decoded", self.decoded);
      visit("position", self.position);
    }
    [[nodiscard]] bool fits(const SequenceShape& shape, Index) const {
      const auto rows = static_cast<std::size_t>(shape.rows());
      return (window.empty() && decoded.empty()) ||
             (window.size() == rows && decoded.size() == rows);
    }
  };

  [[nodiscard]] PolicyTraits traits(const SequenceShape& shape) const {
    if (shape.attention_block > 0)
      base::refuse_argument("policy window: attention_block must be 0, got ",
                            shape.attention_block);
    return {.name = "window", .needs_masked = true, .needs_changed = true, .hides_rows = true};
  }

  void plan(const StepContext& context, Memory& memory, StepPlan& plan) const {
    const Index rows = context.shape.rows();
    if (context.step == 0 || memory.position >= refresh_cycle) memory.position = 0;
    if (memory.position++ == 0) {
      memory.window.clear();
      memory.decoded.clear();
      return plan.recompute(context.live());
    }
    const bool fresh = memory.window.empty();
    if (fresh) {
      memory.window.assign(context.masked.size(), 1);
      memory.decoded.assign(context.masked.size(), 0);
      for (Index row = 0, masked = 0; row < rows; ++row)
        if (context.masked[static_cast<std::size_t>(row)] != 0 && ++masked > window_tokens)
          memory.window[static_cast<std::size_t>(row)] = 0;
    }
    Index active = 0;
    for (Index row = 0; row < rows; ++row) {
      const auto at = static_cast<std::size_t>(row);
      if (memory.window[at] == 0) {
        plan.hide({row, row + 1});
        continue;
      }
      const bool changed = context.changed[at] != 0;
      if (!fresh && changed) memory.decoded[at] = 1;
      const bool flows =
          context.masked[at] != 0 ? active++ < active_tokens : changed || memory.decoded[at] != 0;
      if (!flows) continue;
      plan.recompute(row);
      const Index predictor = std::max<Index>(0, row - context.shape.prediction_shift);
      if (memory.window[static_cast<std::size_t>(predictor)] != 0) plan.recompute(predictor);
    }
  }
};

}  // namespace dllm_cache::inline v0_1
