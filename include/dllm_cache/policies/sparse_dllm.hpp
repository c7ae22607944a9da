// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "dllm_cache/policies/largest_rows.hpp"
#include "dllm_cache/policy.hpp"

namespace dllm_cache::inline v0_1 {

/// Sparse-dLLM (Song et al., arXiv 2508.02558; repository OpenMOSS/Sparse-dLLM at 3fd8986,
/// llada_generate.py and modeling_llada.py below opencompass/models/sparse_dllm).
///
/// The first two steps of a block recompute everything. In the second each layer chooses the rows
/// outside the block that the block's mean query scores highest (the score of a row counts for its
/// neighbours too); later steps recompute the block alone, which sees those keys and its own.
/// Differs: ties go to the lower row (with pooling the last one kept is usually one of several);
/// kernels of even length, which read beyond the scores there, are refused. With a shifted head
/// the row before the block is in the pass too, and the block's first step commits like any other
/// (the repository commits row s alone). With block-causal attention it works over finished blocks.
struct SparseDllmPolicy {
  /// Share of the rows outside the block whose keys are kept, in [0, 1]; `keep_ratio` (0.5).
  double keep_ratio = 0.5;
  /// Rows whose scores are pooled, odd, at least 1; `kernel_size` (3). 1: none.
  Index kernel_size = 3;

  static void visit_options(auto& self, auto&& visit) {
    visit("keep_ratio", self.keep_ratio, from_0_to_1,
          "share of keys outside the block that are kept");
    visit("kernel_size", self.kernel_size,
          OptionRange<Index>{.least = 1, .word = "none", .word_value = 1, .odd = true},
          "neighbours whose scores are pooled");
  }

  struct Memory {
    std::vector<std::uint8_t> kept;  ///< `[layers, T]`, 1: the row is kept; empty: not chosen yet.
    std::vector<float> pooled;       // scratch
    std::vector<Index> rows;

    static void visit_fields(auto& self, auto&& visit) { visit("kept", self.kept); }
    [[nodiscard]] bool fits(const SequenceShape& shape, Index layers) const {
      return kept.empty() || static_cast<Index>(kept.size()) == layers * shape.rows();
    }
  };

  [[nodiscard]] PolicyTraits traits(const SequenceShape&) const {
    return {.name = "sparse", .needs_block = true, .hides_rows = true, .watches_attention = true};
  }

  void plan(const StepContext& context, Memory& memory, StepPlan& plan) const {
    const Range block = context.block;
    if (context.block_step < 2) memory.kept.clear();
    if (memory.kept.empty()) plan.recompute(context.unsettled());
    if (chooses(context)) {
      memory.rows.clear();
      for (Index row = block.begin; row < block.end; ++row) memory.rows.push_back(row);
      plan.watch(memory.rows, AttentionFact::QueryScores);
      memory.kept.assign(plan.rows.size() * static_cast<std::size_t>(context.layers), 0);
      return;
    }
    if (memory.kept.empty()) return;
    plan.recompute({std::max<Index>(0, block.begin - context.shape.prediction_shift), block.end});
    for (Index layer = 0; layer < context.layers; ++layer)
      plan.limit_keys(layer, kept_in(memory, layer, plan.rows.size()));
  }

  void after_layer(const StepContext& context, const LayerFacts& facts, Memory& memory,
                   LayerChange&) const {
    if (!chooses(context)) return;
    const auto rows = facts.query_scores.size();
    const Range block = context.block, live = context.live();
    // Rows outside the block lie side by side where it is cut out.
    const auto outside = [&](Index row) { return live.contains(row) && !block.contains(row); };
    memory.rows.clear();
    for (Index row = 0; row < static_cast<Index>(rows); ++row)
      if (outside(row)) memory.rows.push_back(row);
    const auto count = static_cast<Index>(memory.rows.size());
    memory.pooled.assign(rows, 0.0F);
    for (Index i = 0; i < count; ++i) {
      float best = -std::numeric_limits<float>::infinity();
      for (Index j = std::max<Index>(0, i - kernel_size / 2);
           j <= std::min(count - 1, i + kernel_size / 2); ++j)
        best = std::max(
            best,
            facts.query_scores[static_cast<std::size_t>(memory.rows[static_cast<std::size_t>(j)])]);
      memory.pooled[static_cast<std::size_t>(memory.rows[static_cast<std::size_t>(i)])] = best;
    }
    detail::take_largest(std::span<const float>(memory.pooled),
                         static_cast<Index>(static_cast<double>(count) * keep_ratio), outside,
                         memory.rows);
    const std::span<std::uint8_t> kept = kept_in(memory, facts.layer, rows);
    for (const Index row : memory.rows) kept[static_cast<std::size_t>(row)] = 1;
  }

 private:
  // Whether this step's layers choose their keys.
  static bool chooses(const StepContext& context) { return context.block_step == 1; }
  static std::span<std::uint8_t> kept_in(Memory& memory, Index layer, std::size_t rows) {
    return std::span(memory.kept).subspan(static_cast<std::size_t>(layer) * rows, rows);
  }
};

}  // namespace dllm_cache::inline v0_1
