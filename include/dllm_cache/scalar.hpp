// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>

#include <concepts>

#include "dllm_cache/matrix_view.hpp"

namespace dllm_cache {

/// Scalars that layers compute in: float or double.
template <class T>
concept ComputeScalar = std::same_as<T, float> || std::same_as<T, double>;

/// Scalars that features are stored in: float, double, Eigen::bfloat16 or Eigen::half.
template <class T>
concept StoredScalar =
    ComputeScalar<T> || std::same_as<T, Eigen::bfloat16> || std::same_as<T, Eigen::half>;

namespace detail {

/// Writes `count` elements from one scalar type to another, rounding to nearest.
template <class To, class From>
void convert_row(const From* from, To* to, Index count) {
  Eigen::Map<Eigen::Array<To, Eigen::Dynamic, 1>>(to, count) =
      Eigen::Map<const Eigen::Array<From, Eigen::Dynamic, 1>>(from, count).template cast<To>();
}

/// Adds `count` elements of any scalar type to a row in the compute scalar.
template <class Scalar, class From>
void add_row(const From* from, Scalar* to, Index count) {
  Eigen::Map<Eigen::Array<Scalar, Eigen::Dynamic, 1>>(to, count) +=
      Eigen::Map<const Eigen::Array<From, Eigen::Dynamic, 1>>(from, count).template cast<Scalar>();
}

}  // namespace detail
}  // namespace dllm_cache
