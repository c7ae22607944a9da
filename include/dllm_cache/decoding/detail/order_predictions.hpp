// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "dllm_cache/base/decoded_density.hpp"
#include "dllm_cache/decoding/decoding_options.hpp"
#include "dllm_cache/decoding/random.hpp"
#include "dllm_cache/decoding/sampler.hpp"

namespace dllm_cache::inline v0_1::detail {

/// Multiplies confidences by how densely their rows are surrounded by decoded ones: of the rows
/// from `first` on, where all before are known. `density` has room for one number a row.
inline void weigh_predictions(std::span<Prediction> predictions,
                              std::span<const std::uint8_t> masked, Index first, double sigma,
                              std::span<double> density) {
  if (predictions.empty()) return;
  const auto rows = masked.subspan(static_cast<std::size_t>(first));
  base::decoded_density(rows, sigma, density.first(rows.size()));
  for (Prediction& one : predictions)
    one.confidence *= density[static_cast<std::size_t>(one.row - first)];
}

/// Puts predictions in the order in which they are committed: surest first, ties to the lower row,
/// or from left to right. With a temperature the order is drawn: the first n rows by confidence /
/// temperature + Gumbel noise are n draws without replacement from its softmax; `key_of(row)` names
/// a row's random numbers.
template <class KeyOf>
void order_predictions(std::span<Prediction> predictions, const DecodingOptions& options,
                       const KeyOf& key_of) {
  const double temperature = options.order_temperature;
  const auto key = [&](const Prediction& one) {
    if (options.confidence == Confidence::LeftToRight) return -static_cast<double>(one.row);
    // Logits of infinities may make it NaN, which no order takes.
    if (std::isnan(one.confidence)) return -std::numeric_limits<double>::infinity();
    if (temperature <= 0.0) return one.confidence;
    return one.confidence / temperature + RowRandom(key_of(one.row), RandomUse::Order).gumbel(0);
  };
  std::sort(predictions.begin(), predictions.end(), [&](const Prediction& a, const Prediction& b) {
    const double key_a = key(a), key_b = key(b);
    return key_a != key_b ? key_a > key_b : a.row < b.row;
  });
}

}  // namespace dllm_cache::inline v0_1::detail
