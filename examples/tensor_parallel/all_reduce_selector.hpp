// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <utility>
#include <vector>

#include "ranks.hpp"

namespace tensor_parallel {

/// Selects rows by whole value rows of which each rank holds the columns of its heads: a selector
/// of the library, with the sums of a row added up over the ranks between its two stages.
///
/// All ranks see the same sums, so all select the same rows.
template <class Scalar, class Stored = Scalar,
          class Inner = dllm_cache::VVerifySelector<Scalar, Stored>>
requires dllm_cache::RowSelector<Inner, Scalar, Stored>
class AllReduceSelector {
 public:
  explicit AllReduceSelector(const Ranks& ranks, Inner inner = {})
      : m_ranks(ranks), m_inner(std::move(inner)) {}

  /// Fresh and cached `[m, kv / ranks]`: this rank's columns; `sums [m]`: of whole rows.
  void accumulate(MatrixView<const Scalar> fresh, MatrixView<Stored> cached,
                  std::span<dllm_cache::SimilaritySums> sums) {
    m_inner.accumulate(fresh, cached, sums);
    m_ranks.sum(sums);
  }

  void select(std::span<const dllm_cache::SimilaritySums> sums, Index count,
              std::vector<Index>& selected) {
    m_inner.select(sums, count, selected);
  }

 private:
  Ranks m_ranks;
  Inner m_inner;
};

}  // namespace tensor_parallel
