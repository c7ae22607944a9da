// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>

#include <algorithm>
#include <concepts>
#include <type_traits>

#include "dllm_cache/base/lanes.hpp"
#include "dllm_cache/base/matrix_view.hpp"

namespace dllm_cache::inline v0_1 {

/// Scalars that layers compute in: float or double.
template <class T>
concept ComputeScalar = std::same_as<T, float> || std::same_as<T, double>;

/// Scalars that features are stored in: float, double, Eigen::bfloat16 or Eigen::half.
template <class T>
concept StoredScalar =
    ComputeScalar<T> || std::same_as<T, Eigen::bfloat16> || std::same_as<T, Eigen::half>;

namespace base {

/// Writes `count` elements from one scalar type to another, rounding to nearest even.
template <class To, class From>
void convert_row(const From* from, To* to, Index count) {
  if constexpr (std::is_same_v<To, From>) {
    std::copy_n(from, count, to);
  } else {
    using Wide = std::conditional_t<ComputeScalar<From>, From, To>;
    constexpr bool fast = bf16_and_float<From, To> || bf16_and_float<To, From>;
    Index done = 0;
    if constexpr (fast)
      for (; done + lane_count <= count; done += lane_count) {
        Lanes<Wide> lanes;
        load_lanes<From, Wide>(from + done, lanes);
        store_lanes<Wide, To>(lanes, to + done);
      }
    for (; done < count; ++done) to[done] = static_cast<To>(from[done]);
  }
}

/// Adds `count` elements of any scalar type to a row in the compute scalar.
template <class Scalar, class From>
void add_row(const From* from, Scalar* to, Index count) {
  const Index whole = count - count % lane_count;
  for (Index done = 0; done < whole; done += lane_count) {
    Lanes<Scalar> sum, term;
    load_lanes<Scalar, Scalar>(to + done, sum);
    load_lanes<From, Scalar>(from + done, term);
    sum += term;
    store_lanes<Scalar, Scalar>(sum, to + done);
  }
  for (Index rest = whole; rest < count; ++rest) to[rest] += static_cast<Scalar>(from[rest]);
}

}  // namespace base
}  // namespace dllm_cache::inline v0_1
