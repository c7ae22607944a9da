// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

#include "dllm_cache/models/checkpoint/config.hpp"
#include "dllm_cache/models/transformer_model.hpp"

// The rotary embedding in config.json: `rope_theta` and `rope_scaling`, and since transformers 5
// both in one object `rope_parameters`. Where two places speak of the same thing they must agree.
namespace dllm_cache::inline v0_1::models::detail {

/// What one object says of the rotary embedding.
struct RotaryKeys {
  std::optional<double> theta;
  std::optional<RotaryScaling> scaling;  ///< None where it names no type.
};

inline constexpr double least_theta = 1.0, most_theta = 1e12;

/// Reads `rope_scaling` or `rope_parameters`; throws std::runtime_error naming the key inside it.
[[nodiscard]] inline RotaryKeys read_rotary_object(const ConfigReader& config, const char* key) {
  RotaryKeys read;
  const nlohmann::json* const value = config.find(key);
  if (value == nullptr) return read;
  if (!value->is_object()) config.refuse(key, "an object, null or absent");
  const ConfigReader object = config.inside(key, *value);
  // Of a type that is computed everything that counts is read below.
  constexpr std::array<std::string_view, 8> known = {"rope_theta",
                                                     "rope_type",
                                                     "type",
                                                     "factor",
                                                     "low_freq_factor",
                                                     "high_freq_factor",
                                                     "original_max_position_embeddings",
                                                     "partial_rotary_factor"};
  const auto type = object.optional_string("rope_type"), older = object.optional_string("type");
  if (type && older && *type != *older)
    object.refuse("type", "\"" + *type + "\" as in rope_type, or absent");
  const std::string name = type ? *type : older.value_or("default");
  if (name != "default" && name != "linear" && name != "llama3")
    object.refuse(type ? "rope_type" : "type",
                  "default, linear or llama3: others are not computed");
  for (const auto& [inner, ignored] : value->items())
    if (std::find(known.begin(), known.end(), inner) == known.end() &&
        object.find(inner) != nullptr)
      object.refuse(inner, "no such key beside rope_type " + name + ": it is not computed");
  if (object.optional_number("partial_rotary_factor", 0.0, 1.0).value_or(1.0) != 1.0)
    object.refuse("partial_rotary_factor", "1 or absent: rotation of a part is not computed");
  read.theta = object.optional_number("rope_theta", least_theta, most_theta);
  if (type || older) read.scaling = RotaryScaling{};
  if (name == "default") return read;
  constexpr double most = 1e6;
  const auto number = [&](const char* inner, double least) {
    if (object.find(inner) == nullptr) object.refuse(inner, "a number, which " + name + " needs");
    return *object.optional_number(inner, least, 1e9);
  };
  RotaryScaling& scaling = *read.scaling;
  scaling.factor = number("factor", 1.0);
  if (scaling.factor > most) object.refuse("factor", "a number in [1, 1e6]");
  scaling.kind = RotaryScaling::Kind::Linear;
  if (name == "linear") return read;
  scaling.kind = RotaryScaling::Kind::Llama3;
  scaling.low_frequency = number("low_freq_factor", 1e-6);
  scaling.high_frequency = number("high_freq_factor", 1e-6);
  scaling.original_positions = number("original_max_position_embeddings", 1.0);
  if (scaling.high_frequency <= scaling.low_frequency)
    object.refuse("high_freq_factor", "a number above low_freq_factor");
  return read;
}

/// Fills in base and scaling from all places that may hold them; throws std::runtime_error naming
/// the key, a type that is not computed, or two places that differ.
inline void read_rotary(const ConfigReader& config, TransformerConfig& to) {
  const auto top = config.optional_number("rope_theta", least_theta, most_theta);
  const RotaryKeys parameters = read_rotary_object(config, "rope_parameters");
  const RotaryKeys scaling = read_rotary_object(config, "rope_scaling");
  std::optional<double> theta = top;
  for (const auto& [key, other] :
       {std::pair("rope_parameters", parameters.theta), std::pair("rope_scaling", scaling.theta)}) {
    if (!other) continue;
    if (theta && *theta != *other)
      config.inside(key, *config.find(key))
          .refuse("rope_theta", "the base that stands in another place, " +
                                    nlohmann::json(*theta).dump() + ", or absent");
    theta = other;
  }
  if (parameters.scaling && scaling.scaling && *parameters.scaling != *scaling.scaling)
    config.refuse("rope_scaling", "the scaling of rope_parameters, or absent");
  to.rotary_theta = theta.value_or(10000.0);
  if (parameters.scaling) to.rotary_scaling = *parameters.scaling;
  if (scaling.scaling) to.rotary_scaling = *scaling.scaling;
}

}  // namespace dllm_cache::inline v0_1::models::detail
