// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>

#include "dllm_cache/policies/given_rows.hpp"
#include "dllm_cache/policy.hpp"

namespace dllm_cache::inline v0_1 {

/// SPA-Cache (arXiv 2602.02544, ICML 2026; repository wenhao728/spa-cache at f26dd1f,
/// spac/cache.py, spac/sequence.py and the hooks beside them): dLLM-Cache with another feature to
/// compare and a number of rows for each depth.
///
/// Everything is recomputed every `prompt_interval` steps and the response every
/// `response_interval`. In between the keys and values of all response rows are computed, and those
/// rows recomputed whose projection on the value weights' first singular vectors changed most:
/// trunc(R * share) of them, where the share grows with depth to a peak and falls behind it, as two
/// halves of normal curves. Layer 0 is recomputed. The projection is the layer's
/// (ComputesVerifyFeatures); its rank is ModelShape::verify_width.
/// Differs: none known, but prompt rows are in the pass only when they are due. Bidirectional
/// attention only.
struct SpaCachePolicy {
  Index prompt_interval = 50;   ///< Steps between full forwards; `refresh_steps` (50).
  Index response_interval = 7;  ///< Between response refreshes; `refresh_gen_steps` (7).
  /// Rank of the projection, at least 1: the layers must have it as their verify_width; 0: whatever
  /// they have; `proxy_rank` (128).
  Index proxy_rank = 128;
  Index warmup_steps = 0;     ///< Steps after the first that recompute everything too, at least 0;
                              ///< `n_warmup_steps` (0).
  double peak_depth = 0.75;   ///< Depth of the peak, in (0, 1); LLaDA .75, Dream .5.
  double peak_share = 0.25;   ///< Share at the peak, in (0, 1]; LLaDA .25, Dream .3.
  double first_share = 0.03;  ///< Share at depth 0, above 0 and below the peak's; .03, .05.
  double last_share = 0.13;   ///< Share at depth 1, above 0 and below the peak's; .13, .25.
  double least_share = 0.03125;  ///< At least this before the peak, in [0, 1].

  static void visit_options(auto& self, auto&& visit) {
    constexpr OptionRange<double> share{.least = 0.0, .most = 1.0, .above_least = true};
    visit("prompt_interval", self.prompt_interval, steps_or_never, "steps between full forwards");
    visit("response_interval", self.response_interval, steps_or_never,
          "steps between response refreshes");
    visit("proxy_rank", self.proxy_rank, OptionRange<Index>{.least = 1, .unset = 0},
          "rank of the projection of values that is compared");
    visit("warmup_steps", self.warmup_steps, at_least(0), "first steps that recompute everything");
    visit("peak_depth", self.peak_depth,
          OptionRange<double>{.least = 0.0, .most = 1.0, .above_least = true, .below_most = true},
          "depth at which most rows are recomputed");
    visit("peak_share", self.peak_share, share, "share of the response recomputed there");
    visit("first_share", self.first_share, share, "the same at depth 0");
    visit("last_share", self.last_share, share, "the same at depth 1");
    visit("least_share", self.least_share, from_0_to_1, "at least this share before the peak");
  }

  [[nodiscard]] PolicyTraits traits(const SequenceShape& shape) const {
    for (const double end : {first_share, last_share})
      if (end >= peak_share)
        base::refuse_argument("policy spa: first_share and last_share must be below peak_share = ",
                              peak_share, ", got ", end);
    return {.name = "spa",
            .stored_deltas = {shape.prompt - shape.prediction_shift, shape.rows()},
            .verifies_features = true,
            .verify_width = proxy_rank,
            .stores_verified_keys = true};
  }

  void plan(const StepContext& context, StepPlan& plan) const {
    const SequenceShape& shape = context.shape;
    const bool warm = context.step <= warmup_steps;
    const bool all_due = context.step % prompt_interval == 0 || warm;
    plan.cached_layers.begin = 1;
    if (all_due)
      plan.recompute(context.prompt());
    else
      plan.reuse({shape.prompt - shape.prediction_shift, shape.prompt});
    if (all_due || context.step % response_interval == 0) {
      plan.recompute(context.response());
      detail::rest_given_rows(context, all_due, plan);
      return;
    }
    plan.verify(context.response(), 0);
    detail::rest_given_rows(context, false, plan);
    const auto rows =
        static_cast<double>(std::count(plan.rows.begin(), plan.rows.end(), RowAction::Verify));
    for (Index layer = 1; layer < context.layers; ++layer)
      plan.verify_in_layer(
          layer, static_cast<Index>(rows * share_at(static_cast<double>(layer) /
                                                    static_cast<double>(context.layers))));
  }

  /// Share of the response that a layer at this depth recomputes, in [0, 1): layer / layers.
  [[nodiscard]] double share_at(double depth) const {
    const bool before = depth < peak_depth;
    // How wide a half is follows from the share at its end.
    const double reach = before ? peak_depth : 1.0 - peak_depth;
    const double fall = std::log((before ? first_share : last_share) / peak_share);
    const double distance = (depth - peak_depth) / reach;
    const double share = peak_share * std::exp(fall * distance * distance);
    return before ? std::max(share, least_share) : share;
  }
};

}  // namespace dllm_cache::inline v0_1
