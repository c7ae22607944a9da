// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "dllm_cache/decoding/decoding_options.hpp"
#include "dllm_cache/decoding/special_tokens.hpp"
#include "dllm_cache/snapshot.hpp"

// Decoding options in a snapshot. Ranges are checked by SequenceState, as for any caller.
namespace dllm_cache::inline v0_1::detail {

/// Calls `field(name, member)` for everything in the options but the commit rule, in one order.
template <class Options, class Field>
void for_each_member(Options& options, const Field& field) {
  DecodingOptions::visit_options(options, OptionVisitor{[&](std::string_view name, auto& value,
                                                            auto&&...) { field(name, value); }});
  field("suppress_tokens", options.suppress_tokens);
  field("commit_last", options.commit_last);
  field("sampling", options.sampling);
  field("confidence", options.confidence);
}

/// The same for the numbers of a commit rule.
template <class Rule, class Field>
void for_each_number(Rule& rule, const Field& field) {
  if constexpr (VisitsOptions<std::remove_const_t<Rule>>)
    Rule::visit_options(rule, OptionVisitor{[&](std::string_view name, auto& value, auto&&...) {
                          field(name, value);
                        }});
}

inline void write_options(SnapshotWriter& out, const DecodingOptions& options) {
  const auto write = [&]<class T>(std::string_view name, const T& value) {
    if constexpr (std::is_same_v<T, std::vector<std::int32_t>>) {
      out.number(name, static_cast<std::uint64_t>(value.size()));
      for (const std::int32_t token : value) out.number(name, token);
    } else {
      out.number(name, value);
    }
  };
  for_each_member(options, write);
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
  const auto read = [&]<class T>(std::string_view name, T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      value = in.flag(name);
    } else if constexpr (std::is_same_v<T, std::vector<std::int32_t>>) {
      const auto count = in.number<std::uint64_t>(name, 0, std::uint64_t{1} << 31);
      for (std::uint64_t i = 0; i < count; ++i)  // memory grows with what has been read
        value.push_back(in.number<std::int32_t>(name, 0, std::numeric_limits<std::int32_t>::max()));
    } else if constexpr (std::is_same_v<T, Sampling>)
      value = in.number(name, Sampling::GumbelNoise, Sampling::Categorical);
    else if constexpr (std::is_same_v<T, Confidence>)
      value = in.number(name, Confidence::Probability, Confidence::LeftToRight);
    else if constexpr (std::is_same_v<T, double>)
      value =
          in.number(name, -std::numeric_limits<T>::infinity(), std::numeric_limits<T>::infinity());
    else
      value = in.number(name, std::numeric_limits<T>::min(), std::numeric_limits<T>::max());
  };
  DecodingOptions options;
  for_each_member(options, read);
  constexpr std::size_t rules = std::variant_size_v<CommitRule>;
  const auto place = in.number<std::int32_t>("commit", 0, static_cast<std::int32_t>(rules) - 1);
  options.commit = rule_at(static_cast<std::size_t>(place), std::make_index_sequence<rules>());
  std::visit([&](auto& rule) { for_each_number(rule, read); }, options.commit);
  // What the size of the sequence is computed from.
  for (const auto& [name, value] : {std::pair{"response", options.response},
                                    std::pair{"attention_block", options.attention_block}})
    if (value < 0 || value > most_rows)
      in.refuse(name, " must be in [0, ", most_rows, "], got ", value);
  return options;
}

inline void write_special(SnapshotWriter& out, const SpecialTokens& special) {
  out.number("mask", special.mask);
  const std::span<const std::int32_t> ends = special.end_of_text.all();
  out.number("end_of_text", static_cast<std::uint64_t>(ends.size()));
  for (const std::int32_t token : ends) out.number("end_of_text", token);
}
/// Refuses other tokens than these.
inline void expect_special(SnapshotReader& in, const SpecialTokens& special) {
  in.expect("mask", special.mask);
  const std::span<const std::int32_t> ends = special.end_of_text.all();
  in.expect("end_of_text", static_cast<std::uint64_t>(ends.size()));
  for (const std::int32_t token : ends) in.expect("end_of_text", token);
}

}  // namespace dllm_cache::inline v0_1::detail
