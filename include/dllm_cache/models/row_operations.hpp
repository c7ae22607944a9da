// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <span>
#include <vector>

#include "dllm_cache/eigen.hpp"
#include "dllm_cache/matrix_view.hpp"

namespace dllm_cache::models {

/// Root-mean-square norm of rows, with a weight `[width]` and, where the checkpoint has one, a
/// bias.
struct RmsNorm {
  std::vector<float> weight;
  std::vector<float> bias;  ///< Empty: none.
  float epsilon = 1e-5F;

  /// y `[m, width]` = x / sqrt(mean(x^2) + epsilon) * weight (+ bias), row by row; y may be x.
  void apply(MatrixView<const float> x, MatrixView<float> y) const {
    const Eigen::Map<const Eigen::ArrayXf> scale(weight.data(), x.cols);
    for (Index row = 0; row < x.rows; ++row) {
      const Eigen::Map<const Eigen::ArrayXf> in(x.row(row), x.cols);
      Eigen::Map<Eigen::ArrayXf> out(y.row(row), x.cols);
      const float mean_square = in.square().sum() / static_cast<float>(x.cols);
      out = in * (1.0F / std::sqrt(mean_square + epsilon)) * scale;
      if (!bias.empty()) out += Eigen::Map<const Eigen::ArrayXf>(bias.data(), x.cols);
    }
  }
};

/// Rotary position embedding of the half-split kind (GPT-NeoX, LLaMA): dimension i of a head turns
/// with dimension i + head_dim / 2 by position * theta^(-2i / head_dim).
class RotaryEmbedding {
 public:
  /// `head_dim` even and at least 2, `theta > 0` (checked by the model's configuration).
  RotaryEmbedding(Index head_dim, double theta) : m_half(head_dim / 2) {
    m_frequencies.resize(static_cast<std::size_t>(m_half));
    for (Index i = 0; i < m_half; ++i)
      m_frequencies[static_cast<std::size_t>(i)] =
          1.0F / std::pow(static_cast<float>(theta),
                          static_cast<float>(2 * i) / static_cast<float>(head_dim));
  }

  /// Turns x `[m, heads * head_dim]` in place by the positions `[m]`.
  void apply(std::span<const std::int32_t> positions, MatrixView<float> x) {
    const Index heads = x.cols / (2 * m_half);
    for (Index row = 0; row < x.rows; ++row) {
      const std::int32_t position = positions[static_cast<std::size_t>(row)];
      const float* turn = turn_of(position);
      const Eigen::Map<const Eigen::ArrayXf> cosine(turn, m_half), sine(turn + m_half, m_half);
      for (Index head = 0; head < heads; ++head) {
        float* data = x.row(row) + head * 2 * m_half;
        Eigen::Map<Eigen::ArrayXf> low(data, m_half), high(data + m_half, m_half);
        // One pass over both halves; element i of either is read before it is written.
        for (Index i = 0; i < m_half; ++i) {
          const float a = low[i], b = high[i];
          low[i] = a * cosine[i] - b * sine[i];
          high[i] = b * cosine[i] + a * sine[i];
        }
      }
    }
  }

 private:
  // Cosines and sines of one position. Positions from 0 on are kept in a table that grows to the
  // largest one seen, since the same rows turn in every layer of every step.
  const float* turn_of(std::int32_t position) {
    constexpr std::int32_t largest_kept = 1 << 20;
    const auto width = static_cast<std::size_t>(2 * m_half);
    if (position < 0 || position > largest_kept) {
      m_single.resize(width);
      fill(position, m_single.data());
      return m_single.data();
    }
    const auto wanted = static_cast<std::size_t>(position) + 1;
    for (std::size_t next = m_table.size() / width; next < wanted; ++next) {
      m_table.resize((next + 1) * width);
      fill(static_cast<std::int32_t>(next), m_table.data() + next * width);
    }
    return m_table.data() + static_cast<std::size_t>(position) * width;
  }

  void fill(std::int32_t position, float* turn) const {
    for (Index i = 0; i < m_half; ++i) {
      const float angle = static_cast<float>(position) * m_frequencies[static_cast<std::size_t>(i)];
      turn[i] = std::cos(angle);
      turn[m_half + i] = std::sin(angle);
    }
  }

  Index m_half;
  std::vector<float> m_frequencies;
  std::vector<float> m_table;
  std::vector<float> m_single;
};

/// gate `[m, n]` = silu(gate) * up, element by element.
inline void gate_silu(MatrixView<float> gate, MatrixView<const float> up) {
  for (Index row = 0; row < gate.rows; ++row) {
    Eigen::Map<Eigen::ArrayXf> g(gate.row(row), gate.cols);
    const Eigen::Map<const Eigen::ArrayXf> u(up.row(row), up.cols);
    g = g / (1.0F + (-g).exp()) * u;
  }
}

}  // namespace dllm_cache::models
