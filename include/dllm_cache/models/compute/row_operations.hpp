// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <span>
#include <type_traits>
#include <vector>

#include "dllm_cache/base/matrix_view.hpp"
#include "dllm_cache/base/scalar.hpp"
#include "dllm_cache/eigen.hpp"
#include "dllm_cache/models/compute/parallel.hpp"
#include "dllm_cache/models/compute/rounding.hpp"
#include "dllm_cache/models/compute/softmax.hpp"

namespace dllm_cache::inline v0_1::models {

/// Root-mean-square norm of rows, with a weight `[width]` and, where the checkpoint has one, a
/// bias.
struct RmsNorm {
  std::vector<float> weight;
  std::vector<float> bias;  ///< Empty: none.
  float epsilon = 1e-5F;

  /// y `[m, width]` = x / sqrt(mean(x^2) + epsilon) * weight (+ bias), row by row, rounded to
  /// Element (float or Eigen::bfloat16); y may be x.
  template <ProductScalar Element>
  void apply(MatrixView<const float> x, MatrixView<Element> y, ThreadTeam& team) const {
    team.for_rows(x.rows, static_cast<double>(x.rows * x.cols),
                  [&](Index row) { apply_row(x.row(row), y.row(row), x.cols); });
  }

  /// The same of a + b: y `[m, width]` = norm(a + b); `sum` `[m, width]` is scratch.
  template <ProductScalar Element>
  void apply_sum(MatrixView<const float> a, MatrixView<const float> b, MatrixView<Element> y,
                 MatrixView<float> sum, ThreadTeam& team) const {
    team.for_rows(a.rows, static_cast<double>(a.rows * a.cols), [&](Index row) {
      Eigen::Map<Eigen::ArrayXf>(sum.row(row), a.cols) =
          Eigen::Map<const Eigen::ArrayXf>(a.row(row), a.cols) +
          Eigen::Map<const Eigen::ArrayXf>(b.row(row), a.cols);
      apply_row(sum.row(row), y.row(row), a.cols);
    });
  }

  /// The norm of every head by itself, in place: x `[m, heads * n]` for a weight `[n]`. A norm
  /// without weight leaves x as it is.
  void apply_heads(MatrixView<float> x, ThreadTeam& team) const {
    const auto size = static_cast<Index>(weight.size());
    if (size == 0) return;
    team.for_rows(x.rows, static_cast<double>(x.rows * x.cols), [&](Index row) {
      for (float* head = x.row(row); head < x.row(row) + x.cols; head += size)
        apply_row(head, head, size);
    });
  }

 private:
  template <ProductScalar Element>
  void apply_row(const float* x, Element* y, Index width) const {
    const Eigen::Map<const Eigen::ArrayXf> in(x, width), scale(weight.data(), width);
    const float mean_square = in.square().sum() / static_cast<float>(width);
    const float factor = 1.0F / std::sqrt(mean_square + epsilon);
    if constexpr (std::is_same_v<Element, float>) {
      Eigen::Map<Eigen::ArrayXf> out(y, width);
      out = in * factor * scale;
      if (!bias.empty()) out += Eigen::Map<const Eigen::ArrayXf>(bias.data(), width);
    } else {
      round_normed(x, factor, y, width);
    }
  }

  void round_normed(const float* x, float factor, Eigen::bfloat16* y, Index width) const {
    using detail::FloatLanes;
    constexpr Index step = detail::lanes::lane_count;
    Index i = 0;
    for (; i + step <= width; i += step) {
      FloatLanes normed, term;
      detail::lanes::load_lanes<float, float>(x + i, normed);
      detail::lanes::load_lanes<float, float>(weight.data() + i, term);
      normed = normed * factor * term;
      if (!bias.empty()) {
        detail::lanes::load_lanes<float, float>(bias.data() + i, term);
        normed += term;
      }
      detail::round_lanes(normed, y + i);
    }
    for (; i < width; ++i) {
      const auto at = static_cast<std::size_t>(i);
      const float normed = x[i] * factor * weight[at];
      y[i] = static_cast<Eigen::bfloat16>(bias.empty() ? normed : normed + bias[at]);
    }
  }
};

/// How a checkpoint changes the frequencies of its rotary embedding, for longer texts than it was
/// first trained on: the rules "linear" and "llama3" of Python's transformers.
struct RotaryScaling {
  enum class Rule : std::uint8_t {
    None,
    Linear,  ///< Every frequency divided by `factor`.
    Llama3,  ///< Low frequencies divided by `factor`, high ones kept, those between blended.
  };
  Rule rule = Rule::None;
  double factor = 1.0;  ///< >= 1
  // Of Llama3: waves longer than original_positions / low_factor are low, those shorter than
  // original_positions / high_factor are high.
  double low_factor = 1.0;
  double high_factor = 4.0;  ///< > low_factor
  double original_positions = 8192.0;

  friend bool operator==(const RotaryScaling&, const RotaryScaling&) = default;

