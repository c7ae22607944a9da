// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>
#include <utility>
#include <variant>

#include "dllm_cache/decoding/decoding_options.hpp"
#include "dllm_cache/snapshot.hpp"

// Decoding options in a snapshot. Ranges are checked by SequenceState, as for any caller.
namespace dllm_cache::inline v0_1::detail {

/// Calls `field(name, member)` for every number of the options but the commit rule, in order.
template <class Options, class Field>
void for_each_option(Options& options, const Field& field) {
  field("response", options.response);
  field("block_length", options.block_length);
  field("steps", options.steps);
  field("temperature", options.temperature);
  field("sampling", options.sampling);
  field("top_p", options.top_p);
  field("top_k", options.top_k);
  field("confidence", options.confidence);
  field("order_temperature", options.order_temperature);
  field("guidance_scale", options.guidance_scale);
  field("guidance_interval", options.guidance_interval);
  field("early_stop", options.early_stop);
  field("seed", options.seed);
  field("sequence", options.sequence);
}

/// Calls `field(name, member)` for the number of a commit rule that has one.
template <class Rule, class Field>
void for_each_number(Rule& rule, const Field& field) {
  if constexpr (requires { rule.epsilon; }) field("epsilon", rule.epsilon);
  if constexpr (requires { rule.threshold; }) field("threshold", rule.threshold);
  if constexpr (requires { rule.factor; }) field("factor", rule.factor);
  if constexpr (requires { rule.bound; }) field("bound", rule.bound);
  if constexpr (requires { rule.rows; }) field("rows", rule.rows);
}

inline void write_options(SnapshotWriter& out, const DecodingOptions& options) {
  const auto write = [&](const char* name, const auto& value) { out.number(name, value); };
  for_each_option(options, write);
  out.number("commit", static_cast<std::int32_t>(options.commit.index()));
  std::visit([&](const auto& rule) { for_each_number(rule, write); }, options.commit);
}

/// The rule that stands at a place of the variant.
template <std::size_t... Places>
[[nodiscard]] CommitRule rule_at(std::size_t place, std::index_sequence<Places...>) {
  CommitRule rule;
  static_cast<void>((
      (place == Places && (rule = std::variant_alternative_t<Places, CommitRule>{}, true)) || ...));
  return rule;
}

[[nodiscard]] inline DecodingOptions read_options(SnapshotReader& in) {
  const auto read = [&]<class T>(const char* name, T& value) {
    if constexpr (std::is_same_v<T, bool>)
      value = in.flag(name);
    else if constexpr (std::is_same_v<T, Sampling>)
      value = in.number(name, Sampling::GumbelNoise, Sampling::Categorical);
    else if constexpr (std::is_same_v<T, Confidence>)
      value = in.number(name, Confidence::Probability, Confidence::Random);
    else if constexpr (std::is_same_v<T, double>)
      value =
          in.number(name, -std::numeric_limits<T>::infinity(), std::numeric_limits<T>::infinity());
    else
      value = in.number(name, std::numeric_limits<T>::min(), std::numeric_limits<T>::max());
  };
  DecodingOptions options;
  for_each_option(options, read);
  constexpr std::size_t rules = std::variant_size_v<CommitRule>;
  const auto place = in.number<std::int32_t>("commit", 0, static_cast<std::int32_t>(rules) - 1);
  options.commit = rule_at(static_cast<std::size_t>(place), std::make_index_sequence<rules>());
  std::visit([&](auto& rule) { for_each_number(rule, read); }, options.commit);
  return options;
}

}  // namespace dllm_cache::inline v0_1::detail
