// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "dllm_cache/plan.hpp"

// Which of the verified rows of a step are recomputed: the rule alone, from three sums a row. A
// runtime that compares values elsewhere uses it, or proves its own kernel equal to it
// (docs/selection-rule.md).
namespace dllm_cache::inline v0_1 {

/// What one pass over a fresh and a cached value row leaves behind: enough for their cosine.
/// A tensor-parallel runtime adds these three numbers over its ranks at the end of accumulate().
struct SimilaritySums {
  double dot = 0.0;            ///< fresh . cached, both as stored.
  double fresh_square = 0.0;   ///< fresh . fresh
  double cached_square = 0.0;  ///< cached . cached

  SimilaritySums& operator+=(const SimilaritySums& other) {
    dot += other.dot;
    fresh_square += other.fresh_square;
    cached_square += other.cached_square;
    return *this;
  }
};

/// Signed square of the cosine, in [-1, 1]: orders rows as the cosine does and needs no root.
/// Squares count as 1e-16 at least (the 1e-8 on each norm of the reference), so a zero row scores
/// 0.
[[nodiscard]] inline double signed_square_cosine(const SimilaritySums& sums) {
  return sums.dot * std::abs(sums.dot) /
         (std::max(sums.fresh_square, 1e-16) * std::max(sums.cached_square, 1e-16));
}

/// Cosine similarity of a row's fresh and cached values, for thresholds and reports.
[[nodiscard]] inline double similarity(const SimilaritySums& sums) {
  const double square = signed_square_cosine(sums);
  return std::copysign(std::sqrt(std::abs(square)), square);
}

/// Whether a row is so similar that a plan's threshold leaves it alone. A similarity of NaN is
/// below every threshold, and none reaches no_similarity_threshold.
[[nodiscard]] inline bool reaches_threshold(const SimilaritySums& sums, double threshold) {
  return threshold < no_similarity_threshold && similarity(sums) >= threshold;
}

/// The rule by which verified rows are selected: the least similar first, ties to the lower row,
/// NaN before everything; of these, rows as similar as the threshold are left alone.
///
/// Keeps scratch memory: allocates nothing once it has seen its largest size. Not synchronised.
/// Source: arXiv 2506.06295; `refresh_index` in maomaocun/dLLM-cache at 17235bf. The threshold is
/// this library's.
class LeastSimilarRows {
 public:
  /// Writes to `selected` the `count` least similar places of `sums` (one entry a verified row, in
  /// row order), ascending; `0 <= count <= sums.size()`, else std::invalid_argument.
  void select(std::span<const SimilaritySums> sums, Index count, std::vector<Index>& selected) {
    const auto rows = static_cast<Index>(sums.size());
    if (count < 0 || count > rows)
      base::refuse_argument("LeastSimilarRows: count must be in [0, rows = ", rows, "], got ",
                            count);
    m_rank.resize(sums.size());
    for (std::size_t row = 0; row < sums.size(); ++row) {
      const double rank = signed_square_cosine(sums[row]);
      m_rank[row] = std::isnan(rank) ? -2.0 : rank;  // below every cosine: least similar
    }
    selected.clear();
    if (count == 0) return;
    // The rank of the last row taken; then one pass in row order, lower rows first among equals.
    m_ordered = m_rank;
    const auto last = m_ordered.begin() + (count - 1);
    std::nth_element(m_ordered.begin(), last, m_ordered.end());
    const double bound = *last;
    Index equals = count - std::count_if(m_rank.begin(), m_rank.end(),
                                         [&](double rank) { return rank < bound; });
    selected.reserve(sums.size());
    for (std::size_t row = 0; row < m_rank.size(); ++row) {
      if (m_rank[row] > bound || (m_rank[row] == bound && equals-- <= 0)) continue;
      selected.push_back(static_cast<Index>(row));
    }
  }

  /// The same without rows that are at least as similar as `threshold` (a cosine, any number but
  /// NaN): what a plan of this `verify_count` and `similarity_threshold` recomputes. Throws
  /// std::invalid_argument.
  void select(std::span<const SimilaritySums> sums, Index count, double threshold,
              std::vector<Index>& selected) {
    if (std::isnan(threshold))
      base::refuse_argument("LeastSimilarRows: threshold must be a number, got nan");
    select(sums, count, selected);
    std::erase_if(selected, [&](Index place) {
      return reaches_threshold(sums[static_cast<std::size_t>(place)], threshold);
    });
  }

 private:
  std::vector<double> m_rank;  // of every row, and the same in part ordered
  std::vector<double> m_ordered;
};

}  // namespace dllm_cache::inline v0_1
