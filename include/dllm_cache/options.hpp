// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <concepts>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include "dllm_cache/base/error.hpp"
#include "dllm_cache/plan.hpp"

// Options of policies and of decoding are told once, in `visit_options`. From that follow range
// checks with their messages, options as text (command lines, requests, snapshots, other languages)
// and what a program shows of them.
namespace dllm_cache::inline v0_1 {

/// Rows for one block after the other, as data; the text "36,40;;52;" has three lists. There may be
/// blanks in place of commas.
struct RowLists {
  std::vector<std::vector<Index>> blocks;
  friend bool operator==(const RowLists&, const RowLists&) = default;
};

/// Types an option may have: bool, Index, std::uint64_t, double or RowLists.
template <class T>
concept OptionType = std::same_as<T, bool> || std::same_as<T, Index> ||
    std::same_as<T, std::uint64_t> || std::same_as<T, double> || std::same_as<T, RowLists>;

/// Legal values of an option: numbers from `least` to `most`, and perhaps one more value, which has
/// a word in texts, and one that stands for "not given".
template <OptionType T>
struct OptionRange {
  static constexpr T greatest = std::numeric_limits<T>::has_infinity
                                    ? std::numeric_limits<T>::infinity()
                                    : std::numeric_limits<T>::max();

  T least = std::numeric_limits<T>::lowest();
  T most = greatest;
  bool above_least = false;    ///< `least` itself is not legal.
  bool below_most = false;     ///< `most` itself is not legal.
  std::string_view word = {};  ///< What texts say for `word_value`; empty: nothing.
  T word_value = {};
  std::optional<T> unset = {};  ///< Legal in code; texts leave the option out instead.
  bool odd = false;             ///< Odd numbers alone; for whole numbers.
  /// What texts say for 0, 1, 2, ...; empty: numbers. For an Index that names a choice.
  std::span<const std::string_view> words = {};

