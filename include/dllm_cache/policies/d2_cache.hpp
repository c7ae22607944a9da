// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "dllm_cache/base/decoded_density.hpp"
#include "dllm_cache/policies/largest_rows.hpp"
#include "dllm_cache/policy.hpp"

namespace dllm_cache::inline v0_1 {

/// d2Cache (Jiang et al., arXiv 2509.23094; repository Kamichanw/d2Cache at 72feb60,
/// src/cache/d2cache.py), as released.
///
/// The first step computes every row. Each later one recomputes the `current_k` masked rows that
/// score best (confidence in the first step times the density of known tokens around them), rows
/// just committed, and of all others those that carry most attention: the smallest set that holds
/// `rollout_p` of it, rolled out over the layers. Nothing else is ever refreshed.
/// Differs: the roll-out is one sweep from the last layer back, without a product of `[T, T]`
/// matrices; the density is summed, not convolved by FFT; rows that were not computed cannot be
/// committed (there they have a chance of 1 / vocabulary); `rollout_p` 1 is all rows, whatever
/// rounding says; in a batch each sequence has its own number of rows. As released: confidences
/// stay those of the first step; what is called the block is its rows that were masked before the
/// last step. Cannot be carried out by plans alone. Bidirectional attention only.
struct D2CachePolicy {
  double rollout_p = 0.1;  ///< Share of the attention that flows, in [0, 1]; `rollout_p` (0.1).
  Index current_k = 32;    ///< Masked rows that flow, at least 1; `current_k` (32).
  double density_sigma = 10.0;  ///< Width of the density, above 0; `sigma` (10).
  /// Rows between two that flow, no further apart than this, flow too; 0: none; `inflate_w` (4).
  Index inflate_w = 4;

  static void visit_options(auto& self, auto&& visit) {
    visit("rollout_p", self.rollout_p, from_0_to_1, "share of the attention whose rows flow");
    visit("current_k", self.current_k, at_least(1), "masked rows that flow");
    visit("density_sigma", self.density_sigma,
          OptionRange<double>{.least = 0.0, .above_least = true},
          "width of the density of known tokens, in rows");
    visit("inflate_w", self.inflate_w, at_least(0), "gaps of this many rows flow too, 0: none");
  }

  struct Memory {
    std::vector<float> confidence;  ///< One a row, of the first step; empty before it is known.
    std::vector<Index> open;        ///< Masked rows of the block before the last step, ascending.
    std::vector<float> importance;  ///< One a row: attention rolled out over the last step.
    std::vector<float> rolled;      // scratch
    std::vector<double> density, score;
    std::vector<Index> rows;
    std::vector<std::uint8_t> flows;

    static void visit_fields(auto& self, auto&& visit) {
      visit("confidence", self.confidence);
      visit("open", self.open);
      visit("importance", self.importance);
    }
    [[nodiscard]] bool fits(const SequenceShape& shape, Index) const {
      const auto fits_rows = [&](const std::vector<float>& list) {
        return list.empty() || static_cast<Index>(list.size()) == shape.rows();
      };
      return fits_rows(confidence) && fits_rows(importance) &&
             detail::are_ascending_rows(open, shape.rows()) &&
             (open.empty() || open.front() >= shape.prompt);
    }
  };

  [[nodiscard]] PolicyTraits traits(const SequenceShape& shape) const {
    if (shape.attention_block > 0)
      base::refuse_argument(
          "policy d2cache: attention_block must be 0, its rows are never refreshed, got ",
          shape.attention_block);
    return {.name = "d2cache",
            .needs_masked = true,
            .needs_changed = true,
            .needs_confidence = true,
            .predicts_all = true,
            .watches_attention = true};
  }

  void plan(const StepContext& context, Memory& memory, StepPlan& plan) const {
    if (context.step > 0 && memory.confidence.empty())
      memory.confidence.assign(context.confidence.begin(), context.confidence.end());
    memory.flows.assign(plan.rows.size(), context.stale ? 1 : 0);
    if (!context.stale) {
      // Neither can be empty here, but a snapshot might say so.
      memory.confidence.resize(plan.rows.size(), 0.0F);
      memory.importance.resize(plan.rows.size(), 1.0F);
      choose(context, memory);
    }
    memory.open.clear();
    const Range block = context.active_block();
    for (Index row = block.begin; row < block.end; ++row)
      if (context.masked[static_cast<std::size_t>(row)] != 0) memory.open.push_back(row);
    memory.rows.clear();
    for (Index row = 0; row < context.shape.rows(); ++row)
      if (memory.flows[static_cast<std::size_t>(row)] != 0) memory.rows.push_back(row);
    for (const Index row : memory.rows) plan.recompute(row);
    plan.watch(memory.rows, AttentionFact::HeadMeans);
  }

  void after_layer(const StepContext& context, const LayerFacts& facts, Memory& memory,
                   LayerChange&) const {
    if (facts.layer + 1 == context.layers) roll_out(facts, context.shape.rows(), memory);
  }

