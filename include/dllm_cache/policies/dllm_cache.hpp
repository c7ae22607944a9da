// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "dllm_cache/policy.hpp"

namespace dllm_cache::inline v0_1 {

/// dLLM-Cache (Liu et al., arXiv 2506.06295; repository maomaocun/dLLM-cache at 17235bf).
///
/// The prompt is recomputed every `prompt_interval` steps and the response every
/// `response_interval`; in between, the values of all response rows are computed and the
/// `trunc(R * ratio)` rows whose values turned most are recomputed in every layer.
/// Differs from the repository in work only: prompt rows are in the pass only when the prompt is
/// due (with a shifted head the last of them always, since it predicts the first response token).
/// For bidirectional attention: with blocks of attention the planner refuses its plans as long as
/// the response reaches beyond the live rows.
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
  /// masked rows, whose values there hang on no other row, are never selected.
  bool refresh_first_layer = true;
  /// Also recompute the active block in every step and verify the rows beside it alone. Not in the
  /// paper: what a masked row predicts hangs on the keys of tokens just committed, which leave its
  /// own value as it was, so that its value does not select it (measured in bench/RESULTS.md). A
  /// block that is the whole response is recomputed whole.
  bool recompute_block = false;
  /// Of the rows that the ratio would take, leave those alone whose values are at least this
  /// similar to the previous ones: cosine in [-1, 1], or `no_similarity_threshold`. Not in the
  /// paper: with it the ratio is the most, not the measure, of a step's work (measured in
  /// bench/RESULTS.md). Rows that turn slowly are never selected then: only a refresh finds them.
  double similarity_threshold = no_similarity_threshold;

  [[nodiscard]] std::string options() const {
    return option_text("prompt_interval", prompt_interval, "response_interval", response_interval,
                       "ratio", ratio, "refresh_first_layer", refresh_first_layer,
                       "recompute_block", recompute_block, "similarity_threshold",
                       similarity_threshold);
  }

  [[nodiscard]] PolicyTraits traits(const SequenceShape& shape) const {
    if (prompt_interval < 1)
      base::refuse_argument("DllmCachePolicy: prompt_interval must be at least 1, got ",
                            prompt_interval);
    if (response_interval < 1)
      base::refuse_argument("DllmCachePolicy: response_interval must be at least 1, got ",
                            response_interval);
    if (!(ratio >= 0.0 && ratio <= 1.0))  // written so that NaN is refused too
      base::refuse_argument("DllmCachePolicy: ratio must be in [0, 1], got ", ratio);
    if (!(similarity_threshold >= -1.0 && similarity_threshold <= 1.0) &&
        similarity_threshold != no_similarity_threshold)
      base::refuse_argument(
          "DllmCachePolicy: similarity_threshold must be in [-1, 1] or no_similarity_threshold, "
          "got ",
          similarity_threshold);
    const Index carried = prompt_interval > 1 ? shape.prediction_shift : 0;
    const Index reused = response_interval > 1 ? shape.response : 0;
    return {.name = "dllm-cache",
            .stored_deltas = {shape.prompt - carried, shape.prompt + reused},
            .needs_block = recompute_block};
  }

  void plan(const StepContext& context, StepPlan& plan) const {
    const SequenceShape& shape = context.shape;
    if (context.step % prompt_interval == 0)
      plan.recompute(context.prompt());
    else
      plan.reuse({shape.prompt - shape.prediction_shift, shape.prompt});
    if (context.step % response_interval == 0)
      plan.recompute(context.response());
    else if (ratio > 0.0)
      plan.verify(context.response(), selected(shape.response - block_rows(context)),
                  similarity_threshold);
    else
      plan.reuse(context.response());
    if (recompute_block) plan.recompute(block(context));
    if (refresh_first_layer) plan.cached_layers.begin = 1;
  }

 private:
  // The active block; with a shifted head also the row before it, which predicts its first token.
  static Range block(const StepContext& context) {
    const Range block = context.active_block();
    return {std::max<Index>(0, block.begin - context.shape.prediction_shift), block.end};
  }

  // How many response rows are recomputed anyhow.
  [[nodiscard]] Index block_rows(const StepContext& context) const {
    if (!recompute_block) return 0;
    const Range rows = block(context);
    return std::max<Index>(0, rows.end - std::max(rows.begin, context.shape.prompt));
  }

  [[nodiscard]] Index selected(Index rows) const {
    return static_cast<Index>(static_cast<double>(rows) * ratio);
  }
};

}  // namespace dllm_cache::inline v0_1