  /// Whether a number lies in the range itself; NaN does not.
  [[nodiscard]] constexpr bool holds(T value) const {
    if constexpr (std::integral<T> && !std::same_as<T, bool>)
      if (odd && value % 2 == 0) return false;
    return (above_least ? least < value : least <= value) &&
           (below_most ? value < most : value <= most);
  }
  /// Whether a value is legal in code.
  [[nodiscard]] constexpr bool legal(T value) const {
    return holds(value) || (!word.empty() && value == word_value) || value == unset;
  }
  /// "in [0, 1]", "at least 1 or never": what follows "must be" in messages.
  [[nodiscard]] std::string text() const {
    if constexpr (std::same_as<T, bool>) return "true or false";
    if (!words.empty()) {
      std::string list;
      for (std::size_t i = 0; i < words.size(); ++i)
        list.append(i == 0 ? "" : i + 1 == words.size() ? " or " : ", ").append(words[i]);
      return list;
    }
    bool finite = false;
    if constexpr (std::same_as<T, double>)
      finite = most < greatest && most >= std::numeric_limits<float>::max();
    std::string text =
        most == greatest || finite
            ? base::text(finite ? "finite and " : "", above_least ? "above " : "at least ", least)
            : base::text("in ", above_least ? "(" : "[", least, ", ", most, below_most ? ")" : "]");
    if (odd) text = "odd and " + text;
    if (!word.empty()) text += base::text(" or ", word);
    return text;
  }
};

/// Lists of rows: any that are not negative, ascending in each list, each once.
template <>
struct OptionRange<RowLists> {
  std::string_view word = {};  ///< None: see the other ranges.
  std::optional<RowLists> unset = RowLists{};
  [[nodiscard]] bool holds(const RowLists& value) const {
    return std::all_of(value.blocks.begin(), value.blocks.end(), [](const auto& rows) {
      return (rows.empty() || rows.front() >= 0) &&
             std::adjacent_find(rows.begin(), rows.end(), std::greater_equal<>()) == rows.end();
    });
  }
  [[nodiscard]] bool legal(const RowLists& value) const { return holds(value); }
  [[nodiscard]] static std::string text() { return "a list of ascending rows for each block"; }
};

/// Whole numbers from `least` on.
[[nodiscard]] constexpr OptionRange<Index> at_least(Index least) { return {.least = least}; }
/// Whole numbers in [least, most].
[[nodiscard]] constexpr OptionRange<Index> between(Index least, Index most) {
  return {.least = least, .most = most};
}
/// One of these words; the number of the word in code.
[[nodiscard]] constexpr OptionRange<Index> one_of(std::span<const std::string_view> words) {
  return {.least = 0, .most = static_cast<Index>(words.size()) - 1, .words = words};
}
/// Steps between two refreshes: at least 1, or `never`.
inline constexpr OptionRange<Index> steps_or_never{
    .least = 1, .word = "never", .word_value = never};
/// A share, in [0, 1].
inline constexpr OptionRange<double> from_0_to_1{.least = 0.0, .most = 1.0};
/// A cosine in [-1, 1], or `no_similarity_threshold`.
inline constexpr OptionRange<double> cosine_or_none{
    .least = -1.0, .most = 1.0, .word = "none", .word_value = no_similarity_threshold};
/// A number that is not negative.
inline constexpr OptionRange<double> not_negative{.least = 0.0};
/// The same, and finite in float32.
inline constexpr OptionRange<double> finite_not_negative{.least = 0.0,
                                                         .most = std::numeric_limits<float>::max()};
/// true or false.
inline constexpr OptionRange<bool> yes_or_no{};

/// A value of an option as text: its word where it has one, all digits that tell it from others.
template <OptionType T>
[[nodiscard]] std::string option_text(T value, const OptionRange<T>& range = {}) {
  if (!range.word.empty() && value == range.word_value) return std::string(range.word);
  if (!range.words.empty() && range.holds(value))
    return std::string(range.words[static_cast<std::size_t>(value)]);
  if constexpr (std::same_as<T, bool>)
    return value ? "true" : "false";
  else
    return base::text(value);
}

/// The value that a text stands for, in the range or not; none where the text is no such value.
template <OptionType T>
[[nodiscard]] std::optional<T> parse_option(std::string_view text, const OptionRange<T>& range) {
  if (!range.word.empty() && text == range.word) return range.word_value;
  if (!range.words.empty()) {
    for (std::size_t i = 0; i < range.words.size(); ++i)
      if (text == range.words[i]) return static_cast<T>(i);
    return std::nullopt;
  }
  if constexpr (std::same_as<T, bool>) {
    if (text == "true") return true;
    if (text == "false") return false;
    return std::nullopt;
  } else {
    T value{};
    const char* const end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc{} || stop != end) return std::nullopt;
    return value;
  }
}

[[nodiscard]] inline std::string option_text(const RowLists& value,
                                             const OptionRange<RowLists>& = {}) {
  std::string text;
  for (const auto& rows : value.blocks) {
    for (std::size_t i = 0; i < rows.size(); ++i) text += base::text(i == 0 ? "" : ",", rows[i]);
    text += ';';
  }
  return text;
}
[[nodiscard]] inline std::optional<RowLists> parse_option(std::string_view text,
                                                          const OptionRange<RowLists>&) {
  RowLists lists;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(';'), text.size());
    std::string_view list = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    std::vector<Index>& rows = lists.blocks.emplace_back();
    while (!list.empty()) {
      const std::size_t comma = std::min(list.find_first_of(", "), list.size());
      if (comma + 1 == list.size()) return std::nullopt;  // nothing follows it
      const auto row = parse_option(list.substr(0, comma), OptionRange<Index>{});
      if (!row) return std::nullopt;
      rows.push_back(*row);
      list.remove_prefix(std::min(comma + 1, list.size()));
    }
  }
  return lists;
}

/// What kind of value an option takes.
enum class OptionKind { Flag, Integer, Number, Word, Tokens, Rows };

template <OptionType T>
inline constexpr OptionKind kind_of_option = std::same_as<T, bool>       ? OptionKind::Flag
                                             : std::same_as<T, double>   ? OptionKind::Number
                                             : std::same_as<T, RowLists> ? OptionKind::Rows
                                                                         : OptionKind::Integer;

/// One option as programs show it.
struct OptionInfo {
  std::string key;   ///< Its name in texts.
  std::string help;  ///< What it is, a few words.
  OptionKind kind = OptionKind::Integer;
  std::string legal;                 ///< "in [0, 1]"
  std::string word;                  ///< The word that it takes beside numbers, or "".
  std::optional<std::string> value;  ///< As text; none: not given, see OptionRange::unset.
};

