// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "dllm_cache/base/matrix_view.hpp"

// Rows by a number of theirs, for policies that rank them.
namespace dllm_cache::inline v0_1::detail {

/// Writes to `rows` the rows with the `count` largest numbers among those that `admits(row)`, ties
/// to the lower row, all where there are fewer; ascending.
template <class Number, class Admits>
void take_largest(std::span<const Number> numbers, Index count, const Admits& admits,
                  std::vector<Index>& rows) {
  rows.clear();
  for (Index row = 0; row < static_cast<Index>(numbers.size()); ++row)
    if (admits(row)) rows.push_back(row);
  if (static_cast<Index>(rows.size()) > count) {
    const auto before = [&](Index a, Index b) {
      const Number x = numbers[static_cast<std::size_t>(a)];
      const Number y = numbers[static_cast<std::size_t>(b)];
      return x > y || (x == y && a < b);
    };
    std::nth_element(rows.begin(), rows.begin() + count, rows.end(), before);
    rows.resize(static_cast<std::size_t>(count));
    std::sort(rows.begin(), rows.end());
  }
}
template <class Admits>
void take_largest(std::span<const float> numbers, Index count, const Admits& admits,
                  std::vector<Index>& rows) {
  take_largest<float>(numbers, count, admits, rows);
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
