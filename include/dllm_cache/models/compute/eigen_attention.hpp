// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "dllm_cache/base/scalar.hpp"
#include "dllm_cache/eigen.hpp"
#include "dllm_cache/models/compute/head_shape.hpp"
#include "dllm_cache/models/compute/parallel.hpp"
#include "dllm_cache/models/compute/product_input.hpp"
#include "dllm_cache/models/compute/softmax.hpp"
#include "dllm_cache/models/compute/stairs.hpp"

namespace dllm_cache::inline v0_1::models {

namespace detail {

/// Columns of one key head as float32: in place, or widened into `memory` `[keys, head_dim]`.
template <class Stored>
MatrixView<const float> head_columns(MatrixView<const Stored> kept, Index begin, Index count,
                                     float* memory) {
  if constexpr (std::is_same_v<Stored, float>) {
    static_cast<void>(memory);
    return {kept.data + begin, kept.rows, count, kept.stride};
  } else {
    for (Index row = 0; row < kept.rows; ++row)
      base::convert_row(kept.row(row) + begin, memory + row * count, count);
    return {memory, kept.rows, count, count};
  }
}

}  // namespace detail

/// Attention of many rows with Eigen, in float32.
class EigenAttention {
 public:
  EigenAttention() = default;
  explicit EigenAttention(int /*threads*/) {}

  /// The rows of one staircase; see Attention. Rows `out` are float.
  ///
  /// Scores are held for one head and one block of rows at a time, about what a second-level cache
  /// holds, whatever the number of keys.
  template <StoredScalar Stored>
  void attend(MatrixView<const float> q, const detail::Stairs<Stored>& stairs,
              const HeadShape& shape, ProductInput& out, ThreadTeam& team) {
    const MatrixView<float> to = out.floats();
    const Index group = shape.heads / shape.kv_heads;
    const Index dim = shape.head_dim;
    const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
    const Index most_keys = stairs.keys.rows;
    const Index most = std::clamp<Index>((Index{1} << 17) / most_keys, 16, 128);
    const Index blocks = (stairs.rows() + most - 1) / most;
    const Index block = (stairs.rows() + blocks - 1) / blocks;
    const Index most_padded = detail::padded_count(most_keys);
    const bool widens = !std::is_same_v<Stored, float>;
    team.for_each(
        shape.kv_heads * blocks, stairs.operations(shape), [&](Index task, Scratch& scratch) {
          const Index kv_head = task / blocks;
          const Index begin = stairs.begin + task % blocks * block;
          const Index end = std::min(begin + block, stairs.end);
          float* const scores_memory = scratch.floats.ensure(block * (most_padded + dim + 1) +
                                                             (widens ? 2 * most_keys * dim : 0));
          float* const scaled = scores_memory + block * most_padded;
          float* const sums = scaled + block * dim;
          float* const widened = sums + block;
          const Index seen = stairs.seen_by(end - 1);
          const auto all_k =
              detail::head_columns(stairs.keys.middle_rows(0, seen), kv_head * dim, dim, widened);
          const auto all_v = detail::head_columns(stairs.values.middle_rows(0, seen), kv_head * dim,
                                                  dim, widened + seen * dim);
          detail::for_stretches(stairs, begin, end, all_v, [&](Index first, Index last) {
            const Index count = last - first, keys = stairs.seen_by(last - 1);
            const auto k = all_k.middle_rows(0, keys), v = all_v.middle_rows(0, keys);
            const MatrixView<float> scores{scores_memory, count, keys, detail::padded_count(keys)};
            const auto scaled_q = dense_view(scaled, count, dim);
            for (Index head = kv_head * group; head < (kv_head + 1) * group; ++head) {
              const MatrixView<const float> head_q{q.row(first) + head * dim, count, dim, q.stride};
              const MatrixView<float> head_out{to.row(first) + head * dim, count, dim, to.stride};
              as_eigen(scaled_q) = scale * as_eigen(head_q);
              as_eigen(scores).noalias() = as_eigen(scaled_q) * as_eigen(k).transpose();
              for (Index row = 0; row < count; ++row)
                sums[row] = detail::softmax_seen(scores.row(row), stairs.seen_by(first + row), keys,
                                                 scores.row(row));
              as_eigen(head_out).noalias() = as_eigen(scores) * as_eigen(v);
              as_eigen(head_out).array().colwise() /= Eigen::Map<const Eigen::ArrayXf>(sums, count);
            }
          });
        });
  }
};

}  // namespace dllm_cache::inline v0_1::models
