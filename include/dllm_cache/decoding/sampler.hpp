// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "dllm_cache/base/error.hpp"
#include "dllm_cache/base/matrix_view.hpp"
#include "dllm_cache/decoding/random.hpp"

namespace dllm_cache::inline v0_1 {

/// No token: nothing is excluded, there is no end of text, and so on.
inline constexpr std::int32_t no_token = -1;

/// How sure the model is of a row; decides which rows are committed first.
enum class Confidence {
  Probability,      ///< Of the predicted token: LLaDA's `low_confidence`, Dream's `maskgit_plus`.
  Margin,           ///< Between the two likeliest tokens: Dream's `topk_margin`.
  NegativeEntropy,  ///< sum p log(p + 1e-10): Dream's `entropy`.
  Random,           ///< A random number in (0, 1): LLaDA's `random`, Dream's `origin`.
  LeftToRight       ///< Rows come in their order, their probability is for show: SDAR's
                    ///< `sequential`.
};

/// How temperature makes a token random.
enum class Sampling {
  GumbelNoise,  ///< LLaDA: noise on the logits; confidence from the logits as they are.
  Categorical   ///< Dream: logits / temperature, cut to top_k and top_p; confidence from those.
};

/// How a row of logits becomes a token and a confidence.
struct SamplingRule {
  Sampling sampling = Sampling::GumbelNoise;
  Confidence confidence = Confidence::Probability;
  double temperature = 0.0;  ///< At least 0; 0: the likeliest token.
  double top_p = 1.0;  ///< In (0, 1]: the likeliest tokens that hold this share (Categorical).
  Index top_k = 0;     ///< At least 0: only the k likeliest; 0: all (Categorical).
  std::int32_t excluded_token = no_token;  ///< Never predicted; its probability counts as 0.
  /// The same for these; neither list is copied.
  std::span<const std::int32_t> suppressed = {};
  /// Predicted as ever, but the least sure; confidence and entropy are those of all other tokens.
  std::span<const std::int32_t> last = {};
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
class Sampler {
 public:
  /// Predicts row `row` of a sequence from its logits `[vocabulary]`; equal logits: lower token.
  ///
  /// A logit that is no number counts as -infinity. Throws std::runtime_error naming the row when
  /// no logit is above -infinity, or one is +infinity.
  [[nodiscard]] Prediction sample(Index row, std::span<const float> logits,
                                  const SamplingRule& rule, const RandomKey& key) {
    scale(logits, rule);
    const double highest = m_scores.size() > 0 ? m_scores.maxCoeff() : cut;
    if (highest == cut)
      throw std::runtime_error(
          base::text("Sampler: logits of row ", row, " hold no number above -infinity"));
    if (highest == -cut)
      throw std::runtime_error(base::text("Sampler: logits of row ", row, " hold +infinity"));
    if (rule.sampling == Sampling::Categorical) {
      if (rule.top_p < 1.0) keep_top_p(rule.top_p);
      if (rule.top_k > 0) keep_top_k(rule.top_k);
    }
    m_weights = (m_scores - highest).exp();  // 0 for a score that was cut
    Prediction prediction{.row = row, .token = choose(highest, rule, key)};
    for (const std::int32_t token : rule.last)
      if (token >= 0 && token < m_weights.size()) m_weights[token] = 0.0;
    const double sum = m_weights.sum();
    // The bound keeps 0 * -infinity out; below it a weight is 0 in any case.
    if (sum > 0.0)
      prediction.entropy = std::log(sum) - (m_weights * (m_scores - highest).max(-1e3)).sum() / sum;
    if (sum == 0.0 || is_among(prediction.token, rule.last)) {
      prediction.confidence = least_confidence(rule.confidence);
      return prediction;
    }
    switch (rule.confidence) {
      case Confidence::Probability:
      case Confidence::LeftToRight:
        prediction.confidence = m_weights[prediction.token] / sum;
        break;
      case Confidence::Margin:
        prediction.confidence = weight_margin() / sum;
        break;
      case Confidence::NegativeEntropy:
        prediction.confidence = ((m_weights / sum) * (m_weights / sum + 1e-10).log()).sum();
        break;
      case Confidence::Random:
        prediction.confidence = RowRandom(key, RandomUse::Confidence).uniform(0);
        break;
    }
    return prediction;
  }

