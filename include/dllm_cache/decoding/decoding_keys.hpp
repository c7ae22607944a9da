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

#include "dllm_cache/decoding/decoder.hpp"
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
inline constexpr std::array<Words<Confidence>, 3> even_words = {
    {{"sequential", Confidence::LeftToRight},
     {"low_confidence_static", Confidence::Probability},
     {"low_confidence_dynamic", Confidence::Probability}}};
inline constexpr std::array<Words<bool>, 2> grid_words = {{{"row_0", false}, {"prompt_end", true}}};
inline constexpr std::array<Words<bool>, 2> stop_words = {{{"block", false}, {"prefix", true}}};
inline constexpr std::array<Words<bool>, 2> schedule_words = {{{"llada", false}, {"dllm", true}}};
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
  add_words("decoder", "the decoding loop, a set of defaults (default: the model's)",
            decoder_list(), std::nullopt);
  add_words("remasking", "which tokens are committed first: LLaDA's words and SDAR's",
            detail::list_words(detail::remasking_words) +
                "; SDAR: " + detail::list_words(detail::even_words),
            std::nullopt);
  add_words("schedule", "how a block's tokens are spread over its steps",
            detail::list_words(detail::schedule_words), std::nullopt);
  add_words("block_grid", "where blocks of attention are counted from",
            detail::list_words(detail::grid_words), std::nullopt);
  add_words("stop_at",
            "early_stop: at a block's end, or as soon as all before end-of-text is decoded",
            detail::list_words(detail::stop_words), std::nullopt);
  keys.push_back(
      {.key = "small_block_length",
       .help = "Fast-dLLM v2: tokens a sub-block, decoded one after the other in a block",
       .kind = OptionKind::Integer,
       .legal = at_least(1).text(),
       .word = {},
       .value = std::nullopt});
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

namespace detail {

/// Order and schedule of a loop over even blocks (SDAR, Fast-dLLM v2), or of another one.
inline void read_order(const OptionValues& values, const Decoder& decoder,
                       DecodingOptions& options) {
  const std::string* const remasking = find_value(values, "remasking");
  const std::string* const schedule = find_value(values, "schedule");
  if (decoder.categorical) options.sampling = Sampling::Categorical;
  if (decoder.even) {
    options.confidence = word_value("remasking", *remasking, even_words);
    EvenCommit rule;
    const std::string* const threshold = find_value(values, "threshold");
    if (threshold != nullptr && *remasking != "low_confidence_dynamic")
      base::refuse_argument(
          "threshold belongs to remasking low_confidence_dynamic, it does not go "
          "with \"",
          *remasking, "\", got ", *threshold);
    if (threshold != nullptr) set_option(rule, "threshold", *threshold, "decoding");
    options.commit = rule;
    for (const auto* key : {"schedule", "steps"})
      if (const std::string* const value = find_value(values, key))
        base::refuse_argument(key, " does not go with decoder \"", decoder.name,
                              "\": its blocks have steps_per_block, got ", *value);
    return;
  }
  if (decoder.dream) {
    const std::string& algorithm = values.find("alg")->second;
    options.confidence = word_value("alg", algorithm, algorithm_words);
    if (remasking != nullptr)
      base::refuse_argument("remasking belongs to LLaDA, it does not go with alg \"", algorithm,
                            "\", got \"", *remasking, "\"");
    TimestepCommit times;
    if (const std::string* const eps = find_value(values, "eps"))
      set_option(times, "eps", *eps, "decoding");
    options.commit = times;
    if (options.confidence == Confidence::Random) options.commit = BernoulliCommit{times.epsilon};
  } else {
    options.confidence = word_value("remasking", *remasking, remasking_words);
  }
  if (schedule == nullptr) return;
  if (decoder.dream)
    base::refuse_argument("schedule does not go with decoder \"dream\", got \"", *schedule, "\"");
  if (word_value("schedule", *schedule, schedule_words)) options.commit = LinearCommit{};
}

/// A rule of parallel decoding in place of the loop's schedule; EvenCommit has its own threshold.
inline void read_rule(const OptionValues& values, const Decoder& decoder,
                      DecodingOptions& options) {
  std::string rules;
  int given = 0;
  for_each_parallel_rule([&](auto rule) {
    const std::string key = describe_options(rule).front().key;
    rules += (rules.empty() ? "" : ", ") + key;
    const std::string* const value = find_value(values, key);
    if (value == nullptr) return;
    ++given;
    if (decoder.even && key == "threshold") return;
    set_option(rule, key, *value, "decoding");
    options.commit = rule;
  });
  if (given > 1) base::refuse_argument("at most one of ", rules, " may be given, got ", given);
  const std::string* const eps = find_value(values, "eps");
  if (given > 0 && eps != nullptr)
    base::refuse_argument("eps belongs to a schedule of steps, it does not go with any of ", rules,
                          ", got ", *eps);
  if (eps != nullptr && !decoder.dream)
    base::refuse_argument("eps belongs to alg, which is not given, got ", *eps);
}

/// Blocks and ends that are words in texts.
inline void read_blocks(const OptionValues& values, const Decoder& decoder,
                        DecodingOptions& options) {
  options.commit_next = decoder.commits_next;
  if (const std::string* const grid = find_value(values, "block_grid")) {
    options.prompt_end_grid = word_value("block_grid", *grid, grid_words);
    if (options.attention_block == 0)
      base::refuse_argument("block_grid needs an attention_block of at least 1, got \"", *grid,
                            "\"");
  }
  if (const std::string* const stop = find_value(values, "stop_at"))
    options.stop_within_block = word_value("stop_at", *stop, stop_words);
  const std::string* const small = find_value(values, "small_block_length");
  if (small == nullptr) return;
  const auto length = parse_option<Index>(*small, {});
  if (!length || *length < 1)
    base::refuse_argument("small_block_length must be at least 1, got ", *small);
  if (options.attention_block == 0 || options.attention_block % *length != 0)
    base::refuse_argument("small_block_length must divide attention_block = ",
                          options.attention_block, ", got ", *length);
  options.block_length = *length;
}

}  // namespace detail

/// The options that texts stand for, with the defaults of their loop; `model` says how the model is
/// decoded where they name none. Throws std::invalid_argument naming the key: unknown, outside its
/// range, or beside another one that it does not go with.
[[nodiscard]] inline DecodingOptions decoding_options(const OptionValues& given,
                                                      const ModelDecoding& model) {
  const OptionValues values = with_defaults(given, model, parallel_rule_keys());
  const Decoder& decoder = find_decoder(values, model);
  if (values.contains("alg") && !decoder.dream)
    base::refuse_argument("alg belongs to decoder \"dream\", it does not go with decoder \"",
                          decoder.name, "\", got \"", values.at("alg"), "\"");
  DecodingOptions options;
  detail::read_order(values, decoder, options);
  detail::read_rule(values, decoder, options);
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
  detail::read_blocks(values, decoder, options);
  return options;
}

}  // namespace dllm_cache::inline v0_1
