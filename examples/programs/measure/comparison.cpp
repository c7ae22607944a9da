// SPDX-License-Identifier: Apache-2.0
#include "programs/measure/comparison.hpp"

#include <algorithm>
#include <array>
#include <cstdio>

namespace programs {
namespace {

template <class... Values>
std::string print(const char* format, Values... values) {
  std::array<char, 128> buffer = {};
  std::snprintf(buffer.data(), buffer.size(), format, values...);
  return buffer.data();
}

std::string row(const char* what, const std::string& off, const std::string& on,
                const std::string& note = "") {
  std::string line = print(" %-19s%13s%13s  %s", what, off.c_str(), on.c_str(), note.c_str());
  line.erase(line.find_last_not_of(' ') + 1);
  return line;
}

/// "4.7x fewer", or "1.2x more" where the cache costs something.
std::string ratio(double off, double on, const char* less, const char* more) {
  if (!(off > 0.0) || !(on > 0.0)) return "";
  return off >= on ? print("%.1fx %s", off / on, less) : print("%.1fx %s", on / off, more);
}

/// 493056 as "493,056".
std::string grouped(Index number) {
  const std::string digits = std::to_string(number);
  std::string text;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

std::string megabytes(Index bytes) { return print("%.1f MB", static_cast<double>(bytes) / 1e6); }

std::string part(double seconds, double all) {
  return print("%.2f s %3.0f%%", seconds, all > 0.0 ? 100.0 * seconds / all : 0.0);
}

/// What a run spent neither in its layers nor on logits: embedding, choosing, gathering and storing
/// rows.
double outside(const RunRecord& run) {
  return std::max(0.0, run.seconds - run.layers.value - run.layers.query_key - run.layers.delta -
                           run.decoding_seconds);
}

std::string verdict(const std::vector<std::int32_t>& off, const std::vector<std::int32_t>& on) {
  std::size_t equal = 0;
  for (std::size_t i = 0; i < std::min(off.size(), on.size()); ++i)
    equal += off[i] == on[i] ? 1U : 0U;
  return print(" Tokens: %s (%zu of %zu)", off == on ? "all equal" : "not all equal", equal,
               off.size());
}

}  // namespace

std::vector<std::string> compare_runs(const RunRecord& off, const RunRecord& on) {
  const auto time = [&](const char* what, double a, double b) {
    return row(what, part(a, off.seconds), part(b, on.seconds));
  };
  return {
      row("", "cache off", "cache on"),
      row("seconds", print("%.3f", off.seconds), print("%.3f", on.seconds),
          ratio(off.seconds, on.seconds, "faster", "slower")),
      row("rows recomputed", grouped(off.rows), grouped(on.rows),
          ratio(static_cast<double>(off.rows), static_cast<double>(on.rows), "fewer", "more")),
      row("operations", print("%.3g", off.operations), print("%.3g", on.operations),
          ratio(off.operations, on.operations, "fewer", "more")),
      row("features kept", megabytes(off.cache_bytes), megabytes(on.cache_bytes)),
      row("steps", grouped(off.steps), grouped(on.steps)),
      "",
      " where the time went",
      time("layers: value", off.layers.value, on.layers.value),
      time("layers: query, key", off.layers.query_key, on.layers.query_key),
      time("layers: attn, FFN", off.layers.delta, on.layers.delta),
      time("logits and decoding", off.decoding_seconds, on.decoding_seconds),
      time("all the rest", outside(off), outside(on)),
      "",
      verdict(off.tokens, on.tokens),
  };
}

}  // namespace programs