  /// The frequency to use in place of `frequency`.
  [[nodiscard]] float apply(float frequency) const {
    const auto divided = frequency / static_cast<float>(factor);
    if (rule == Rule::None) return frequency;
    if (rule == Rule::Linear) return divided;
    const double wave = 2.0 * std::numbers::pi / static_cast<double>(frequency);
    if (wave > original_positions / low_factor) return divided;
    if (wave < original_positions / high_factor) return frequency;
    const auto kept =
        static_cast<float>((original_positions / wave - low_factor) / (high_factor - low_factor));
    return (1.0F - kept) * divided + kept * frequency;
  }
};

/// Rotary position embedding of the half-split kind (GPT-NeoX, LLaMA): dimension i of a head turns
/// with dimension i + head_dim / 2 by position * theta^(-2i / head_dim), or by a scaled frequency.
class RotaryEmbedding {
 public:
  /// `head_dim` even and at least 2, `theta > 0` (checked by the model's configuration).
  RotaryEmbedding(Index head_dim, double theta, const RotaryScaling& scaling = {})
      : m_half(head_dim / 2) {
    m_frequencies.resize(static_cast<std::size_t>(m_half));
    for (Index i = 0; i < m_half; ++i)
      m_frequencies[static_cast<std::size_t>(i)] =
          scaling.apply(1.0F / std::pow(static_cast<float>(theta),
                                        static_cast<float>(2 * i) / static_cast<float>(head_dim)));
  }

  /// Frequencies `[head_dim / 2]`: what dimension i of a head turns by from row to row.
  [[nodiscard]] std::span<const float> frequencies() const { return m_frequencies; }

  /// Turns x `[m, heads * head_dim]` in place by the positions `[m]`.
  void apply(std::span<const std::int32_t> positions, MatrixView<float> x, ThreadTeam& team) {
    if (positions.empty()) return;
    // Neither the table nor the memory of other positions may grow while threads read it.
    const auto [least, most] = std::minmax_element(positions.begin(), positions.end());
    grow(*most);
    float* const others =
        *least < 0 || *most > largest_kept ? m_others.ensure(x.rows * 2 * m_half) : nullptr;
    team.for_rows(x.rows, static_cast<double>(x.rows * x.cols), [&](Index row) {
      const std::int32_t position = positions[static_cast<std::size_t>(row)];
      if (position >= 0 && position <= largest_kept) {
        turn_row(x.row(row), x.cols, m_table.data() + Index{2} * position * m_half);
      } else {
        float* const turn = others + row * 2 * m_half;
        fill(position, turn);
        turn_row(x.row(row), x.cols, turn);
      }
    });
  }

 private:
  // Positions from 0 to here are kept in a table that grows to the largest one seen, since the same
  // rows turn in every layer of every step; others are computed each time.
  static constexpr std::int32_t largest_kept = 1 << 20;

  void grow(std::int32_t largest) {
    const auto width = static_cast<std::size_t>(2 * m_half);
    const auto wanted = static_cast<std::size_t>(std::clamp(largest, -1, largest_kept) + 1);
    const std::size_t held = m_table.size() / width;
    if (wanted <= held) return;
    m_table.resize(wanted * width);
    for (std::size_t next = held; next < wanted; ++next)
      fill(static_cast<std::int32_t>(next), m_table.data() + next * width);
  }

  void turn_row(float* row, Index width, const float* turn) const {
    const float* cosine = turn;
    const float* sine = turn + m_half;
    for (float* low = row; low < row + width; low += 2 * m_half) {
      float* const high = low + m_half;
      // Element i of either half is read before it is written.
      for (Index i = 0; i < m_half; ++i) {
        const float a = low[i], b = high[i];
        low[i] = a * cosine[i] - b * sine[i];
        high[i] = b * cosine[i] + a * sine[i];
      }
    }
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
  base::Buffer<float> m_others;  // turns of one call's other positions
};

/// to `[m, n]` += from `[m, n]`.
inline void add_rows(MatrixView<const float> from, MatrixView<float> to, ThreadTeam& team) {
  team.for_rows(to.rows, static_cast<double>(to.rows * to.cols),
                [&](Index row) { base::add_row(from.row(row), to.row(row), to.cols); });
}

/// out `[m, n]` = silu(gate) * up, element by element, rounded to Element (float or
/// Eigen::bfloat16); out may be gate.
template <ProductScalar Element>
void gate_silu(MatrixView<const float> gate, MatrixView<const float> up, MatrixView<Element> out,
               ThreadTeam& team) {
  team.for_rows(gate.rows, 4.0 * static_cast<double>(gate.rows * gate.cols), [&](Index row) {
    const float* const g = gate.row(row);
    const float* const u = up.row(row);
    Element* const to = out.row(row);
    Index done = 0;
    for (; done + detail::lanes::lane_count <= gate.cols; done += detail::lanes::lane_count) {
      detail::FloatLanes a, b;
      detail::lanes::load_lanes<float, float>(g + done, a);
      detail::lanes::load_lanes<float, float>(u + done, b);
      detail::FloatLanes power = -a;
      detail::exponentiate(power);
      a = a / (1.0F + power) * b;
      detail::round_lanes(a, to + done);
    }
    for (; done < gate.cols; ++done)
      to[done] = static_cast<Element>(g[done] / (1.0F + std::exp(-g[done])) * u[done]);
  });
}

}  // namespace dllm_cache::inline v0_1::models
