// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <limits>

#include "dllm_cache/layer.hpp"
#include "dllm_cache/models/compute/head_shape.hpp"
#include "dllm_cache/models/compute/parallel.hpp"
#include "dllm_cache/models/compute/rounding.hpp"

// A verified step has few query rows, and its attention is bound by reading cached keys and values.
// General products pack all of them first, head by head, which costs more than the products. Here
// keys and values are read where they lie, whole rows one after the other, as memory likes it, for
// all heads and up to sixteen queries of each; a task is a stretch of keys, and what the stretches
// say is put together at the end (the online softmax of FlashAttention, arXiv 2205.14135).
namespace dllm_cache::inline v0_1::models::detail {

/// Keys of one task. Fixed, so that results do not depend on the number of threads.
inline constexpr Index keys_together = 128;

/// Values that are read for one head before the next: as many streams as hardware follows.
inline constexpr Index values_together = 8;

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

/// scores `[2, 8]` := k q^T; two keys of `dim` columns, queries `[8, dim]`. What lies `ahead`
/// elements further is asked for.
template <StoredScalar Stored>
void score_keys(const Stored* one, const Stored* other, Index dim, Index ahead,
                const float* queries, float* scores) {
  FloatLanes sums[2 * queries_together] = {};
  for (Index d = 0; d < dim; d += lanes::lane_count) {
    FloatLanes first, second, query;
    lanes::load_lanes<Stored, float>(one + d, first);
    lanes::load_lanes<Stored, float>(other + d, second);
    __builtin_prefetch(one + ahead + d, 0, 2);
    __builtin_prefetch(other + ahead + d, 0, 2);
    for (Index i = 0; i < queries_together; ++i) {
      lanes::load_lanes<float, float>(queries + i * dim + d, query);
      sums[i] += first * query;
      sums[i + queries_together] += second * query;
    }
  }
  sum_lanes(sums);
  lanes::store_lanes<float, float>(sums[0], scores);
}

/// Adds weights^T v to 4 rows and `16 * Width` columns of `out` `[4, dim]`; values `[keys, 16 *
/// Width]`, weights `[keys, 8]` of which 4 columns are read.
template <Index Width, StoredScalar Stored>
void add_values(MatrixView<const Stored> values, const float* weights, MatrixView<float> out) {
  constexpr Index rows = 4;
  FloatLanes sums[rows][Width];
  for (Index row = 0; row < rows; ++row)
    for (Index w = 0; w < Width; ++w)
      lanes::load_lanes<float, float>(out.row(row) + w * lanes::lane_count, sums[row][w]);
  for (Index key = 0; key < values.rows; ++key) {
    FloatLanes value[Width];
    for (Index w = 0; w < Width; ++w)
      lanes::load_lanes<Stored, float>(values.row(key) + w * lanes::lane_count, value[w]);
    const float* const weight = weights + key * queries_together;
    for (Index row = 0; row < rows; ++row)
      for (Index w = 0; w < Width; ++w) sums[row][w] += weight[row] * value[w];
  }
  for (Index row = 0; row < rows; ++row)
    for (Index w = 0; w < Width; ++w)
      lanes::store_lanes<float, float>(sums[row][w], out.row(row) + w * lanes::lane_count);
}

/// weights `[pairs, 2, 8]` := exp(weights - maxima); maxima `[8]` of the columns, sums `[8]`. Two
/// keys at a time are as wide as a lane.
inline void exponentiate_columns(float* weights, Index pairs, float* maxima, float* sums) {
  using Pair = Eigen::Array<float, 2 * queries_together, 1>;
  Pair best = Eigen::Map<const Pair>(weights);
  for (Index pair = 1; pair < pairs; ++pair)
    best = best.max(Eigen::Map<const Pair>(weights + pair * Pair::SizeAtCompileTime));
  for (Index i = 0; i < queries_together; ++i)
    maxima[i] = best[i] = best[i + queries_together] =
        std::max(best[i], best[i + queries_together]);
  Pair sum = Pair::Zero();
  for (Index pair = 0; pair < pairs; ++pair) {
    Eigen::Map<Pair> line(weights + pair * Pair::SizeAtCompileTime);
    const Pair weight = (line - best).exp();
    line = weight;
    sum += weight;
  }
  for (Index i = 0; i < queries_together; ++i) sums[i] = sum[i] + sum[i + queries_together];
}

/// Queries of a key head that are worth it; where there are more, general products are.
inline constexpr Index most_queries = 2 * queries_together;

/// Whether attend_few() can take a segment of so many rows, and is the fastest way.
[[nodiscard]] inline bool few_rows_suit(Index rows, const HeadShape& shape) {
  return shape.head_dim % lanes::lane_count == 0 &&
         rows * (shape.heads / shape.kv_heads) <= most_queries;
}

/// The attention of one segment with few rows; see Attention. Needs few_rows_suit().
template <StoredScalar Stored, ProductScalar Element = float>
class FewRowsAttention {
 public:
  FewRowsAttention(MatrixView<const float> q, const Segment<Stored>& segment,
                   const HeadShape& shape, MatrixView<Element> out)
      : m_q(q),
        m_segment(segment),
        m_shape(shape),
        m_out(out),
        m_group(shape.heads / shape.kv_heads),
        m_count((segment.end - segment.begin) * m_group),
        m_parts(shape.kv_heads * ((m_count + queries_together - 1) / queries_together)) {}

