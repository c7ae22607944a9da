// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "dllm_cache/dllm_cache.hpp"

// Policies that look inside: each uses one thing that actions of rows alone cannot say.
// docs/write-a-policy.md explains them, my_policy.cpp compares them.
namespace inside {

using namespace dllm_cache;

// [hide]
/// The dual cache over a response of which only the next `reach` rows behind the block exist.
struct ShortSightPolicy {
  static constexpr Index reach = 8;
  struct Memory {};  // asked in stale steps too: what is hidden is not computed there either

  PolicyTraits traits(const SequenceShape&) const {
    return {.name = "short-sight", .needs_block = true, .hides_rows = true};
  }
  void plan(const StepContext& context, Memory&, StepPlan& plan) const {
    const Index end = std::min(context.block.end + reach, context.live().end);
    plan.hide({end, context.live().end});
    if (context.block_step == 0) return plan.recompute({0, end});
    plan.recompute({context.block.begin - context.shape.prediction_shift, context.block.end});
  }
};
// [hide]

// [watch]
/// The block in every step, and rows outside it that got more than 1 % of its attention last time.
struct AttendedPolicy {
  struct Memory {
    std::vector<float> attention;  // one a row, over all layers of the last step
    std::vector<Index> rows;       // scratch, which needs not be visited

    static void visit_fields(auto& self, auto&& visit) { visit("attention", self.attention); }
    bool fits(const SequenceShape& shape, Index) const {  // asked of what a snapshot holds
      return attention.empty() || static_cast<Index>(attention.size()) == shape.rows();
    }
  };
  PolicyTraits traits(const SequenceShape&) const {
    return {.name = "attended", .needs_block = true, .watches_attention = true};
  }
  void plan(const StepContext& context, Memory& memory, StepPlan& plan) const {
    const float all = std::accumulate(memory.attention.begin(), memory.attention.end(), 0.0F);
    for (std::size_t row = 0; row < memory.attention.size(); ++row)
      if (memory.attention[row] > 0.01F * all) plan.recompute(static_cast<Index>(row));
    plan.recompute({context.block.begin - context.shape.prediction_shift, context.block.end});
    memory.attention.assign(plan.rows.size(), 0.0F);
    memory.rows.resize(static_cast<std::size_t>(context.block.size()));
    std::iota(memory.rows.begin(), memory.rows.end(), context.block.begin);
    plan.watch(memory.rows, AttentionFact::ColumnSums);  // told after each layer
  }
  void after_layer(const StepContext&, const LayerFacts& facts, Memory& memory,
                   LayerChange&) const {
    for (std::size_t row = 0; row < memory.attention.size(); ++row)
      memory.attention[row] += facts.column_sums[row];
  }
};
// [watch]

// [decide]
/// The block is recomputed, all other rows are reused. Where the block attends in a layer more to
/// other rows than to itself, all rows are recomputed from the next layer on.
struct DistrustPolicy {
  struct Memory {
    std::vector<Index> rows;  // of the block
    static void visit_fields(auto&, auto&&) {}
    bool fits(const SequenceShape&, Index) const { return true; }
  };
  PolicyTraits traits(const SequenceShape& shape) const {
    return {.name = "distrust",
            .stored_deltas = {0, shape.rows()},
            .needs_block = true,
            .watches_attention = true};
  }
  void plan(const StepContext& context, Memory& memory, StepPlan& plan) const {
    if (!context.stale) plan.reuse(context.live());
    plan.recompute({context.block.begin - context.shape.prediction_shift, context.block.end});
    memory.rows.resize(static_cast<std::size_t>(context.block.size()));
    std::iota(memory.rows.begin(), memory.rows.end(), context.block.begin);
    plan.watch(memory.rows, AttentionFact::ColumnSums);
  }
  void after_layer(const StepContext& context, const LayerFacts& facts, Memory&,
                   LayerChange& change) const {
    const auto begin = facts.column_sums.begin();
    const float all = std::accumulate(begin, facts.column_sums.end(), 0.0F);
    const float own = std::accumulate(begin + context.block.begin, begin + context.block.end, 0.0F);
    change.recompute_rest = own < 0.5F * all;
  }
};
// [decide]

// [observe]
/// A full forward after a step that committed a token of which the model was not sure; else the
/// rows that may be committed and those just committed.
struct DoubtPolicy {
  PolicyTraits traits(const SequenceShape&) const {
    return {.name = "doubt",
            .needs_changed = true,
            .needs_confidence = true,  // of the last prediction of every row
            .needs_candidates = true};
  }
  void plan(const StepContext& context, StepPlan& plan) const {
    for (Index row = context.shape.prediction_shift; row < context.live().end; ++row) {
      const auto i = static_cast<std::size_t>(row);
      if (context.changed[i] != 0 && context.confidence[i] < 0.5F)
        return plan.recompute(context.live());
      if (context.candidates[i] != 0) plan.recompute(row - context.shape.prediction_shift);
      if (context.candidates[i] != 0 || context.changed[i] != 0) plan.recompute(row);
    }
  }
};
// [observe]

// [feature]
/// Verified steps with the layer's own feature in place of values, and twice as many rows in the
/// upper half of the layers.
struct ProjectedPolicy {
  PolicyTraits traits(const SequenceShape& shape) const {
    return {.name = "projected",
            .stored_deltas = {shape.prompt - shape.prediction_shift, shape.rows()},
            .verifies_features = true,
            .stores_verified_keys = true};  // else keys of rows that are not selected stay old
  }
  void plan(const StepContext& context, StepPlan& plan) const {
    if (context.step % 8 == 0) return plan.recompute(context.live());
    plan.reuse({context.shape.prompt - context.shape.prediction_shift, context.shape.prompt});
    plan.verify(context.response(), context.shape.response / 8);
    for (Index layer = context.layers / 2; layer < context.layers; ++layer)
      plan.verify_in_layer(layer, context.shape.response / 4);
    plan.cached_layers.begin = 1;
  }
};
// [feature]

static_assert(CachePolicy<ShortSightPolicy> && WatchesLayers<AttendedPolicy> &&
              WatchesLayers<DistrustPolicy> && CachePolicy<DoubtPolicy> &&
              CachePolicy<ProjectedPolicy>);

}  // namespace inside
