// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>

#include "dllm_cache/base/error.hpp"
#include "dllm_cache/base/matrix_view.hpp"
#include "dllm_cache/decoding/detail/observations.hpp"
#include "dllm_cache/decoding/sampler.hpp"

namespace dllm_cache::inline v0_1::detail {

/// Looks at rows of logits for policies that ask what predictions are like. What it tells is of the
/// softmax of the logits over all tokens that may be predicted, whatever temperature, top_k, top_p
/// and the measure of confidence make of it. Holds scratch memory.
class LogitsObserver {
 public:
  /// Writes what the logits `[vocabulary]` of a row say, beside what the row's last prediction was.
  /// Throws std::runtime_error naming the row where Sampler::sample does.
  void observe(Index row, std::span<const float> logits, const SamplingRule& rule,
               const Observations& before, Observation& now) {
    take(row, logits, rule);
    now.row = row;
    now.confidence = static_cast<float>(1.0 / m_sum);
    now.gap = static_cast<float>((1.0 - second()) / m_sum);
    // The bound keeps 0 * -infinity out; below it a weight is 0 in any case.
    const double mean = (m_weights * m_logs.max(-1e3)).sum() / m_sum;
    now.entropy = static_cast<float>(std::max(std::log(m_sum) - mean, 0.0));
    if (!before.keeps_distributions()) return;
    now.distribution.resize(logits.size());
    const double whole = std::log(m_sum);
    for (std::size_t i = 0; i < logits.size(); ++i)
      now.distribution[i] = static_cast<float>(m_logs[static_cast<Index>(i)] - whole);
    const std::span<const float> last = before.distribution(row);
    now.change =
        last.empty() ? std::numeric_limits<float>::infinity() : divergence(now.distribution, last);
  }

 private:
  static constexpr double cut = -std::numeric_limits<double>::infinity();

  // Logits less the highest, their exponentials and the sum of these.
  void take(Index row, std::span<const float> logits, const SamplingRule& rule) {
    m_logs.resize(static_cast<Index>(logits.size()));
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const double logit = logits[i];
      m_logs[static_cast<Index>(i)] = std::max(cut, logit);  // in this order NaN is cut too
    }
    const auto exclude = [this](std::int32_t token) {
      if (token >= 0 && token < m_logs.size()) m_logs[token] = cut;
    };
    exclude(rule.excluded_token);
    for (const std::int32_t token : rule.suppressed) exclude(token);
    const double highest = m_logs.size() > 0 ? m_logs.maxCoeff() : cut;
    if (!std::isfinite(highest))
      throw std::runtime_error(base::text("logits of row ", row, " hold ",
                                          highest > 0.0 ? "+infinity" : "no number above -infinity",
                                          ", so nothing can be told of its prediction"));
    m_logs -= highest;
    m_weights = m_logs.exp();
    m_sum = m_weights.sum();
  }

  // The second largest weight; the largest is 1.
  [[nodiscard]] double second() const {
    double first = 0.0, next = 0.0;
    for (const double weight : m_weights) {
      next = std::max(next, std::min(weight, first));
      first = std::max(first, weight);
    }
    return next;
  }

  // KL divergence from an earlier distribution; both by their logarithms, which are rounded alike,
  // so that it is exactly 0 from the same one.
  [[nodiscard]] float divergence(std::span<const float> now, std::span<const float> before) const {
    double sum = 0.0;
    for (std::size_t i = 0; i < now.size(); ++i) {
      if (now[i] == -std::numeric_limits<float>::infinity()) continue;  // 0, whatever it was
      const double weight = m_weights[static_cast<Index>(i)];
      sum += weight * (static_cast<double>(now[i]) - static_cast<double>(before[i]));
    }
    return static_cast<float>(std::max(sum / m_sum, 0.0));
  }

  Eigen::ArrayXd m_logs;
  Eigen::ArrayXd m_weights;
  double m_sum = 1.0;
};

}  // namespace dllm_cache::inline v0_1::detail