  /// Makes room for any number of queries that suits, since that changes from step to step.
  static float* reserve(Index keys, const HeadShape& shape, ThreadTeam& team) {
    const Index part = queries_together * shape.head_dim;
    return team.shared().ensure(
        most_parts(shape) *
        (part + tasks_of(keys) * (part + 2 * queries_together) + team.threads() * scores_size));
  }

  void run(ThreadTeam& team) {
    const Index keys = m_segment.keys.rows, tasks = tasks_of(keys);
    m_queries = reserve(keys, m_shape, team);
    m_results = m_queries + m_parts * part_size();
    float* const scores = m_results + m_parts * tasks * result_size();
    pack_queries();
    // Reading keys and values takes as long as so many rows' operations.
    constexpr Index rows_while_reading = 16;
    const double effort = attention_operations(rows_while_reading, keys, m_shape);
    team.for_each(tasks, effort, [&](Index task, Scratch& scratch) {
      attend_keys(task, std::min(keys_together, keys - task * keys_together),
                  scores + scratch.thread * m_parts * scores_size);
    });
    for (Index number = 0; number < m_parts; ++number) combine(number, tasks);
  }

 private:
  // A part is up to eight queries of one key head. Its result for a stretch of keys: weighted
  // values [8, dim], maxima [8] and sums [8] of the weights.
  [[nodiscard]] Index part_size() const { return queries_together * m_shape.head_dim; }
  [[nodiscard]] Index result_size() const { return part_size() + 2 * queries_together; }
  [[nodiscard]] float* result(Index task, Index part) const {
    return m_results + (task * m_parts + part) * result_size();
  }
  static Index most_parts(const HeadShape& shape) {
    return shape.kv_heads * (most_queries / queries_together);
  }
  static Index tasks_of(Index keys) { return (keys + keys_together - 1) / keys_together; }
  [[nodiscard]] Index parts_of_head() const { return m_parts / m_shape.kv_heads; }
  [[nodiscard]] Index column(Index part) const { return part / parts_of_head() * m_shape.head_dim; }
  // Queries of a part that there are.
  [[nodiscard]] Index queries_in(Index part) const {
    return std::min(queries_together, m_count - part % parts_of_head() * queries_together);
  }
  // Calls `work(number in the part, row, column)` for its queries, as they lie in q and out: query
  // i of a key head is row `i / group` of its query head `i % group`.
  template <class Work>
  void for_queries(Index part, const Work& work) const {
    const Index first = part % parts_of_head() * queries_together;
    const Index head = part / parts_of_head() * m_group;
    for (Index i = 0; i < queries_in(part); ++i)
      work(i, m_segment.begin + (first + i) / m_group,
           (head + (first + i) % m_group) * m_shape.head_dim);
  }

  void pack_queries() {
    const Index dim = m_shape.head_dim;
    const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
    std::fill_n(m_queries, m_parts * part_size(), 0.0F);
    for (Index part = 0; part < m_parts; ++part)
      for_queries(part, [&](Index i, Index row, Index at) {
        Eigen::Map<Eigen::ArrayXf>(m_queries + part * part_size() + i * dim, dim) =
            scale * Eigen::Map<const Eigen::ArrayXf>(m_q.row(row) + at, dim);
      });
  }

  // scores: [keys / 2, 2, 8] a part
  void attend_keys(Index task, Index keys, float* scores) {
    const Index first = task * keys_together, pairs = (keys + 1) / 2;
    score(first, keys, scores);
    for (Index part = 0; part < m_parts; ++part) {
      float* const sums = result(task, part);
      std::fill_n(sums, part_size(), 0.0F);
      exponentiate_columns(scores + part * scores_size, pairs, sums + part_size(),
                           sums + part_size() + queries_together);
    }
    weigh(task, first, keys, scores);
  }