 private:
  static constexpr double cut = -std::numeric_limits<double>::infinity();

  // The logits behind the confidence, in double and tempered; what may not be predicted is cut.
  void scale(std::span<const float> logits, const SamplingRule& rule) {
    m_scores.resize(static_cast<Index>(logits.size()));
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const double logit = logits[i];
      m_scores[static_cast<Index>(i)] = std::max(cut, logit);  // in this order NaN is cut too
    }
    if (rule.sampling == Sampling::Categorical && rule.temperature > 0.0)
      m_scores /= rule.temperature;  // a pass of its own: a division takes longer than the rest
    const auto exclude = [this](std::int32_t token) {
      if (token >= 0 && token < m_scores.size()) m_scores[token] = cut;
    };
    exclude(rule.excluded_token);
    for (const std::int32_t token : rule.suppressed) exclude(token);
  }

  void sort_order() {
    m_order.resize(static_cast<std::size_t>(m_scores.size()));
    std::iota(m_order.begin(), m_order.end(), Index{0});
    std::sort(m_order.begin(), m_order.end(), [this](Index a, Index b) {
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
    for (const Index token : m_order) {
      const double p = std::exp(m_scores[token] - highest) / sum;
      if (held > share) m_scores[token] = cut;
      held += p;
    }
  }

  // Cuts every token less likely than the k-th; those equal to it stay, as in the reference.
  void keep_top_k(Index count) {
    if (count >= m_scores.size()) return;
    sort_order();
    const double least = m_scores[m_order[static_cast<std::size_t>(count - 1)]];
    for (double& score : m_scores)
      if (score < least) score = cut;
  }

  [[nodiscard]] std::int32_t choose(double highest, const SamplingRule& rule,
                                    const RandomKey& key) const {
    if (rule.temperature <= 0.0)
      return static_cast<std::int32_t>(std::find(m_scores.begin(), m_scores.end(), highest) -
                                       m_scores.begin());
    // Gumbel noise of LLaDA: argmax of logit - temperature * log(-log u). A categorical draw adds
    // the plain noise to logits that are divided already.
    const double strength = rule.sampling == Sampling::Categorical ? 1.0 : rule.temperature;
    const RowRandom noise(key, RandomUse::Token);
    double best = cut;
    std::int32_t token = no_token;
    for (Index i = 0; i < m_scores.size(); ++i) {
      if (m_scores[i] == cut) continue;
      const double score = m_scores[i] + strength * noise.gumbel(static_cast<std::size_t>(i));
      if (token == no_token || score > best) {
        best = score;
        token = static_cast<std::int32_t>(i);
      }
    }
    return token;
  }

  static bool is_among(std::int32_t token, std::span<const std::int32_t> tokens) {
    return std::find(tokens.begin(), tokens.end(), token) != tokens.end();
  }

  // Below every other one: probabilities and random numbers are above 0, margins at least 0, and
  // no entropy is that large. Above 0 where rules count by it (BernoulliCommit's last step).
  static double least_confidence(Confidence confidence) {
    if (confidence == Confidence::Margin) return -1.0;
    if (confidence == Confidence::NegativeEntropy) return -1e6;
    return confidence == Confidence::Random ? std::numeric_limits<double>::min() : 0.0;
  }

  // The largest weight less the second largest, with multiplicity.
  [[nodiscard]] double weight_margin() const {
    double first = 0.0, next = 0.0;
    for (const double weight : m_weights) {
      if (weight > first) {
        next = first;
        first = weight;
      } else if (weight > next) {
        next = weight;
      }
    }
    return first - next;
  }

  // Eigen's own arrays are aligned for its vectors; in memory aligned by chance Eigen would sum in
  // an order that depends on the address, and equal rows would differ in their last bits.
  Eigen::ArrayXd m_scores;
  Eigen::ArrayXd m_weights;  // exp(score - highest)
  std::vector<Index> m_order;
};

}  // namespace dllm_cache::inline v0_1
