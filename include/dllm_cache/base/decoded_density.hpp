// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include "dllm_cache/base/error.hpp"
#include "dllm_cache/base/matrix_view.hpp"

namespace dllm_cache::inline v0_1::base {

/// How densely each row of a response is surrounded by tokens that are known: the mean of "is not
/// masked" around it, weighted by exp(-n^2 / 2 sigma^2) at a distance of n rows, in [0, 1].
///
/// As many rows in front of the response count as known, and as many behind it where its last row
/// is; the weights of three responses to either side make up the whole. `masked` has one flag a
/// row, as many as `density`. Throws std::invalid_argument unless sigma is above 0 and the sizes
/// are equal. Allocates nothing; takes rows * min(rows, 9 sigma) additions.
///
/// Source: the certainty density of d2Cache (arXiv 2509.23094), src/utils/common.py of
/// Kamichanw/d2Cache at 72feb60, which convolves in float32; this sums in double.
inline void decoded_density(std::span<const std::uint8_t> masked, double sigma,
                            std::span<double> density) {
  if (!(sigma > 0.0)) refuse_argument("decoded_density: sigma must be above 0, got ", sigma);
  if (masked.size() != density.size())
    refuse_argument("decoded_density: density must have one entry a row = ", masked.size(),
                    ", got ", density.size());
  if (masked.empty()) return;
  const auto rows = static_cast<Index>(masked.size());
  const auto known = [&](Index row) {
    if (row < 0 || row >= rows) return row < 0 || masked.back() == 0 ? 1.0 : 0.0;
    return masked[static_cast<std::size_t>(row)] == 0 ? 1.0 : 0.0;
  };
  std::fill(density.begin(), density.end(), 0.0);
  double whole = 0.0;
  // Weights further out are below 1e-17, which no sum of these would see.
  const Index reach = sigma < static_cast<double>(rows)
                          ? std::min(3 * rows, static_cast<Index>(std::ceil(9.0 * sigma)))
                          : 3 * rows;
  for (Index n = 0; n <= reach; ++n) {
    const auto far = static_cast<double>(n) / sigma;
    const double weight = std::exp(-0.5 * far * far);
    whole += n == 0 || n == 3 * rows ? weight : 2.0 * weight;
    for (Index row = 0; row < rows && n < 2 * rows; ++row) {
      double sum = row - n >= -rows ? known(row - n) : 0.0;
      if (n > 0 && row + n < 2 * rows) sum += known(row + n);
      density[static_cast<std::size_t>(row)] += weight * sum;
    }
  }
  for (double& one : density) one /= whole;
}

}  // namespace dllm_cache::inline v0_1::base
