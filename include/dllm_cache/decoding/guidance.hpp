// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <span>
#include <vector>

#include "dllm_cache/base/error.hpp"
#include "dllm_cache/base/matrix_view.hpp"

namespace dllm_cache::inline v0_1 {

/// Classifier-free guidance with a cached residual: guided = conditional + scale * residual, where
/// the residual (conditional - unconditional logits) is refreshed now and then only.
///
/// The unconditional sequence (its prompt replaced by masks) is a second sequence with its own
/// cache and counters, which advance only when it runs. Source: arXiv 2506.06295 section on
/// guidance; utils/generate_function.py in maomaocun/dLLM-cache at 17235bf. Not synchronised.
class Guidance {
 public:
  /// Steps at the start of a generation in which the residual is always refreshed (reference).
  static constexpr Index warm_up_steps = 5;

  /// Holds a residual `[rows, vocabulary]`, zero at first. `scale` finite and above 0, `interval >=
  /// 1` steps, `rows * vocabulary` in [0, 2^60]; throws std::invalid_argument otherwise.
  Guidance(double scale, Index interval, Index rows, Index vocabulary)
      : m_scale(static_cast<float>(scale)), m_interval(interval), m_vocabulary(vocabulary) {
    if (!(scale > 0.0 && std::isfinite(m_scale)))
      base::refuse_argument("Guidance: scale must be finite and above 0, got ", scale);
    if (interval < 1)
      base::refuse_argument("Guidance: interval must be at least 1, got ", interval);
    if (rows < 0 || vocabulary < 1 || rows > (Index{1} << 60) / vocabulary)
      base::refuse_argument("Guidance: rows * vocabulary must be in [0, 2^60], got ", rows, " * ",
                            vocabulary);
    m_residual.resize(static_cast<std::size_t>(rows) * static_cast<std::size_t>(vocabulary));
  }

  /// Whether the unconditional sequence runs and the residual is refreshed in this step.
  [[nodiscard]] bool due(Index step) const {
    return step < warm_up_steps || step % m_interval == 0;
  }

  /// Keeps conditional - unconditional `[vocabulary]` as the residual of row `row` of the response,
  /// `0 <= row < rows` (sizes and row unchecked).
  void refresh(Index row, std::span<const float> conditional,
               std::span<const float> unconditional) {
    float* residual = row_data(row);
    for (std::size_t i = 0; i < conditional.size(); ++i)
      residual[i] = conditional[i] - unconditional[i];
  }

  /// Adds scale * residual to the conditional logits `[vocabulary]` of row `row` of the response;
  /// see refresh().
  void apply(Index row, std::span<float> logits) {
    const float* residual = row_data(row);
    for (std::size_t i = 0; i < logits.size(); ++i) logits[i] += m_scale * residual[i];
  }

  /// The residual `[rows, vocabulary]`, to save and to restore it.
  [[nodiscard]] std::span<float> residual() { return m_residual; }
  [[nodiscard]] std::span<const float> residual() const { return m_residual; }

 private:
  [[nodiscard]] float* row_data(Index row) { return m_residual.data() + row * m_vocabulary; }

  float m_scale;
  Index m_interval;
  Index m_vocabulary;
  std::vector<float> m_residual;
};

}  // namespace dllm_cache::inline v0_1
