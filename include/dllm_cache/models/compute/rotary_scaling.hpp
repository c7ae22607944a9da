// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <numbers>

namespace dllm_cache::inline v0_1::models {

/// How a rotary embedding was stretched to longer sequences, as config.json says it: a change of
/// its frequencies. Source: `modeling_rope_utils.py` of transformers, types `linear` and `llama3`.
struct RotaryScaling {
  enum class Kind { None, Linear, Llama3 };
  Kind kind = Kind::None;
  double factor = 1.0;              ///< At least 1: slow dimensions turn this many times slower.
  double low_frequency = 1.0;       ///< Llama3: turns over `original` below which all of it holds,
  double high_frequency = 4.0;      ///< and above which none does.
  double original_positions = 1.0;  ///< Llama3: length that the model was first made for.

  friend bool operator==(const RotaryScaling&, const RotaryScaling&) = default;

  /// The frequency, in radians a position, in place of an unscaled one above 0.
  [[nodiscard]] float apply(float frequency) const {
    const auto scale = static_cast<float>(factor);
    if (kind == Kind::None) return frequency;
    if (kind == Kind::Linear) return frequency / scale;
    const float wavelength = 2.0F * std::numbers::pi_v<float> / frequency;
    const auto length = static_cast<float>(original_positions);
    const auto low = static_cast<float>(low_frequency), high = static_cast<float>(high_frequency);
    if (wavelength > length / low) return frequency / scale;
    if (wavelength < length / high) return frequency;
    const float kept = (length / wavelength - low) / (high - low);
    return (1.0F - kept) * frequency / scale + kept * frequency;
  }
};

}  // namespace dllm_cache::inline v0_1::models
