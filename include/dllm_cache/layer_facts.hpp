// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "dllm_cache/base/matrix_view.hpp"

// What a policy may know between two layers of a step, and what it may change.
namespace dllm_cache::inline v0_1 {

/// What is known when a layer is done: as much of it as the plan asked for. Valid during the call.
struct LayerFacts {
  Index layer = 0;      ///< The layer that is done.
  bool cached = false;  ///< Whether it lies in the plan's `cached_layers`.
  /// AttentionFact::ColumnSums, one a row of the sequence; 0 for rows that are not seen.
  std::span<const float> column_sums = {};
  /// AttentionFact::HeadMeans `[watched, T]` of every layer that is done, this one last, of the
  /// rows that were watched there; rows that are not seen have 0.
  std::span<const MatrixView<const float>> head_means = {};
  /// AttentionFact::QueryScores, one a row of the sequence; -infinity for rows that none of the
  /// watched sees.
  std::span<const float> query_scores = {};
  /// How like its last attention that of the plan's probes is: the mean over probes and visible
  /// keys of the cosine, over the heads, of p before this step's keys were stored and after; norms
  /// count as 1e-8 at least. NaN where nothing was probed.
  double probe_similarity = std::numeric_limits<double>::quiet_NaN();
  /// The plan's watched rows, without those that have ended.
  std::span<const Index> watched = {};
};

/// What a policy wants changed from the next layer on; empty: nothing. It may ask for more work or
/// for less, but never so that features of different steps mix within a row.
struct LayerChange {
  bool recompute_rest = false;        ///< Every row in the pass is recomputed in all later layers.
  std::optional<Index> verify_count;  ///< Rows that the next layer selects among the verified ones,
                                      ///< in [0, verified rows].
  /// Rows that leave the pass: deeper layers keep what they have stored of them, and there are no
  /// logits. They must have been computed before this step; not together with `recompute_rest`.
  std::vector<Index> ended;

  /// Asks for nothing; keeps its memory.
  void clear() {
    recompute_rest = false;
    verify_count.reset();
    ended.clear();
  }
};

}  // namespace dllm_cache::inline v0_1
