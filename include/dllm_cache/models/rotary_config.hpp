// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

#include "dllm_cache/models/checkpoint/config.hpp"
#include "dllm_cache/models/compute/row_operations.hpp"

namespace dllm_cache::inline v0_1::models {

/// What config.json says about the rotary embedding.
struct RotaryConfig {
  std::optional<double> theta;
  std::optional<RotaryScaling> scaling;  ///< None where nothing is said.
};

namespace detail {

inline constexpr const char* rotary_types = "\"default\", \"linear\" or \"llama3\"";

/// Reads `rope_parameters` or `rope_scaling`, an object of config.json.
class RotaryReader {
 public:
  RotaryReader(const ConfigReader& config, std::string_view key)
      : m_config(config), m_key(key), m_object(config.find(key)) {}

  [[nodiscard]] RotaryConfig read() const {
    if (m_object == nullptr || *m_object == false) return {};
    if (!m_object->is_object()) m_config.refuse(m_key, "an object, null or absent");
    const std::string kind = type();
    RotaryConfig result{.theta = number("rope_theta", 1.0, 1e12), .scaling = RotaryScaling{}};
    RotaryScaling& scaling = *result.scaling;
    if (kind == "linear" || kind == "llama3") {
      scaling.rule = kind == "linear" ? RotaryScaling::Rule::Linear : RotaryScaling::Rule::Llama3;
      scaling.factor = required("factor", 1.0, 1e6);
    } else if (kind != "default") {
      refuse(m_object->contains("rope_type") ? "rope_type" : "type",
             std::string("expected ") + rotary_types + ", got " + in_quotes(kind));
    }
    if (kind == "llama3") {
      scaling.low_factor = required("low_freq_factor", 1e-6, 1e6);
      scaling.high_factor = required("high_freq_factor", 1e-6, 1e6);
      scaling.original_positions = required("original_max_position_embeddings", 1.0, 1e12);
      if (scaling.high_factor <= scaling.low_factor)
        refuse("high_freq_factor", base::text("expected more than low_freq_factor = ",
                                              scaling.low_factor, ", got ", scaling.high_factor));
    }
    check_others(kind);
    return result;
  }

 private:
  // The type under either of its names; the older one may stand beside the newer.
  [[nodiscard]] std::string type() const {
    const auto newer = text("rope_type"), older = text("type");
    if (newer && older && *newer != *older)
      refuse("rope_type",
             in_quotes(*newer) + " and key \"type\" " + in_quotes(*older) + " must agree");
    return newer ? *newer : older.value_or("default");
  }

  // What the type does not use may ask for another computation.
  void check_others(std::string_view kind) const {
    for (const auto& [name, value] : m_object->items()) {
      if (value.is_null() || name == "rope_theta" || name == "rope_type" || name == "type" ||
          name == "original_max_position_embeddings" ||
          ((name == "factor" || name == "partial_rotary_factor") && value == 1))
        continue;
      if (kind != "default" && name == "factor") continue;
      if (kind == "llama3" && (name == "low_freq_factor" || name == "high_freq_factor")) continue;
      refuse(name, "expected none of that name with type " + in_quotes(kind) + ", got " +
                       json_text(value));
    }
  }

  [[nodiscard]] std::optional<std::string> text(const char* name) const {
    const nlohmann::json* const value = find(name);
    if (value == nullptr) return std::nullopt;
    if (!value->is_string()) refuse(name, "expected a string, got " + json_text(*value));
    return value->get<std::string>();
  }
  [[nodiscard]] std::optional<double> number(const char* name, double min, double max) const {
    const nlohmann::json* const value = find(name);
    if (value == nullptr) return std::nullopt;
    const double given = value->is_number() ? value->get<double>() : min - 1.0;
    if (!(given >= min && given <= max))
      refuse(name,
             base::text("expected a number in [", min, ", ", max, "], got ", json_text(*value)));
    return given;
  }
  [[nodiscard]] double required(const char* name, double min, double max) const {
    const std::optional<double> value = number(name, min, max);
    if (!value) refuse(name, base::text("expected a number in [", min, ", ", max, "], got none"));
    return *value;
  }
  [[nodiscard]] const nlohmann::json* find(const char* name) const {
    const auto found = m_object->find(name);
    return found == m_object->end() || found->is_null() ? nullptr : &*found;
  }
  [[noreturn]] void refuse(std::string_view name, const std::string& reason) const {
    m_config.refuse_file("key ", in_quotes(m_key), ", ", in_quotes(name), ": ", reason);
  }

  const ConfigReader& m_config;
  std::string_view m_key;
  const nlohmann::json* m_object;
};

}  // namespace detail

/// The rotary embedding of config.json: `rope_theta` and `rope_scaling`, or `rope_parameters`,
/// which newer versions of Python's transformers write in place of both.
///
/// Throws std::runtime_error naming the key and what was found: a type that is not computed, a
/// value out of its range, and two places that disagree.
[[nodiscard]] inline RotaryConfig rotary_config(const ConfigReader& reader) {
  constexpr std::array<const char*, 2> keys = {"rope_parameters", "rope_scaling"};
  RotaryConfig result{.theta = reader.optional_number("rope_theta", 1.0, 1e12), .scaling = {}};
  const char* theta_key = "rope_theta";
  const char* scaling_key = nullptr;
  for (const char* key : keys) {
    const RotaryConfig part = detail::RotaryReader(reader, key).read();
    if (part.theta && result.theta && *part.theta != *result.theta)
      reader.refuse_file("keys \"", theta_key, "\" and \"", key,
                         "\" must name the same base rope_theta, got ",
                         detail::json_text(*result.theta), " and ", detail::json_text(*part.theta));
    if (part.scaling && result.scaling && *part.scaling != *result.scaling)
      reader.refuse_file("keys \"", scaling_key, "\" and \"", key, "\" must name the same scaling");
    if (part.theta && !result.theta) {
      result.theta = part.theta;
      theta_key = key;
    }
    if (part.scaling) {
      result.scaling = part.scaling;
      scaling_key = key;
    }
  }
  return result;
}

}  // namespace dllm_cache::inline v0_1::models
