// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dllm_cache/policies/given_rows.hpp"
#include "dllm_cache/policy.hpp"

namespace dllm_cache::inline v0_1 {

/// dLLM-Cache (Liu et al., arXiv 2506.06295; repository maomaocun/dLLM-cache at 17235bf).
///
/// The prompt is recomputed every `prompt_interval` steps and the response every
/// `response_interval`; in between, the values of all response rows are computed and the
/// `trunc(R * ratio)` rows whose values changed most (lowest cosine similarity) are recomputed in
/// every layer.
/// In a sequence with gaps the prompt is all text that was given, the response all rows to be
/// filled. Differs from the repository in work only: prompt rows are in the pass only when the
/// prompt is due (with a shifted head the last of them always, since it predicts the first response
/// token). Bidirectional attention only: with block-causal attention the planner refuses its plans
/// until the last block is active. BlockVerifyPolicy, which is not in the paper, keeps more
/// answers.
struct DllmCachePolicy {
  /// Steps between prompt refreshes, at least 1, or `never`; K_p of the paper,
  /// `prompt_interval_steps` of the repository (its scripts use 5 to 100).
  Index prompt_interval = 100;
  /// Steps between response refreshes, at least 1, or `never`; K_r, `gen_interval_steps` (1 to 8).
  Index response_interval = 7;
  /// Share of response rows recomputed in a verified step, in [0, 1]; rho, `transfer_ratio` (0.25).
  /// 0 reuses everything and verifies nothing.
  double ratio = 0.25;
  /// Layer 0 recomputes every row in the pass (in the repository since July 2025, commit 105ae18):
  /// without it the embedding of a token just committed may be ignored until it is selected, and
  /// masked rows, whose values there depend on no other row, are never selected.
  bool refresh_first_layer = true;

  static void visit_options(auto& self, auto&& visit) {
    visit("prompt_interval", self.prompt_interval, steps_or_never,
          "steps between prompt refreshes, K_p");
    visit("response_interval", self.response_interval, steps_or_never,
          "steps between response refreshes, K_r");
    visit("ratio", self.ratio, from_0_to_1,
          "share of verified response rows recomputed in between");
    visit("refresh_first_layer", self.refresh_first_layer, yes_or_no,
          "recompute all rows in the pass in layer 0");
  }

  [[nodiscard]] PolicyTraits traits(const SequenceShape& shape) const {
    const Index carried = prompt_interval > 1 ? shape.prediction_shift : 0;
    const Index reused = response_interval > 1 ? shape.response : 0;
    return {.name = "dllm-cache", .stored_deltas = {shape.prompt - carried, shape.prompt + reused}};
  }

  void plan(const StepContext& context, StepPlan& plan) const {
    const SequenceShape& shape = context.shape;
    const bool prompt_due = context.step % prompt_interval == 0;
    if (prompt_due)
      plan.recompute(context.prompt());
    else
      plan.reuse({shape.prompt - shape.prediction_shift, shape.prompt});
    if (context.step % response_interval == 0)
      plan.recompute(context.response());
    else if (ratio > 0.0)
      plan.verify(context.response(), static_cast<Index>(static_cast<double>(detail::count_moving(
                                                             context, context.response())) *
                                                         ratio));
    else
      plan.reuse(context.response());
    detail::rest_given_rows(context, prompt_due, plan);
    if (refresh_first_layer) plan.cached_layers.begin = 1;
  }
};

}  // namespace dllm_cache::inline v0_1
