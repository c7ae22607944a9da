// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <limits>

#include "dllm_cache/layer.hpp"
#include "dllm_cache/models/head_shape.hpp"
#include "dllm_cache/models/pack_columns.hpp"
#include "dllm_cache/models/parallel.hpp"

// A verified step has few query rows, and its attention is bound by reading cached keys and values.
// General products pack all of them first, which costs more than the products; here they are
// streamed once for up to sixteen queries, a few keys at a time that stay in the first-level cache.
namespace dllm_cache::models::detail {

/// Keys, or values, that are packed and worked through together: they fit the first-level cache.
inline constexpr Index few_rows_block = 16;

/// Queries that share what is read of a key; a row of scores holds as many.
inline constexpr Index queries_together = 8;

/// Lane i of the result is the sum of the lanes of sums[i]: halves of two vectors meet in one, four
/// times over.
inline void sum_lanes(FloatLanes (&sums)[lanes::lane_count]) {
  for (std::size_t i = 0; i < 8; ++i)
    sums[i] = __builtin_shufflevector(sums[i], sums[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19,
                                      20, 21, 22, 23) +
              __builtin_shufflevector(sums[i], sums[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25,
                                      26, 27, 28, 29, 30, 31);
  for (std::size_t i = 0; i < 4; ++i)
    sums[i] = __builtin_shufflevector(sums[i], sums[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10,
                                      11, 24, 25, 26, 27) +
              __builtin_shufflevector(sums[i], sums[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14,
                                      15, 28, 29, 30, 31);
  for (std::size_t i = 0; i < 2; ++i)
    sums[i] = __builtin_shufflevector(sums[i], sums[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24,
                                      25, 12, 13, 28, 29) +
              __builtin_shufflevector(sums[i], sums[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26,
                                      27, 14, 15, 30, 31);
  sums[0] = __builtin_shufflevector(sums[0], sums[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12,
                                    28, 14, 30) +
            __builtin_shufflevector(sums[0], sums[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13,
                                    29, 15, 31);
}

/// scores `[2, 8]` := k q^T; keys `[1 or 2, dim]`, queries `[8, dim]`. A missing second key scores
/// minus infinity: it weighs nothing.
inline void score_keys(MatrixView<const float> keys, const float* queries, float* scores) {
  const Index dim = keys.cols;
  const float* const other = keys.row(keys.rows - 1);
  FloatLanes sums[2 * queries_together] = {};
  for (Index d = 0; d < dim; d += lanes::lane_count) {
    FloatLanes first, second, query;
    lanes::load_lanes<float, float>(keys.row(0) + d, first);
    lanes::load_lanes<float, float>(other + d, second);
    for (Index i = 0; i < queries_together; ++i) {
      lanes::load_lanes<float, float>(queries + i * dim + d, query);
      sums[i] += first * query;
      sums[i + queries_together] += second * query;
    }
  }
  sum_lanes(sums);
  lanes::store_lanes<float, float>(sums[0], scores);
  if (keys.rows == 1)
    std::fill_n(scores + queries_together, queries_together,
                -std::numeric_limits<float>::infinity());
}

/// Adds weights^T v to 4 rows and `16 * Width` columns of `out`; values `[keys, dim]`, weights
/// `[keys, 8]` of which 4 columns are read.
template <Index Width>
void add_values(MatrixView<const float> values, const float* weights, MatrixView<float> out) {
  constexpr Index rows = 4;
  FloatLanes sums[rows][Width];
  for (Index row = 0; row < rows; ++row)
    for (Index w = 0; w < Width; ++w)
      lanes::load_lanes<float, float>(out.row(row) + w * lanes::lane_count, sums[row][w]);
  for (Index key = 0; key < values.rows; ++key) {
    FloatLanes value[Width];
    for (Index w = 0; w < Width; ++w)
      lanes::load_lanes<float, float>(values.row(key) + w * lanes::lane_count, value[w]);
    const float* const weight = weights + key * queries_together;
    for (Index row = 0; row < rows; ++row)
      for (Index w = 0; w < Width; ++w) sums[row][w] += weight[row] * value[w];
  }
  for (Index row = 0; row < rows; ++row)
    for (Index w = 0; w < Width; ++w)
      lanes::store_lanes<float, float>(sums[row][w], out.row(row) + w * lanes::lane_count);
}

/// weights `[pairs, 2, 8]` := exp(weights - maximum of the column); sums `[8]`. Two keys at a time
/// are as wide as a lane.
inline void exponentiate_columns(float* weights, Index pairs, float* sums) {
  using Pair = Eigen::Array<float, 2 * queries_together, 1>;
  Pair best = Eigen::Map<const Pair>(weights);
  for (Index pair = 1; pair < pairs; ++pair)
    best = best.max(Eigen::Map<const Pair>(weights + pair * Pair::SizeAtCompileTime));
  for (Index i = 0; i < queries_together; ++i)
    best[i] = best[i + queries_together] = std::max(best[i], best[i + queries_together]);
  Pair sum = Pair::Zero();
  for (Index pair = 0; pair < pairs; ++pair) {
    Eigen::Map<Pair> line(weights + pair * Pair::SizeAtCompileTime);
    const Pair weight = (line - best).exp();
    line = weight;
    sum += weight;
  }
  for (Index i = 0; i < queries_together; ++i) sums[i] = sum[i] + sum[i + queries_together];
}

/// Queries of a key head that one task takes: what is packed serves them all. Where there are more,
/// general products are worth their packing.
inline constexpr Index most_queries = 2 * queries_together;

/// Whether attend_few() can take a segment of so many rows, and is the fastest way.
[[nodiscard]] inline bool few_rows_suit(Index rows, const HeadShape& shape) {
  return shape.head_dim % lanes::lane_count == 0 &&
         rows * (shape.heads / shape.kv_heads) <= most_queries;
}

/// Attention of the queries of one key head: query i is row `segment.begin + i / group` of its
/// query head `i % group`. See attend_few().
template <StoredScalar Stored>
void attend_queries(MatrixView<const float> q, const Segment<Stored>& segment,
                    const HeadShape& shape, Index kv_head, MatrixView<float> out,
                    Scratch& scratch) {
  const Index dim = shape.head_dim, begin = kv_head * dim, keys = segment.keys.rows;
  const Index group = shape.heads / shape.kv_heads;
  const Index count = (segment.end - segment.begin) * group;
  const Index pairs = (keys + 1) / 2;  // keys are scored in pairs
  const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
  // A part is up to eight queries; memory is a part behind the other.
  const Index parts = (count + queries_together - 1) / queries_together;
  const Index part_size = queries_together * dim;
  const Index scores_size = 2 * pairs * queries_together;
  float* const queries = scratch.floats.ensure(
      parts * (2 * part_size + scores_size + queries_together) + few_rows_block * dim);
  float* const sums = queries + parts * part_size;          // [8, dim] each
  float* const totals = sums + parts * part_size;           // [8] each
  float* const scores = totals + parts * queries_together;  // [pairs, 2, 8] each
  float* const packed = scores + parts * scores_size;       // [few_rows_block, dim]
  // Calls `work(number, row, column)` for every query: its number, and where it lies in q and out.
  const auto for_queries = [&](const auto& work) {
    for (Index i = 0; i < count; ++i)
      work(i, segment.begin + i / group, (kv_head * group + i % group) * dim);
  };
  // Packs block by block and calls `work(first key, packed rows, part)`.
  const auto for_blocks = [&](MatrixView<const Stored> kept, const auto& work) {
    for (Index key = 0; key < keys; key += few_rows_block) {
      const Index rows = std::min(few_rows_block, keys - key);
      pack_columns(kept, key, rows, begin, dim, packed);
      for (Index part = 0; part < parts; ++part)
        work(key, MatrixView<const float>{packed, rows, dim, dim}, part);
    }
  };
  std::fill_n(queries, parts * 2 * part_size, 0.0F);  // and sums
  for_queries([&](Index number, Index row, Index column) {
    Eigen::Map<Eigen::ArrayXf>(queries + number * dim, dim) =
        scale * Eigen::Map<const Eigen::ArrayXf>(q.row(row) + column, dim);
  });
  for_blocks(segment.keys, [&](Index first, MatrixView<const float> block, Index part) {
    for (Index row = 0; row < block.rows; row += 2)
      score_keys(block.middle_rows(row, std::min<Index>(2, block.rows - row)),
                 queries + part * part_size,
                 scores + part * scores_size + (first + row) * queries_together);
  });
  for (Index part = 0; part < parts; ++part)
    exponentiate_columns(scores + part * scores_size, pairs, totals + part * queries_together);
  for_blocks(segment.values, [&](Index first, MatrixView<const float> block, Index part) {
    const float* const weights = scores + part * scores_size + first * queries_together;
    float* const sum = sums + part * part_size;
    constexpr Index wide = 4 * lanes::lane_count;
    const Index rows = std::min(queries_together, count - part * queries_together);
    for (Index row = 0; row < rows; row += 4) {
      Index column = 0;
      const auto values = [&](Index width) {
        return MatrixView<const float>{block.data + column, block.rows, width, block.stride};
      };
      const auto target = [&](Index width) {
        return MatrixView<float>{sum + row * dim + column, 4, width, dim};
      };
      for (; column + wide <= dim; column += wide)
        add_values<4>(values(wide), weights + row, target(wide));
      for (; column < dim; column += lanes::lane_count)
        add_values<1>(values(lanes::lane_count), weights + row, target(lanes::lane_count));
    }
  });
  for_queries([&](Index number, Index row, Index column) {
    Eigen::Map<Eigen::ArrayXf>(out.row(row) + column, dim) =
        Eigen::Map<const Eigen::ArrayXf>(sums + number * dim, dim) / totals[number];
  });
}

/// The attention of one segment with few rows; see attend(). Needs few_rows_suit().
template <StoredScalar Stored>
void attend_few(MatrixView<const float> q, const Segment<Stored>& segment, const HeadShape& shape,
                MatrixView<float> out, ThreadTeam& team) {
  const Index queries = (segment.end - segment.begin) * (shape.heads / shape.kv_heads);
  if (queries == 0) return;
  const double operations = 4.0 * static_cast<double>(queries * segment.keys.rows) *
                            static_cast<double>(shape.kv_heads * shape.head_dim);
  team.for_each(shape.kv_heads, operations, [&](Index kv_head, Scratch& scratch) {
    attend_queries(q, segment, shape, kv_head, out, scratch);
  });
}

}  // namespace dllm_cache::models::detail
