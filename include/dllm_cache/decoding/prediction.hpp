// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "dllm_cache/decoding/random.hpp"
#include "dllm_cache/detail/error.hpp"
#include "dllm_cache/matrix_view.hpp"

namespace dllm_cache {

/// No token: nothing is excluded, there is no end of text, and so on.
inline constexpr std::int32_t no_token = -1;

/// How a row's confidence is measured; decides which rows are committed first.
enum class Remasking {
  LowConfidence,  ///< Probability of the predicted token (LLaDA's default).
  Random          ///< A random number: rows are committed in random order.
};

/// What the model says of one masked row.
struct Prediction {
  Index row = 0;                  ///< Row of the sequence.
  std::int32_t token = no_token;  ///< Most likely token, after noise if there is any.
  double confidence = 0.0;        ///< Greater is surer.
};

/// How a row of logits becomes a token and a confidence.
struct PredictionRule {
  double temperature = 0.0;  ///< Gumbel noise, at least 0; 0: the most likely token.
  Remasking remasking = Remasking::LowConfidence;
  std::int32_t excluded_token = no_token;  ///< Never predicted.
};

/// Predicts row `row` of a sequence from its logits `[vocabulary]`.
///
/// Noise is added in double: argmax of logit - temperature * log(-log u) (LLaDA's
/// `add_gumbel_noise` in log space); the confidence is the softmax of the logits without noise.
/// Equal logits: lower token. Throws std::runtime_error naming the row when no logit is a number.
/// Thread safe.
[[nodiscard]] inline Prediction predict(Index row, std::span<const float> logits,
                                        const PredictionRule& rule, const RandomKey& key) {
  const RowRandom noise(key, RandomUse::Token);
  double best = -std::numeric_limits<double>::infinity();
  float highest = -std::numeric_limits<float>::infinity();
  std::int32_t token = no_token;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    highest = std::max(highest, logits[i]);  // a NaN on the right is ignored
    if (static_cast<std::int32_t>(i) == rule.excluded_token) continue;
    double score = logits[i];
    if (rule.temperature > 0.0) score += rule.temperature * noise.gumbel(i);
    if (score > best) {
      best = score;
      token = static_cast<std::int32_t>(i);
    }
  }
  if (token == no_token)
    throw std::runtime_error(
        detail::text("predict: logits of row ", row, " hold no number above -infinity"));
  Prediction prediction{row, token, 0.0};
  if (rule.remasking == Remasking::Random) {
    prediction.confidence = RowRandom(key, RandomUse::Confidence).uniform(0);
  } else {
    double sum = 0.0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - highest);
    prediction.confidence =
        std::exp(static_cast<double>(logits[static_cast<std::size_t>(token)]) - highest) / sum;
  }
  return prediction;
}

}  // namespace dllm_cache