 private:
  // Which rows flow in this step.
  void choose(const StepContext& context, Memory& memory) const {
    const Index shift = context.shape.prediction_shift, prompt = context.shape.prompt;
    choose_masked(context, memory);
    const bool takes_first =
        std::binary_search(memory.rows.begin(), memory.rows.end(), prompt) && shift > 0;
    for (const Index row : memory.rows)
      if (shift == 0 || row > prompt) memory.flows[static_cast<std::size_t>(row - shift)] = 1;
    for (Index row = 0; row < context.shape.rows(); ++row)
      if (context.changed[static_cast<std::size_t>(row)] != 0)
        memory.flows[static_cast<std::size_t>(row)] = 1;
    add_attended(memory);
    // The row before the response flows for the response's first row alone.
    if (shift > 0) memory.flows[static_cast<std::size_t>(prompt - 1)] = takes_first ? 1 : 0;
    // A gap in the first row of all, which counts as the prompt there, predicts itself.
    for (Index row = 0; row < prompt; ++row)
      if (context.masked[static_cast<std::size_t>(row)] != 0)
        memory.flows[static_cast<std::size_t>(row)] = 1;
    inflate(memory.flows);
  }

  // Leaves the masked rows that score best in `rows`.
  void choose_masked(const StepContext& context, Memory& memory) const {
    const Range response = context.response();
    const auto masked = context.masked.subspan(static_cast<std::size_t>(response.begin));
    memory.density.resize(masked.size());
    base::decoded_density(masked, density_sigma, memory.density);
    // One a row of the sequence, those of the prompt 0.
    memory.score.assign(context.masked.size(), 0.0);
    for (Index row = response.begin; row < response.end; ++row)
      memory.score[static_cast<std::size_t>(row)] =
          static_cast<double>(memory.confidence[static_cast<std::size_t>(row)]) *
          memory.density[static_cast<std::size_t>(row - response.begin)];
    // Rows of the block come before all others.
    const double most = *std::max_element(memory.score.begin(), memory.score.end());
    for (const Index row : memory.open) memory.score[static_cast<std::size_t>(row)] += most;
    // From the block's first row to the end of the block in which enough masked rows are counted.
    Index reach = response.size() - 1, counted = 0;
    for (Index i = 0; i < response.size() && counted < current_k; ++i)
      if (masked[static_cast<std::size_t>(i)] != 0 && ++counted == current_k) reach = i;
    const auto length = std::max<Index>(1, static_cast<Index>(memory.open.size()));
    const Index end = response.begin + (reach / length + 1) * length;
    const Index begin = memory.open.empty() ? response.begin : memory.open.front();
    detail::take_largest(
        std::span<const double>(memory.score), current_k,
        [&](Index row) {
          return begin <= row && row < end && context.masked[static_cast<std::size_t>(row)] != 0;
        },
        memory.rows);
  }

  // Adds the rows that carry most attention among those that do not flow yet: as many as hold
  // `rollout_p` of theirs, one at least.
  void add_attended(Memory& memory) const {
    memory.rows.clear();
    float sum = 0.0F;
    for (std::size_t row = 0; row < memory.flows.size(); ++row) {
      if (memory.flows[row] != 0) continue;
      memory.rows.push_back(static_cast<Index>(row));
      sum += memory.importance[row];
    }
    std::sort(memory.rows.begin(), memory.rows.end(),
              detail::LargestFirst<float>{memory.importance});
    float running = 0.0F;
    for (std::size_t i = 0; i < memory.rows.size(); ++i) {
      const auto row = static_cast<std::size_t>(memory.rows[i]);
      running += memory.importance[row] / (sum + 1e-9F);
      if (rollout_p < 1.0 && i > 0 && static_cast<double>(running) > rollout_p) break;
      memory.flows[row] = 1;
    }
  }

  void inflate(std::vector<std::uint8_t>& flows) const {
    Index last = -1;
    for (Index row = 0; row < static_cast<Index>(flows.size()); ++row) {
      if (flows[static_cast<std::size_t>(row)] == 0) continue;
      if (last >= 0 && row - last <= inflate_w)
        std::fill(flows.begin() + last, flows.begin() + row, std::uint8_t{1});
      last = row;
    }
  }

  // Column sums of the product of all layers' (attention + identity) / 2, identity alone for rows
  // that did not flow: a row of ones is multiplied through them, the last layer first.
  static void roll_out(const LayerFacts& facts, Index rows, Memory& memory) {
    std::vector<float>& ones = memory.importance;
    ones.assign(static_cast<std::size_t>(rows), 1.0F);
    for (auto layer = facts.head_means.rbegin(); layer != facts.head_means.rend(); ++layer) {
      memory.rolled = ones;
      for (const Index row : facts.watched) memory.rolled[static_cast<std::size_t>(row)] = 0.0F;
      for (std::size_t i = 0; i < facts.watched.size(); ++i) {
        const auto row = static_cast<std::size_t>(facts.watched[i]);
        const std::span<const float> attention(layer->row(static_cast<Index>(i)), ones.size());
        float sum = 1.0F;
        for (const float p : attention) sum += p;
        const float share = ones[row] / sum;
        for (std::size_t key = 0; key < ones.size(); ++key)
          memory.rolled[key] += share * attention[key];
        memory.rolled[row] += share;
      }
      ones.swap(memory.rolled);
    }
  }
};

}  // namespace dllm_cache::inline v0_1
