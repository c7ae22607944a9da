// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>

#include <algorithm>
#include <span>

#include "dllm_cache/base/lanes.hpp"
#include "dllm_cache/base/matrix_view.hpp"

// Attention of a few rows as numbers: what a layer's own attention computes and keeps to itself.
namespace dllm_cache::inline v0_1::detail {

/// scores `[queries, n]` := scale * q . k over the columns `[key_col, key_col + width)` of keys
/// `[>= n, kv]` and the first `width` elements that each query points at.
template <class Scalar, class Stored>
void score_keys(std::span<const Scalar* const> queries, MatrixView<const Stored> keys,
                Index key_col, Index width, double scale, MatrixView<float> scores) {
  using Lanes = base::Lanes<Scalar>;
  // So many queries meet a key while it is in registers.
  constexpr std::size_t together = 4;
  const Index whole = width - width % base::lane_count;
  for (std::size_t first = 0; first < queries.size(); first += together) {
    const std::size_t count = std::min(together, queries.size() - first);
    // Fewer than four: the last one again, whose result is written once more.
    const auto query = [&](std::size_t i) { return queries[first + std::min(i, count - 1)]; };
    for (Index row = 0; row < scores.cols; ++row) {
      const Stored* const key = keys.row(row) + key_col;
      Lanes sums[together] = {};
      for (Index col = 0; col < whole; col += base::lane_count) {
        Lanes k, q;
        base::load_lanes<Stored, Scalar>(key + col, k);
        for (std::size_t i = 0; i < together; ++i) {
          base::load_lanes<Scalar, Scalar>(query(i) + col, q);
          sums[i] += q * k;
        }
      }
      for (std::size_t i = 0; i < together; ++i) {
        Scalar sum = 0;
        for (Index lane = 0; lane < base::lane_count; ++lane) sum += sums[i][lane];
        for (Index col = whole; col < width; ++col)
          sum += query(i)[col] * static_cast<Scalar>(key[col]);
        scores.row(static_cast<Index>(first + std::min(i, count - 1)))[row] =
            static_cast<float>(static_cast<double>(sum) * scale);
      }
    }
  }
}

/// scores := softmax of the first `seen` of them, 0 behind.
inline void softmax_scores(std::span<float> scores, Index seen) {
  Eigen::Map<Eigen::ArrayXf> row(scores.data(), seen);
  if (seen > 0) {
    row = (row - row.maxCoeff()).exp();
    row /= row.sum();
  }
  std::fill(scores.begin() + seen, scores.end(), 0.0F);
}

}  // namespace dllm_cache::inline v0_1::detail
