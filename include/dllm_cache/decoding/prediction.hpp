// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "dllm_cache/decoding/random.hpp"
#include "dllm_cache/detail/error.hpp"
#include "dllm_cache/matrix_view.hpp"

namespace dllm_cache {

/// No token: nothing is excluded, there is no end of text, and so on.
inline constexpr std::int32_t no_token = -1;

/// How sure the model is of a row; decides which rows are committed first.
enum class Confidence {
  Probability,      ///< Of the predicted token: LLaDA's `low_confidence`, Dream's `maskgit_plus`.
  Margin,           ///< Between the two likeliest tokens: Dream's `topk_margin`.
  NegativeEntropy,  ///< sum p log(p + 1e-10): Dream's `entropy`.
  Random            ///< A random number in (0, 1): LLaDA's `random`, Dream's `origin`.
};

/// How temperature makes a token random.
enum class Sampling {
  GumbelNoise,  ///< LLaDA: noise on the logits; confidence from the logits as they are.
  Categorical   ///< Dream: logits / temperature, cut to top_k and top_p; confidence from those.
};

/// How a row of logits becomes a token and a confidence.
struct PredictionRule {
  Sampling sampling = Sampling::GumbelNoise;
  Confidence confidence = Confidence::Probability;
  double temperature = 0.0;  ///< At least 0; 0: the likeliest token.
  double top_p = 1.0;  ///< In (0, 1]: the likeliest tokens that hold this share (Categorical).
  Index top_k = 0;     ///< At least 0: only the k likeliest; 0: all (Categorical).
  std::int32_t excluded_token = no_token;  ///< Never predicted; its probability counts as 0.
};

/// What the model says of one masked row.
struct Prediction {
  Index row = 0;                  ///< Row of the sequence.
  std::int32_t token = no_token;  ///< The token that would be committed.
  double confidence = 0.0;        ///< Greater is surer.
  double entropy = 0.0;           ///< Of the distribution the confidence is taken from, in nats.
};

/// Turns rows of logits into predictions; holds scratch memory, so one thread uses it at a time.
///
/// Sources: `add_gumbel_noise` and `generate` of LLaDA (in double, log space); `sample_tokens`,
/// `top_p_logits` and `top_k_logits` of Dream as in NVlabs/Fast-dLLM at 24cc59e,
/// dream/model/generation_utils.py. A categorical token is drawn as argmax(logit + Gumbel noise),
/// which has the same distribution.
class Predictor {
 public:
  /// Predicts row `row` of a sequence from its logits `[vocabulary]`; equal logits: lower token.
  ///
  /// Throws std::runtime_error naming the row when no logit is a number above -infinity.
  [[nodiscard]] Prediction predict(Index row, std::span<const float> logits,
                                   const PredictionRule& rule, const RandomKey& key) {
    const std::span<const double> scores = scale(row, logits, rule);
    const double highest = *std::max_element(scores.begin(), scores.end());
    double sum = 0.0, weighted = 0.0;
    for (const double score : scores) {
      if (score == cut) continue;
      const double exponential = std::exp(score - highest);
      sum += exponential;
      weighted += exponential * (score - highest);
    }
    Prediction prediction{.row = row, .token = choose(scores, rule, key)};
    prediction.entropy = std::log(sum) - weighted / sum;
    const auto probability = [&](double score) {
      return score == cut ? 0.0 : std::exp(score - highest) / sum;
    };
    switch (rule.confidence) {
      case Confidence::Probability:
        prediction.confidence = probability(scores[static_cast<std::size_t>(prediction.token)]);
        break;
      case Confidence::Margin:
        prediction.confidence = 1.0 / sum - probability(second(scores));
        break;
      case Confidence::NegativeEntropy:
        for (const double score : scores) {
          const double p = probability(score);
          prediction.confidence += p * std::log(p + 1e-10);
        }
        break;
      case Confidence::Random:
        prediction.confidence = RowRandom(key, RandomUse::Confidence).uniform(0);
        break;
    }
    return prediction;
  }

 private:
  static constexpr double cut = -std::numeric_limits<double>::infinity();

  // The logits behind the confidence, in double: tempered and cut as the rule says.
  std::span<const double> scale(Index row, std::span<const float> logits,
                                const PredictionRule& rule) {
    m_scores.resize(logits.size());
    const bool tempered = rule.sampling == Sampling::Categorical && rule.temperature > 0.0;
    bool any = false;
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const double logit = logits[i];
      const bool kept = static_cast<std::int32_t>(i) != rule.excluded_token && logit > cut;
      m_scores[i] = !kept ? cut : tempered ? logit / rule.temperature : logit;  // NaN is not kept
      any = any || kept;
    }
    if (!any)
      throw std::runtime_error(
          detail::text("Predictor: logits of row ", row, " hold no number above -infinity"));
    if (rule.sampling == Sampling::Categorical) {
      if (rule.top_p < 1.0) keep_top_p(rule.top_p);
      if (rule.top_k > 0) keep_top_k(rule.top_k);
    }
    return m_scores;
  }

  void sort_order() {
    m_order.resize(m_scores.size());
    for (std::size_t i = 0; i < m_order.size(); ++i) m_order[i] = i;
    std::sort(m_order.begin(), m_order.end(), [this](std::size_t a, std::size_t b) {
      return m_scores[a] != m_scores[b] ? m_scores[a] > m_scores[b] : a < b;
    });
  }

  // Cuts every token before which the likelier ones already hold more than the share.
  void keep_top_p(double share) {
    sort_order();
    const double highest = m_scores[m_order.front()];
    double sum = 0.0;
    for (const double score : m_scores) sum += std::exp(score - highest);
    double held = 0.0;
    for (const std::size_t token : m_order) {
      const double p = std::exp(m_scores[token] - highest) / sum;
      if (held > share) m_scores[token] = cut;
      held += p;
    }
  }

  // Cuts every token less likely than the k-th; those equal to it stay, as in the reference.
  void keep_top_k(Index count) {
    if (count >= static_cast<Index>(m_scores.size())) return;
    sort_order();
    const double least = m_scores[m_order[static_cast<std::size_t>(count - 1)]];
    for (double& score : m_scores)
      if (score < least) score = cut;
  }

  static std::int32_t choose(std::span<const double> scores, const PredictionRule& rule,
                             const RandomKey& key) {
    const RowRandom noise(key, RandomUse::Token);
    // Gumbel noise of LLaDA: argmax of logit - temperature * log(-log u). A tempered categorical
    // draw adds the plain noise to logits that are divided already.
    const double strength = rule.temperature <= 0.0                  ? 0.0
                            : rule.sampling == Sampling::Categorical ? 1.0
                                                                     : rule.temperature;
    double best = cut;
    std::int32_t token = no_token;
    for (std::size_t i = 0; i < scores.size(); ++i) {
      if (scores[i] == cut) continue;
      const double score = strength > 0.0 ? scores[i] + strength * noise.gumbel(i) : scores[i];
      if (token == no_token || score > best) {
        best = score;
        token = static_cast<std::int32_t>(i);
      }
    }
    return token;
  }

  // The second largest score, with multiplicity.
  static double second(std::span<const double> scores) {
    double first = cut, next = cut;
    for (const double score : scores) {
      if (score > first) {
        next = first;
        first = score;
      } else if (score > next) {
        next = score;
      }
    }
    return next;
  }

  std::vector<double> m_scores;
  std::vector<std::size_t> m_order;
};

}  // namespace dllm_cache