  void score(Index first, Index keys, float* scores) const {
    const auto& kept = m_segment.keys;
    for (Index key = 0; key < keys; key += 2) {
      const Stored* const one = kept.row(first + key);
      const Stored* const other = kept.row(first + std::min(key + 1, keys - 1));
      const Index ahead =
          (std::min(first + key + keys_ahead, kept.rows - 2) - (first + key)) * kept.stride;
      for (Index part = 0; part < m_parts; ++part)
        score_keys(one + column(part), other + column(part), m_shape.head_dim,
                   std::max<Index>(ahead, 0), m_queries + part * part_size(),
                   scores + part * scores_size + key * queries_together);
    }
    if (keys % 2 == 0) return;
    // A key that is not there weighs nothing.
    for (Index part = 0; part < m_parts; ++part)
      std::fill_n(scores + part * scores_size + keys * queries_together, queries_together,
                  -std::numeric_limits<float>::infinity());
  }

  void weigh(Index task, Index first, Index keys, const float* scores) {
    const auto& kept = m_segment.values;
    const Index dim = m_shape.head_dim;
    constexpr Index wide = 4 * lanes::lane_count;
    for (Index key = 0; key < keys; key += values_together) {
      const Index rows = std::min(values_together, keys - key);
      const auto block = kept.middle_rows(first + key, rows);
      ask_for(first + key + values_together);
      for (Index part = 0; part < m_parts; ++part) {
        const float* const weights = scores + part * scores_size + key * queries_together;
        const auto values = [&](Index at, Index width) {
          return MatrixView<const Stored>{block.data + column(part) + at, rows, width,
                                          block.stride};
        };
        for (Index query = 0; query < queries_in(part); query += 4) {
          const auto target = [&](Index at, Index width) {
            return MatrixView<float>{result(task, part) + query * dim + at, 4, width, dim};
          };
          Index at = 0;
          for (; at + wide <= dim; at += wide)
            add_values<4>(values(at, wide), weights + query, target(at, wide));
          for (; at < dim; at += lanes::lane_count)
            add_values<1>(values(at, lanes::lane_count), weights + query,
                          target(at, lanes::lane_count));
        }
      }
    }
  }

  // Asks for the next rows of values while these are worked on.
  void ask_for(Index first) const {
    const auto& kept = m_segment.values;
    constexpr Index line = 64 / static_cast<Index>(sizeof(Stored));
    for (Index row = first; row < std::min(first + values_together, kept.rows); ++row)
      for (Index at = 0; at < kept.cols; at += line) __builtin_prefetch(kept.row(row) + at, 0, 2);
  }

  // Puts the stretches of keys together for one part.
  void combine(Index part, Index tasks) {
    using Eight = Eigen::Array<float, queries_together, 1>;
    const Index dim = m_shape.head_dim;
    const auto maxima = [&](Index task) {
      return Eigen::Map<const Eight>(result(task, part) + part_size());
    };
    Eight best = maxima(0);
    for (Index task = 1; task < tasks; ++task) best = best.max(maxima(task));
    Eight total = Eight::Zero();
    float* const sums = result(0, part);
    for (Index task = 0; task < tasks; ++task) {
      const Eight share = (maxima(task) - best).exp();
      total += share * Eigen::Map<const Eight>(result(task, part) + part_size() + queries_together);
      for (Index i = 0; i < queries_in(part); ++i) {
        const Eigen::Map<const Eigen::ArrayXf> term(result(task, part) + i * dim, dim);
        Eigen::Map<Eigen::ArrayXf> sum(sums + i * dim, dim);
        if (task == 0)
          sum = share[i] * term;
        else
          sum += share[i] * term;
      }
    }
    for_queries(part, [&](Index i, Index row, Index at) {
      Eigen::Map<Eigen::ArrayXf> sum(sums + i * dim, dim);
      sum /= total[i];
      round_row(sum.data(), m_out.row(row) + at, dim);
    });
  }

  static constexpr Index keys_ahead = 4;
  static constexpr Index scores_size = keys_together * queries_together;

  MatrixView<const float> m_q;
  const Segment<Stored>& m_segment;
  const HeadShape& m_shape;
  MatrixView<Element> m_out;
  Index m_group;
  Index m_count;  // queries of one key head
  Index m_parts;  // of all key heads
  float* m_queries = nullptr;
  float* m_results = nullptr;
};

/// out `[m, heads * head_dim]` = softmax(q k^T / sqrt(head_dim)) v for the rows of one segment, few
/// enough for few_rows_suit(), rounded to Element; q like out, keys and values
/// `[T, kv_heads * head_dim]`.
template <StoredScalar Stored, ProductScalar Element>
void attend_few(MatrixView<const float> q, const Segment<Stored>& segment, const HeadShape& shape,
                MatrixView<Element> out, ThreadTeam& team) {
  if (segment.end > segment.begin)
    FewRowsAttention<Stored, Element>(q, segment, shape, out).run(team);
}

}  // namespace dllm_cache::inline v0_1::models::detail
