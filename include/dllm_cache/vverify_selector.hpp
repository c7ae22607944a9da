// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "dllm_cache/base/error.hpp"
#include "dllm_cache/base/scalar.hpp"
#include "dllm_cache/selection.hpp"

namespace dllm_cache::inline v0_1 {

/// Part of RowSelector: write `void accumulate(MatrixView<const Scalar> fresh,
/// MatrixView<Stored> cached, std::span<SimilaritySums> sums)`.
template <class S, class Scalar, class Stored>
concept AccumulatesSums = requires(S& selector, MatrixView<const Scalar> fresh,
                                   MatrixView<Stored> cached, std::span<SimilaritySums> sums) {
  { selector.accumulate(fresh, cached, sums) } -> std::same_as<void>;
};

/// Part of RowSelector: write `void select(std::span<const SimilaritySums> sums, Index count,
/// std::vector<Index>& selected)`.
template <class S>
concept SelectsRows = requires(S& selector, std::span<const SimilaritySums> sums, Index count,
                               std::vector<Index>& selected) {
  { selector.select(sums, count, selected) } -> std::same_as<void>;
};

/// Decides which verified rows are recomputed, in two stages.
///
/// Rules no concept can check: `accumulate` sees fresh `[m, kv]` and cached `[m, kv]` values of the
/// same rows, must leave the fresh values, rounded, in `cached`, and writes one entry of `sums` a
/// row, of the whole row: its similarity is compared with the plan's threshold; `select` is given
/// the sums of all verified rows of one sequence in row order and leaves at most `count` ascending
/// places in `selected`. Neither allocates once it has seen its largest size.
template <class S, class Scalar, class Stored>
concept RowSelector = std::copyable<S> && AccumulatesSums<S, Scalar, Stored> && SelectsRows<S>;

/// V-verify of dLLM-Cache: the rows whose value changed most against the cached value.
///
/// Rows rank by the cosine of the value rows (all heads as one vector), as LeastSimilarRows says.
/// Fresh values are rounded to the stored type before they are compared: otherwise a bf16 cache
/// would be selected from by its rounding noise.
/// Source: arXiv 2506.06295; `refresh_index` in maomaocun/dLLM-cache at 17235bf.
template <ComputeScalar Scalar, StoredScalar Stored = Scalar>
class VVerifySelector {
 public:
  /// One pass over memory: for each row of fresh `[m, kv]` and cached `[m, kv]` writes
  /// (dot, |fresh|^2, |cached|^2) and replaces the cached row by the fresh one, rounded to Stored.
  /// The views must not overlap. Throws std::invalid_argument when shapes or `sums.size()` differ.
  void accumulate(MatrixView<const Scalar> fresh, MatrixView<Stored> cached,
                  std::span<SimilaritySums> sums) const {
    if (fresh.rows != cached.rows || fresh.cols != cached.cols)
      base::refuse_argument("VVerifySelector: cached must be [", fresh.rows, ", ", fresh.cols,
                            "] like fresh, got [", cached.rows, ", ", cached.cols, "]");
    if (static_cast<Index>(sums.size()) != fresh.rows)
      base::refuse_argument("VVerifySelector: sums must have one entry a row (", fresh.rows,
                            "), got ", sums.size());
    for (Index row = 0; row < fresh.rows; ++row)
      sums[static_cast<std::size_t>(row)] =
          accumulate_row(fresh.row(row), cached.row(row), fresh.cols);
  }

  /// Writes to `selected` the `count` least similar places of `sums`, ascending; see
  /// LeastSimilarRows. `0 <= count <= sums.size()`, else std::invalid_argument.
  void select(std::span<const SimilaritySums> sums, Index count, std::vector<Index>& selected) {
    m_rule.select(sums, count, selected);
  }

 private:
  using Lanes = base::Lanes<Scalar>;
  using WideLanes = base::Lanes<double>;

  // Three sums of 16 lanes each.
  template <class L>
  struct LaneSums {
    L dot{}, fresh_square{}, cached_square{};
  };

  // Sums run in lanes of the compute scalar over short stretches, which are added up in double: as
  // fast as memory, and no worse than a float sum of a few numbers. All three sums take their terms
  // in the same order, so an unchanged row scores exactly 1.
  static SimilaritySums accumulate_row(const Scalar* fresh, Stored* cached, Index cols) {
    constexpr Index step = 2 * base::lane_count;  // two chains hide the latency of an addition
    constexpr Index stretch = 16 * step;
    LaneSums<WideLanes> wide;
    Index col = 0;
    while (col + step <= cols) {
      const Index end = std::min(col + stretch, cols - cols % step);
      LaneSums<Lanes> even, odd;
      for (; col < end; col += step) {
        add_lanes(fresh + col, cached + col, even);
        add_lanes(fresh + col + base::lane_count, cached + col + base::lane_count, odd);
      }
      wide.dot += __builtin_convertvector(even.dot + odd.dot, WideLanes);
      wide.fresh_square += __builtin_convertvector(even.fresh_square + odd.fresh_square, WideLanes);
      wide.cached_square +=
          __builtin_convertvector(even.cached_square + odd.cached_square, WideLanes);
    }
    SimilaritySums total{sum(wide.dot), sum(wide.fresh_square), sum(wide.cached_square)};
    for (; col < cols; ++col) {
      const auto rounded = static_cast<Stored>(fresh[col]);
      const auto a = static_cast<double>(rounded), b = static_cast<double>(cached[col]);
      cached[col] = rounded;
      total += {a * b, a * a, b * b};
    }
    return total;
  }

  // Sixteen columns: compare, replace the cached ones, add to the sums.
  static void add_lanes(const Scalar* fresh, Stored* cached, LaneSums<Lanes>& sums) {
    Lanes a, b;
    base::load_lanes<Scalar, Scalar>(fresh, a);
    base::load_lanes<Stored, Scalar>(cached, b);
    base::store_lanes<Scalar, Stored>(a, cached);
    if constexpr (!std::is_same_v<Stored, Scalar>) base::load_lanes<Stored, Scalar>(cached, a);
    sums.dot += a * b;
    sums.fresh_square += a * a;
    sums.cached_square += b * b;
  }

  static double sum(const WideLanes& lanes) {
    double total = 0.0;
    for (Index i = 0; i < base::lane_count; ++i) total += lanes[i];
    return total;
  }

  LeastSimilarRows m_rule;
};

}  // namespace dllm_cache::inline v0_1
