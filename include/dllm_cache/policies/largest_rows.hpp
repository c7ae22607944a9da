// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "dllm_cache/base/matrix_view.hpp"

// Rows by a number of theirs, for policies that rank them.
namespace dllm_cache::inline v0_1::detail {

/// Orders rows by a number of theirs, the largest first, ties to the lower row, NaN behind all.
template <class Number>
struct LargestFirst {
  std::span<const Number> numbers;
  [[nodiscard]] Number rank(Index row) const {
    const Number number = numbers[static_cast<std::size_t>(row)];
    return std::isnan(number) ? -std::numeric_limits<Number>::infinity() : number;
  }
  bool operator()(Index a, Index b) const {
    const Number x = rank(a), y = rank(b);
    return x > y || (x == y && a < b);
  }
};

/// Writes to `rows` the rows with the `count` largest numbers among those that `admits(row)`, all
/// where there are fewer, ascending; see LargestFirst.
template <class Number, class Admits>
void take_largest(std::span<const Number> numbers, Index count, const Admits& admits,
                  std::vector<Index>& rows) {
  rows.clear();
  for (Index row = 0; row < static_cast<Index>(numbers.size()); ++row)
    if (admits(row)) rows.push_back(row);
  if (static_cast<Index>(rows.size()) <= count) return;
  std::nth_element(rows.begin(), rows.begin() + count, rows.end(), LargestFirst<Number>{numbers});
  rows.resize(static_cast<std::size_t>(count));
  std::sort(rows.begin(), rows.end());
}

/// Whether these are ascending rows in [0, count), each once.
[[nodiscard]] inline bool are_ascending_rows(std::span<const Index> rows, Index count) {
  Index before = -1;
  for (const Index row : rows) {
    if (row <= before || row >= count) return false;
    before = row;
  }
  return true;
}

}  // namespace dllm_cache::inline v0_1::detail
