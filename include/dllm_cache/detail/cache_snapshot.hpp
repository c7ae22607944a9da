// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>

#include "dllm_cache/base/scalar.hpp"
#include "dllm_cache/detail/planner_snapshot.hpp"

// What a snapshot of features says about them before any are read.
namespace dllm_cache::inline v0_1::detail {

/// Name of a scalar type.
template <class T>
[[nodiscard]] constexpr std::string_view scalar_name() {
  if constexpr (std::is_same_v<T, float>) return "float32";
  if constexpr (std::is_same_v<T, double>) return "float64";
  if constexpr (std::is_same_v<T, Eigen::bfloat16>) return "bfloat16";
  if constexpr (std::is_same_v<T, Eigen::half>) return "float16";
}

/// Calls `part(begin, end)` for each run of rows whose flag is set.
template <class Part>
void for_each_run(std::span<const std::uint8_t> flags, const Part& part) {
  const auto rows = static_cast<Index>(flags.size());
  for (Index begin = 0; begin < rows;) {
    Index end = begin;
    while (end < rows && flags[static_cast<std::size_t>(end)] != 0) ++end;
    if (end > begin) part(begin, end);
    begin = end + 1;
  }
}

}  // namespace dllm_cache::inline v0_1::detail
