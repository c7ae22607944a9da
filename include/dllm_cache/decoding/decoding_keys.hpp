// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "dllm_cache/decoding/decoding_options.hpp"
#include "dllm_cache/options.hpp"

// Decoding options as text, under the keys that requests and scripts of LLaDA and Dream use.
namespace dllm_cache::inline v0_1 {

namespace detail {

/// A word and what it means.
template <class T>
using Words = std::pair<std::string_view, T>;

inline constexpr std::array<Words<Confidence>, 2> remasking_words = {
    {{"low_confidence", Confidence::Probability}, {"random", Confidence::Random}}};
inline constexpr std::array<Words<Confidence>, 4> algorithm_words = {
    {{"origin", Confidence::Random},
     {"maskgit_plus", Confidence::Probability},
     {"topk_margin", Confidence::Margin},
     {"entropy", Confidence::NegativeEntropy}}};

/// "a, b or c"
template <class T, std::size_t Count>
[[nodiscard]] std::string list_words(const std::array<Words<T>, Count>& words) {
  std::string list;
  for (std::size_t i = 0; i < Count; ++i)
    list.append(i == 0 ? "" : i + 1 == Count ? " or " : ", ").append(words[i].first);
  return list;
}

template <class T, std::size_t Count>
[[nodiscard]] T word_value(std::string_view key, const std::string& text,
                           const std::array<Words<T>, Count>& words) {
  for (const auto& [word, value] : words)
    if (word == text) return value;
  base::refuse_argument(key, " must be ", list_words(words), ", got \"", text, "\"");
}

/// Calls `visit(rule)` with every rule that has a number of its own key; not Dream's schedules,
/// whose `eps` belongs to `alg`.
template <class Visit>
void for_each_parallel_rule(const Visit& visit) {
  visit(ThresholdCommit{});
  visit(FactorCommit{});
  visit(EntropyBoundCommit{});
  visit(FixedCommit{});
}

/// Token ids of a text that has commas between them.
[[nodiscard]] inline std::vector<std::int32_t> parse_tokens(std::string_view key,
                                                            const std::string& text) {
  std::vector<std::int32_t> tokens;
  if (text.empty()) return tokens;
  for (std::size_t begin = 0, end = 0; begin <= text.size(); begin = end + 1) {
    end = std::min(text.find(',', begin), text.size());
    const auto value = parse_option<Index>(std::string_view(text).substr(begin, end - begin),
                                           OptionRange<Index>{});
    if (!value || *value < 0 || *value > std::numeric_limits<std::int32_t>::max())
      base::refuse_argument(key, " must be token ids in [0, 2^31) with commas between them, got \"",
                            text, "\"");
    tokens.push_back(static_cast<std::int32_t>(*value));
  }
  return tokens;
}

[[nodiscard]] inline const std::string* find_value(const OptionValues& values,
                                                   std::string_view key) {
  const auto found = values.find(key);
  return found == values.end() ? nullptr : &found->second;
}

}  // namespace detail

/// Keys of commit rules, of which at most one may be given.
[[nodiscard]] inline std::vector<std::string> parallel_rule_keys() {
  std::vector<std::string> keys;
  detail::for_each_parallel_rule(
      [&](const auto& rule) { keys.push_back(describe_options(rule).front().key); });
  return keys;
}

/// Every key of decoding with its default, none for those that are absent by default. `remasking`
/// and `alg` are words (OptionInfo::legal lists them), `suppress_tokens` and `commit_last` ids with
/// commas between them, all others numbers or flags.
[[nodiscard]] inline std::vector<OptionInfo> decoding_keys() {
  std::vector<OptionInfo> keys = describe_options(DecodingOptions{});
  const auto add_words = [&](const char* key, const char* help, std::string legal,
                             std::optional<std::string> value) {
    keys.push_back({.key = key,
                    .help = help,
                    .kind = OptionKind::Word,
                    .legal = std::move(legal),
                    .word = {},
                    .value = std::move(value)});
  };
  add_words("remasking", "LLaDA: which tokens are committed first",
            detail::list_words(detail::remasking_words), "low_confidence");
  add_words("alg", "Dream's algorithm (entropy where a Dream model is told nothing)",
            detail::list_words(detail::algorithm_words), std::nullopt);
  const auto add_tokens = [&](const char* key, const char* help) {
    keys.push_back({.key = key,
                    .help = help,
                    .kind = OptionKind::Tokens,
                    .legal = "token ids",
                    .word = {},
                    .value = ""});
  };
  add_tokens("suppress_tokens", "tokens that are never predicted");
  add_tokens("commit_last", "tokens that count as the least sure: committed last");
  const auto add_absent = [&](const auto& rule) {
    for (OptionInfo& info : describe_options(rule)) {
      info.value.reset();
      keys.push_back(std::move(info));
    }
  };
  add_absent(TimestepCommit{});
  detail::for_each_parallel_rule(add_absent);
  return keys;
}

/// The options that texts stand for; `dream` says whether the model is decoded like Dream where
/// `alg` is not given. Throws std::invalid_argument naming the key: unknown, outside its range, or
/// beside another one that it does not go with.
[[nodiscard]] inline DecodingOptions decoding_options(const OptionValues& values, bool dream) {
  DecodingOptions options;
  const std::string* const remasking = detail::find_value(values, "remasking");
  const std::string* const alg = detail::find_value(values, "alg");
  const std::string* const eps = detail::find_value(values, "eps");
  const std::string algorithm = alg != nullptr ? *alg : "entropy";
  if (remasking != nullptr)
    options.confidence = detail::word_value("remasking", *remasking, detail::remasking_words);
  if (remasking != nullptr && (alg != nullptr || dream))
    base::refuse_argument("remasking belongs to LLaDA, it does not go with alg \"", algorithm,
                          "\", got \"", *remasking, "\"");
  if (alg != nullptr || dream) {
    options.sampling = Sampling::Categorical;
    options.confidence = detail::word_value("alg", algorithm, detail::algorithm_words);
    TimestepCommit schedule;
    if (eps != nullptr) set_option(schedule, "eps", *eps, "decoding");
    options.commit = schedule;
    if (options.confidence == Confidence::Random)
      options.commit = BernoulliCommit{schedule.epsilon};
  } else if (eps != nullptr) {
    base::refuse_argument("eps belongs to alg, which is not given, got ", *eps);
  }
  std::string rules;
  int rules_given = 0;
  detail::for_each_parallel_rule([&](auto rule) {
    const std::string key = describe_options(rule).front().key;
    rules += (rules.empty() ? "" : ", ") + key;
    const std::string* const value = detail::find_value(values, key);
    if (value == nullptr) return;
    set_option(rule, key, *value, "decoding");
    options.commit = rule;
    ++rules_given;
  });
  if (rules_given > 1)
    base::refuse_argument("at most one of ", rules, " may be given, got ", rules_given);
  if (rules_given > 0 && eps != nullptr)
    base::refuse_argument("eps belongs to a schedule of steps, it does not go with any of ", rules,
                          ", got ", *eps);
  if (const std::string* const ids = detail::find_value(values, "suppress_tokens"))
    options.suppress_tokens = detail::parse_tokens("suppress_tokens", *ids);
  if (const std::string* const ids = detail::find_value(values, "commit_last"))
    options.commit_last = detail::parse_tokens("commit_last", *ids);
  const std::vector<OptionInfo> keys = decoding_keys();
  for (const auto& [key, text] : values) {
    const bool known = std::any_of(
        keys.begin(), keys.end(), [&name = key](const OptionInfo& one) { return one.key == name; });
    if (!known) base::refuse_argument("decoding has no option ", key);
    set_option(options, key, text, "decoding");
  }
  return options;
}

}  // namespace dllm_cache::inline v0_1
