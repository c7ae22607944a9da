// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "dllm_cache/base/scalar.hpp"
#include "dllm_cache/eigen.hpp"
#include "dllm_cache/layer.hpp"
#include "dllm_cache/models/compute/head_shape.hpp"
#include "dllm_cache/models/compute/parallel.hpp"
#include "dllm_cache/models/compute/product_input.hpp"
#include "dllm_cache/models/compute/softmax.hpp"

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

  /// The rows of one segment; see Attention. Rows `out` are float.
  ///
  /// Scores are held for one head and one block of rows at a time, about what a second-level cache
  /// holds, whatever the number of keys.
  template <StoredScalar Stored>
  void attend(MatrixView<const float> q, const Segment<Stored>& segment, const HeadShape& shape,
              ProductInput& out, ThreadTeam& team) {
    const MatrixView<float> to = out.floats();
    const Index group = shape.heads / shape.kv_heads;
    const Index dim = shape.head_dim;
    const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
    const Index keys = segment.keys.rows;
    const Index rows = segment.end - segment.begin;
    const Index most = std::clamp<Index>((Index{1} << 17) / keys, 16, 128);
    const Index blocks = (rows + most - 1) / most;
    const Index block = (rows + blocks - 1) / blocks;
    const Index padded = detail::padded_count(keys);
    const bool widens = !std::is_same_v<Stored, float>;
    const double operations = attention_operations(rows, keys, shape);
    team.for_each(shape.kv_heads * blocks, operations, [&](Index task, Scratch& scratch) {
      const Index kv_head = task / blocks;
      const Index begin = segment.begin + task % blocks * block;
      const Index count = std::min(block, segment.end - begin);
      float* const scores_memory =
          scratch.floats.ensure(block * (padded + dim + 1) + (widens ? 2 * keys * dim : 0));
      float* const scaled = scores_memory + block * padded;
      float* const sums = scaled + block * dim;
      float* const widened = sums + block;
      const auto k = detail::head_columns(segment.keys, kv_head * dim, dim, widened);
      const auto v = detail::head_columns(segment.values, kv_head * dim, dim, widened + keys * dim);
      for (Index head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        const MatrixView<const float> head_q{q.row(begin) + head * dim, count, dim, q.stride};
        const MatrixView<float> head_out{to.row(begin) + head * dim, count, dim, to.stride};
        const MatrixView<float> scores{scores_memory, count, keys, padded};
        const auto scaled_q = dense_view(scaled, count, dim);
        as_eigen(scaled_q) = scale * as_eigen(head_q);
        as_eigen(scores).noalias() = as_eigen(scaled_q) * as_eigen(k).transpose();
        for (Index row = 0; row < count; ++row)
          sums[row] = detail::softmax_row(scores.row(row), keys, scores.row(row));
        as_eigen(head_out).noalias() = as_eigen(scores) * as_eigen(v);
        as_eigen(head_out).array().colwise() /= Eigen::Map<const Eigen::ArrayXf>(sums, count);
      }
    });
  }
};

}  // namespace dllm_cache::inline v0_1::models
