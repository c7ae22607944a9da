// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "dllm_cache/decoding/decoding_options.hpp"
#include "dllm_cache/decoding/random.hpp"
#include "dllm_cache/decoding/sampler.hpp"

namespace dllm_cache::inline v0_1::detail {

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