/// Options as text, by key.
using OptionValues = std::map<std::string, std::string, std::less<>>;

namespace detail {

/// What `visit_options` is given: passes name, member, range, help and key on. An option's key is
/// its member's name unless it says another; one with an empty key is left out of texts.
template <class Work>
struct OptionVisitor {
  Work work;
  template <class T>
  requires OptionType<std::remove_const_t<T>>
  void operator()(std::string_view name, T& value, const OptionRange<std::remove_const_t<T>>& range,
                  std::string_view help, std::optional<std::string_view> key = {}) const {
    work(name, value, range, help, key.value_or(name));
  }
};
template <class Work>
OptionVisitor(Work) -> OptionVisitor<Work>;

inline constexpr auto ignore_option = OptionVisitor{[](auto&&...) {}};

}  // namespace detail

/// Tells its options: write `static void visit_options(auto& self, auto&& visit)`, which calls
/// `visit("name", self.name, range, "help")` for every option, in one order always.
///
/// Members are bool, Index, std::uint64_t or double; ranges are those above or any OptionRange. A
/// fifth argument is the option's key in texts where that is not its name.
template <class P>
concept VisitsOptions = requires(P& self, const P& same) {
  P::visit_options(self, detail::ignore_option);
  P::visit_options(same, detail::ignore_option);
};

/// Refuses options outside their range: throws std::invalid_argument "OWNER: NAME must be RANGE,
/// got VALUE", where the owner is joined from its parts then alone.
template <VisitsOptions P, class... Owner>
void check_options(const P& self, const Owner&... owner) {
  P::visit_options(self, detail::OptionVisitor{[&](std::string_view name, const auto& value,
                                                   const auto& range, auto&&...) {
                     if (!range.legal(value))
                       base::refuse_argument(owner..., ": ", name, " must be ", range.text(),
                                             ", got ", option_text(value));
                   }});
}

/// All options as text, `"name value, name value"`: equal options alone give equal texts.
template <VisitsOptions P>
[[nodiscard]] std::string options_text(const P& self) {
  std::string text;
  P::visit_options(self, detail::OptionVisitor{[&](std::string_view name, const auto& value,
                                                   const auto& range, auto&&...) {
                     if (!text.empty()) text += ", ";
                     text.append(name).append(" ").append(option_text(value, range));
                   }});
  return text;
}

/// All options that texts may name, with their values here.
template <VisitsOptions P>
[[nodiscard]] std::vector<OptionInfo> describe_options(const P& self) {
  std::vector<OptionInfo> all;
  P::visit_options(
      self, detail::OptionVisitor{[&]<class T>(std::string_view, const T& value, const auto& range,
                                               std::string_view help, std::string_view key) {
        if (key.empty()) return;
        OptionInfo& info = all.emplace_back();
        info.key = key;
        info.help = help;
        info.kind = kind_of_option<T>;
        if constexpr (!std::same_as<T, RowLists>)
          if (!range.words.empty()) info.kind = OptionKind::Word;
        info.legal = range.text();
        info.word = range.word;
        if (value != range.unset) info.value = option_text(value, range);
      }});
  return all;
}

/// Sets the option with that key from a text; false: there is none. Throws std::invalid_argument
/// like check_options() for a text that is no legal value.
template <VisitsOptions P>
bool set_option(P& self, std::string_view key, std::string_view text, std::string_view owner) {
  bool found = false;
  P::visit_options(
      self, detail::OptionVisitor{[&]<class T>(std::string_view, T& value, const auto& range,
                                               std::string_view, std::string_view own_key) {
        if (own_key.empty() || own_key != key) return;
        found = true;
        const std::optional<T> parsed = parse_option(text, range);
        const bool legal =
            parsed && (range.holds(*parsed) || (!range.word.empty() && text == range.word));
        if (!legal)
          base::refuse_argument(owner, ": ", key, " must be ", range.text(), ", got ",
                                parsed ? option_text(*parsed) : base::text('"', text, '"'));
        value = *parsed;
      }});
  return found;
}

}  // namespace dllm_cache::inline v0_1
