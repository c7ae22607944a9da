// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>

namespace dllm_cache::testing {

/// What a test computes in and what it stores in.
template <class ComputeScalar, class StoredScalar>
struct Scalars {
  using Compute = ComputeScalar;
  using Stored = StoredScalar;
};
using FloatInFloat = Scalars<float, float>;
using FloatInBfloat16 = Scalars<float, Eigen::bfloat16>;
using FloatInHalf = Scalars<float, Eigen::half>;
using DoubleInDouble = Scalars<double, double>;
using DoubleInFloat = Scalars<double, float>;

}  // namespace dllm_cache::testing
