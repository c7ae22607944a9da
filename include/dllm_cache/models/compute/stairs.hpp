// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <span>

#include "dllm_cache/layer.hpp"
#include "dllm_cache/models/compute/head_shape.hpp"
#include "dllm_cache/models/compute/rounding.hpp"

// With causal or block-causal attention a prompt has a segment for every row or block, far too few
// rows for a product each. Its segments see the first keys of one sequence, each a few more than
// the one before: products take many of them together and compute a little more than is seen.
namespace dllm_cache::inline v0_1::models::detail {

/// Neighbouring segments of one sequence, each of which sees what the one before sees, or more: the
/// steps of a staircase. Rows `[begin, end)`, at least one, of q and out.
template <class Stored>
struct Stairs {
  Index begin = 0;
  Index end = 0;
  MatrixView<const Stored> keys;  ///< What the last row sees, like `values`.
  MatrixView<const Stored> values;
  std::span<const Index> seen;  ///< Keys that each of the rows sees; never falls.

  [[nodiscard]] Index rows() const { return end - begin; }
  [[nodiscard]] Index seen_by(Index row) const {
    return seen[static_cast<std::size_t>(row - begin)];
  }
  [[nodiscard]] double operations(const HeadShape& shape) const {
    return attention_operations(1, std::accumulate(seen.begin(), seen.end(), Index{0}), shape);
  }
  /// Whether all rows see the same.
  [[nodiscard]] bool even() const { return seen.front() == seen.back(); }
};

/// How many of the first segments, of which there is one at least, are steps of one staircase.
template <class Stored>
[[nodiscard]] std::size_t steps_together(std::span<const Segment<Stored>> segments) {
  const auto alike = [](const MatrixView<const Stored>& a, const MatrixView<const Stored>& b) {
    return a.data == b.data && a.cols == b.cols && a.stride == b.stride && a.rows <= b.rows;
  };
  std::size_t count = 1;
  for (; count < segments.size(); ++count) {
    const Segment<Stored>&before = segments[count - 1], &next = segments[count];
    if (next.begin != before.end || !alike(before.keys, next.keys) ||
        !alike(before.values, next.values))
      break;
  }
  return count;
}

/// Whether no element is infinite or NaN.
template <class Element>
[[nodiscard]] bool all_finite(MatrixView<const Element> view) {
  FloatLanes sum{}, numbers;  // 0 times whatever is not finite is NaN, and stays
  float rest = 0.0F;
  for (Index row = 0; row < view.rows; ++row) {
    Index done = 0;
    for (; done + lanes::lane_count <= view.cols; done += lanes::lane_count) {
      lanes::load_lanes<Element, float>(view.row(row) + done, numbers);
      sum += numbers * 0.0F;
    }
    for (; done < view.cols; ++done) rest += static_cast<float>(view.row(row)[done]) * 0.0F;
  }
  for (Index i = 0; i < lanes::lane_count; ++i) rest += sum[i];
  return rest == 0.0F;
}

/// Calls `work(first, last)` for stretches of rows that take their products together, the last of
/// `[begin, end)` first; `values` `[keys, head_dim]` are what the products multiply.
///
/// Rows of a stretch weigh the values that only later ones of it see with 0. So these are finite,
/// and a stretch ends where its last row sees many more keys than the row before it.
template <class Stored, class Element, class Work>
void for_stretches(const Stairs<Stored>& stairs, Index begin, Index end,
                   MatrixView<const Element> values, const Work& work) {
  for (Index last = end, first = end; last > begin; last = first) {
    const Index keys = stairs.seen_by(last - 1);
    const Index most_unseen = std::max<Index>(128, keys / 8);
    for (first = last - 1; first > begin; --first) {
      const Index seen = stairs.seen_by(first - 1), next = stairs.seen_by(first);
      if (seen == next) continue;
      if (keys - seen > most_unseen || !all_finite(values.middle_rows(seen, next - seen))) break;
    }
    work(first, last);
  }
}

}  // namespace dllm_cache::inline v0_1::models::detail
