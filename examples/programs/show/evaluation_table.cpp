// SPDX-License-Identifier: Apache-2.0
#include "programs/show/evaluation_table.hpp"

#include <cinttypes>
#include <cstdio>

namespace programs {
namespace {

template <class... Parts>
std::string print(const char* format, Parts... parts) {
  char line[256];
  std::snprintf(line, sizeof line, format, parts...);
  return line;
}

std::string number(double value) { return print("%.4g", value); }
std::string number(Index value) { return print("%td", value); }

std::string share(const Share& share) {
  return print("%.4f [%.4f, %.4f]", share.value, share.interval.low, share.interval.high);
}

std::string line(const char* name, const std::string& here, const std::string& uncached,
                 const std::string& last = {}) {
  std::string text =
      print("%-19s %-25s %-25s %s", name, here.c_str(), uncached.c_str(), last.c_str());
  return text.substr(0, text.find_last_not_of(' ') + 1) + '\n';
}

/// A cost of both runs and how many times less it is here.
template <class T>
std::string cost(const char* name, T here, T uncached, bool compared) {
  if (!compared) return line(name, number(here), "");
  const double times = static_cast<double>(uncached) / static_cast<double>(here);
  return line(name, number(here), number(uncached), print("%.2fx", times));
}

std::string shorten(const std::string& name, std::size_t most) {
  return name.size() <= most ? name : name.substr(0, most - 1) + "~";
}

std::string agreement_by_task(const Evaluation& evaluation) {
  std::string text;
  for (const Result& task : evaluation.tasks) {
    if (!task.comparison) continue;
    if (text.empty()) text = print("\n%-12s %6s %-25s\n", "task", "count", "agreement [95 %]");
    text += print("%-12s %6td %s\n", shorten(task.task, 12).c_str(), task.count,
                  share(task.comparison->agreement).c_str());
  }
  return text;
}

std::string tasks_table(const Evaluation& evaluation) {
  const bool compared = evaluation.overall.comparison.has_value();
  if (!evaluation.overall.score.exact_match) return agreement_by_task(evaluation);
  std::string text = print("\n%-12s %6s %-25s", "task", "count", "exact match [95 %]");
  text += compared ? print(" %8s %6s %6s %5s %4s\n", "uncached", "agree", "better", "worse", "p")
                   : std::string("\n");
  for (const Result& task : evaluation.tasks) {
    text += print("%-12s %6td %-25s", shorten(task.task, 12).c_str(), task.count,
                  share(*task.score.exact_match).c_str());
    if (task.comparison)
      text += print(" %8.4f %6.4f %6td %5td %4.2f", task.comparison->uncached.exact_match->value,
                    task.comparison->agreement.value, task.comparison->paired->better,
                    task.comparison->paired->worse, task.comparison->paired->p_value);
    text += '\n';
  }
  return text;
}

}  // namespace

std::string to_table(const Evaluation& evaluation) {
  const Result& all = evaluation.overall;
  const bool compared = all.comparison.has_value();
  const Score& here = all.score;
  const Score& there = compared ? all.comparison->uncached : here;
  const auto of_both = [&](const char* name, const Share& a, const Share& b) {
    return line(name, share(a), compared ? share(b) : "");
  };
  std::string text =
      line(print("%td questions", all.count).c_str(), "this run", compared ? "uncached" : "");
  if (here.exact_match) {
    text += of_both("exact match", *here.exact_match, *there.exact_match);
    text += of_both("character accuracy", *here.character_accuracy, *there.character_accuracy);
  }
  if (compared) {
    text += line("agreement", share(all.comparison->agreement), "");
    text += line("tokens the same", share(all.comparison->token_agreement), "");
    if (const auto& paired = all.comparison->paired)
      text += line(
          "difference",
          print("%+.4f [%+.4f, %+.4f]", paired->difference, paired->interval.low,
                paired->interval.high),
          print("%td better, %td worse, p = %.2g", paired->better, paired->worse, paired->p_value));
  }
  text += cost("steps", here.steps, there.steps, compared);
  text += cost("forwards", here.forwards, there.forwards, compared);
  text += cost("rows flowing", here.rows.rows, there.rows.rows, compared);
  text += cost("rows' values", here.rows.values, there.rows.values, compared);
  text += cost("rows recomputed", here.rows.recomputed, there.rows.recomputed, compared);
  text += cost("rows of logits", here.rows.logits, there.rows.logits, compared);
  text += cost("operations", evaluation.operations, evaluation.uncached_operations, compared);
  text += cost("seconds", evaluation.seconds, evaluation.uncached_seconds, compared);
  text +=
      line("feature bytes", number(here.cache_bytes), compared ? number(there.cache_bytes) : "");
  if (!evaluation.tasks.empty()) text += tasks_table(evaluation);
  if (!compared && !here.exact_match) return text;
  text += "\n95 % intervals: Wilson";
  if (compared && here.exact_match)
    text += "; difference: paired normal (Agresti-Min); exact McNemar p";
  text += '\n';
  return text;
}

}  // namespace programs
