// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <span>

#include "dllm_cache/eigen.hpp"
#include "dllm_cache/layer.hpp"
#include "dllm_cache/models/parallel.hpp"
#include "dllm_cache/scalar.hpp"

namespace dllm_cache::models {

/// How the columns of queries, keys and values divide into heads.
struct HeadShape {
  Index heads = 1;
  Index kv_heads = 1;  ///< Divides `heads`; consecutive query heads share a key head.
  Index head_dim = 1;
};

namespace detail {

/// One head's queries against the keys of one segment, a block of rows at a time, so that scores
/// never take more than a block times the keys.
inline void attend_head(const Eigen::Ref<const RowMajorMatrix<float>, 0, Eigen::OuterStride<>>& q,
                        const Eigen::Ref<const RowMajorMatrix<float>, 0, Eigen::OuterStride<>>& k,
                        const Eigen::Ref<const RowMajorMatrix<float>, 0, Eigen::OuterStride<>>& v,
                        Eigen::Ref<RowMajorMatrix<float>, 0, Eigen::OuterStride<>> out,
                        float* scores_memory, Index block) {
  const float scale = 1.0F / std::sqrt(static_cast<float>(q.cols()));
  for (Index begin = 0; begin < q.rows(); begin += block) {
    const Index rows = std::min(block, q.rows() - begin);
    Eigen::Map<RowMajorMatrix<float>> scores(scores_memory, rows, k.rows());
    scores.noalias() = q.middleRows(begin, rows) * k.transpose();
    for (Index row = 0; row < rows; ++row) {
      auto line = scores.row(row).array();
      line = ((line - line.maxCoeff()) * scale).exp();
      line *= 1.0F / line.sum();
    }
    out.middleRows(begin, rows).noalias() = scores * v;
  }
}

}  // namespace detail

/// out `[m, heads * head_dim]` = softmax(q k^T / sqrt(head_dim)) v, each segment's rows over its
/// own keys and values; q `[m, heads * head_dim]`. Grouped query heads share their keys.
template <StoredScalar Stored>
void attend(MatrixView<const float> q, std::span<const Segment<Stored>> segments,
            const HeadShape& shape, MatrixView<float> out, ThreadTeam& team) {
  const Index group = shape.heads / shape.kv_heads;
  const Index dim = shape.head_dim;
  for (const Segment<Stored>& segment : segments) {
    const Index keys = segment.keys.rows;
    // About 256 KiB of scores: they stay in the second-level cache between the two products.
    const Index block = std::clamp<Index>((Index{1} << 16) / keys, 8, 128);
    const Index rows = segment.end - segment.begin;
    const double operations = 4.0 * static_cast<double>(rows) * static_cast<double>(keys) *
                              static_cast<double>(shape.heads * dim);
    team.for_each(shape.kv_heads, operations, [&](Index kv_head, auto& scratch) {
      const bool widens = !std::is_same_v<Stored, float>;
      float* memory = scratch.ensure(block * keys + (widens ? 2 * keys * dim : 0));
      const auto columns = [&](MatrixView<const Stored> kept, float* widened) {
        if constexpr (std::is_same_v<Stored, float>) {
          return MatrixView<const float>{kept.data + kv_head * dim, keys, dim, kept.stride};
        } else {
          for (Index row = 0; row < keys; ++row)
            dllm_cache::detail::convert_row(kept.row(row) + kv_head * dim, widened + row * dim,
                                            dim);
          return MatrixView<const float>{widened, keys, dim, dim};
        }
      };
      float* const widened = memory + block * keys;
      const MatrixView<const float> k = columns(segment.keys, widened);
      const MatrixView<const float> v = columns(segment.values, widened + keys * dim);
      for (Index head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        const MatrixView<const float> head_q{q.row(segment.begin) + head * dim, rows, dim,
                                             q.stride};
        const MatrixView<float> head_out{out.row(segment.begin) + head * dim, rows, dim,
                                         out.stride};
        detail::attend_head(as_eigen(head_q), as_eigen(k), as_eigen(v), as_eigen(head_out), memory,
                            block);
      }
    });
  }
}

}  // namespace dllm_cache::models
