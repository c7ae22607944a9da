// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dllm_cache/policies/largest_rows.hpp"
#include "dllm_cache/policy.hpp"

namespace dllm_cache::inline v0_1 {

/// Elastic-Cache (Nguyen-Tri et al., arXiv 2510.14973; repository VILA-Lab/Elastic-Cache at
/// 46c0bc3, `generate` in llada/generate.py and `attention` of its model files).
///
/// Rows that may be committed, rows just committed and *probes*, the decoded rows that got most
/// attention from them in some layer, are recomputed in every layer; all others add their stored
/// updates. After each layer the attention of the probes is compared with what it was after the
/// last step: where it drifted, all rows are recomputed from the next layer on.
/// Differs: a row's input is its embedding and its stored updates, not a stored input; there may be
/// fewer key heads than query heads; probes are never rows that are still to be found. The cosine
/// runs over the heads and every key counts alike, as in the repository (the paper's runs over
/// keys). Its `window_size` is the loop's DecodingOptions::window. Cannot be carried out by plans
/// alone.
struct ElasticPolicy {
  /// Similarity of attention under which the rest of the layers is recomputed, at least 0; `gamma`
  /// (0.9). 0: never; above 1: always.
  double gamma = 0.9;
  Index track_num = 1;  ///< Probes that each layer chooses, at least 1; `track_num` (1).
  /// Rows that may be committed are recomputed, not all masked rows; `block_caching` (true).
  bool block_caching = true;

  static void visit_options(auto& self, auto&& visit) {
    visit("gamma", self.gamma, not_negative,
          "similarity of attention below which all later layers are recomputed");
    visit("track_num", self.track_num, at_least(1), "rows a layer that are watched for drift");
    visit("block_caching", self.block_caching, yes_or_no,
          "recompute rows that may be committed, not all masked rows");
  }

  struct Memory {
    std::vector<Index> probes;         ///< Of the next step, ascending.
    std::vector<std::uint8_t> chosen;  ///< Those of this step's layers so far: one flag a row.
    std::vector<std::uint8_t> masked;  ///< As it was before the step.
    std::vector<Index> rows, best;     // scratch

    static void visit_fields(auto& self, auto&& visit) { visit("probes", self.probes); }
    [[nodiscard]] bool fits(const SequenceShape& shape, Index) const {
      return detail::are_ascending_rows(probes, shape.rows());
    }
  };

  [[nodiscard]] PolicyTraits traits(const SequenceShape& shape) const {
    const Range all{0, shape.rows()};
    return {.name = "elastic",
            .stored_deltas = all,
            .needs_masked = true,
            .needs_changed = true,
            .needs_candidates = true,
            .stored_queries = all,
            .watches_attention = true};
  }

  void plan(const StepContext& context, Memory& memory, StepPlan& plan) const {
    const Range live = context.live();
    memory.masked.assign(context.masked.begin(), context.masked.end());
    memory.chosen.assign(context.masked.size(), 0);
    // The rows that predict what may be committed.
    memory.rows.clear();
    const auto flags = block_caching ? context.candidates : context.masked;
    for (Index row = live.begin; row < live.end; ++row)
      if (flags[static_cast<std::size_t>(row)] != 0)
        memory.rows.push_back(std::max<Index>(row - context.shape.prediction_shift, 0));
    memory.rows.erase(std::unique(memory.rows.begin(), memory.rows.end()), memory.rows.end());
    plan.watch(memory.rows, AttentionFact::ColumnSums);
    if (context.stale) return;
    plan.reuse(live);
    // With block-causal attention the rows of a new block have nothing that could be reused.
    const bool begins = context.shape.attention_block > 0 && context.block_step == 0;
    plan.recompute(begins ? context.unsettled() : context.to_settle());
    for (const Index row : memory.rows) plan.recompute(row);
    for (const Index row : memory.probes) plan.recompute(row);
    for (Index row = live.begin; row < live.end; ++row)
      if (context.changed[static_cast<std::size_t>(row)] != 0) plan.recompute(row);
    plan.probe(memory.probes);
  }

  void after_layer(const StepContext& context, const LayerFacts& facts, Memory& memory,
                   LayerChange& change) const {
    const Range live = context.live();
    const auto found = [&](Index row) {
      return live.contains(row) && memory.masked[static_cast<std::size_t>(row)] == 0;
    };
    detail::take_largest(facts.column_sums, track_num, found, memory.best);
    for (const Index row : memory.best) memory.chosen[static_cast<std::size_t>(row)] = 1;
    if (facts.layer + 1 == context.layers) {
      memory.probes.clear();
      for (std::size_t row = 0; row < memory.chosen.size(); ++row)
        if (memory.chosen[row] != 0) memory.probes.push_back(static_cast<Index>(row));
    }
    change.recompute_rest = facts.probe_similarity < gamma;  // not where nothing was probed: NaN
  }
};

}  // namespace dllm_cache::inline v0_1
