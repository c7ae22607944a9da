// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "dllm_cache/policies/given_rows.hpp"
#include "dllm_cache/policy.hpp"

namespace dllm_cache::inline v0_1 {

/// Recomputes the active block in every step and verifies the response around it: of these rows
/// those whose values changed most (lowest cosine similarity) are recomputed, at most `ratio` of
/// them, and none that is at least `similarity_threshold` similar.
///
/// Ours: it grew out of dLLM-Cache (DllmCachePolicy), whose values alone do not find the masked
/// rows that a committed token concerns: what a masked row predicts depends on the keys of tokens
/// just committed, which leave its own value as it was. As measured in bench/RESULTS.md it keeps
/// nearly all answers of the uncached model for a fraction of the operations. Wants decoding by
/// blocks: a block that is the whole response is recomputed whole. Bidirectional attention only, as
/// DllmCachePolicy.
struct BlockVerifyPolicy {
  /// Steps between prompt refreshes, at least 1, or `never`.
  Index prompt_interval = 100;
  /// Steps between response refreshes, at least 1, or `never`.
  Index response_interval = 32;
  /// Of the response rows outside the block the share that is recomputed in a verified step, in
  /// [0, 1]; with a threshold this is the most. 0 reuses them all and verifies nothing.
  double ratio = 0.25;
  /// Verified rows whose values are at least this similar to the previous ones are left alone:
  /// cosine in [-1, 1], or `no_similarity_threshold`. Rows that change slowly are never selected
  /// then: only a refresh finds them.
  double similarity_threshold = 0.99;
  /// Recompute the active block in every step; without it the block is verified as the rest is.
  bool recompute_block = true;
  /// Layer 0 recomputes every row in the pass; see DllmCachePolicy. With parallel decoding some
  /// answers are lost without it.
  bool refresh_first_layer = true;

  static void visit_options(auto& self, auto&& visit) {
    visit("prompt_interval", self.prompt_interval, steps_or_never,
          "steps between prompt refreshes, K_p");
    visit("response_interval", self.response_interval, steps_or_never,
          "steps between response refreshes, K_r");
    visit("ratio", self.ratio, from_0_to_1,
          "share of verified response rows recomputed in between");
    visit("similarity_threshold", self.similarity_threshold, cosine_or_none,
          "verified rows at least this similar are left alone");
    visit("recompute_block", self.recompute_block, yes_or_no,
          "recompute the active block in every step");
    visit("refresh_first_layer", self.refresh_first_layer, yes_or_no,
          "recompute all rows in the pass in layer 0");
  }

  [[nodiscard]] PolicyTraits traits(const SequenceShape& shape) const {
    const Index carried = prompt_interval > 1 ? shape.prediction_shift : 0;
    const Index reused = response_interval > 1 ? shape.response : 0;
    return {.name = "block-verify",
            .stored_deltas = {shape.prompt - carried, shape.prompt + reused},
            .needs_block = recompute_block};
  }

  void plan(const StepContext& context, StepPlan& plan) const {
    const SequenceShape& shape = context.shape;
    const Range response = context.response();
    const bool prompt_due = context.step % prompt_interval == 0;
    if (prompt_due)
      plan.recompute(context.prompt());
    else
      plan.reuse({shape.prompt - shape.prediction_shift, shape.prompt});
    // With a shifted head the row before the block predicts its first token.
    Range block = context.active_block();
    block.begin = std::max<Index>(0, block.begin - shape.prediction_shift);
    const Range in_response = {std::max(block.begin, shape.prompt), block.end};
    const Index recomputed = recompute_block ? detail::count_moving(context, in_response) : 0;
    const Index moving = detail::count_moving(context, response);
    if (context.step % response_interval == 0)
      plan.recompute(response);
    else if (ratio > 0.0)
      plan.verify(response, static_cast<Index>(static_cast<double>(moving - recomputed) * ratio),
                  similarity_threshold);
    else
      plan.reuse(response);
    if (recompute_block) plan.recompute(block);
    detail::rest_given_rows(context, prompt_due, plan);
    if (refresh_first_layer) plan.cached_layers.begin = 1;
  }
};

}  // namespace dllm_cache::inline v0_1
