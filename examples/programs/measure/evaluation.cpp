// SPDX-License-Identifier: Apache-2.0
#include "programs/measure/evaluation.hpp"

#include <algorithm>
#include <functional>
#include <numeric>
#include <set>

#include "programs/options/settings_json.hpp"

namespace programs {
namespace {

using Json = nlohmann::ordered_json;

/// Judges one answer after the other.
class Judge {
 public:
  Judge(const std::vector<Question>& questions, const dllm_cache::EndTokens& ends)
      : m_questions(questions), m_ends(ends), m_knows(questions.front().expected.has_value()) {}

  [[nodiscard]] bool exact(const Answers& answers, std::size_t i) const {
    const auto& tokens = answers.each[i].tokens;
    const auto& expected = *m_questions[i].expected;
    const auto end = std::find_if(tokens.begin(), tokens.end(),
                                  [this](std::int32_t token) { return m_ends.contains(token); });
    return std::equal(tokens.begin(), end, expected.begin(), expected.end());
  }

  [[nodiscard]] Index right_tokens(const Answers& answers, std::size_t i) const {
    const auto& expected = *m_questions[i].expected;
    const auto& tokens = answers.each[i].tokens;
    Index right = 0;
    for (std::size_t at = 0; at < tokens.size(); ++at)
      right +=
          (at < expected.size() ? tokens[at] == expected[at] : m_ends.contains(tokens[at])) ? 1 : 0;
    return right;
  }

  [[nodiscard]] Score score(const Answers& answers, const std::vector<std::size_t>& group) const {
    Score score;
    Index exact_answers = 0;
    std::vector<Index> right, tokens;
    for (const std::size_t i : group) {
      const Answer& answer = answers.each[i];
      if (m_knows) {
        exact_answers += exact(answers, i) ? 1 : 0;
        right.push_back(right_tokens(answers, i));
        tokens.push_back(static_cast<Index>(answer.tokens.size()));
      }
      score.steps += answer.steps;
      score.forwards += answer.forwards;
      score.rows += answer.rows;
      score.cache_bytes = std::max(score.cache_bytes, answer.cache_bytes);
    }
    if (!m_knows) return score;
    score.exact_match = share_of(exact_answers, static_cast<Index>(group.size()));
    score.character_accuracy = share_of_groups(right, tokens);
    return score;
  }

  [[nodiscard]] Comparison compare(const Answers& answers, const Answers& uncached,
                                   const std::vector<std::size_t>& group) const {
    Index agreeing = 0, better = 0, worse = 0;
    std::vector<Index> equal, tokens;
    for (const std::size_t i : group) {
      const auto &here = answers.each[i].tokens, &there = uncached.each[i].tokens;
      agreeing += here == there ? 1 : 0;
      equal.push_back(std::inner_product(here.begin(), here.end(), there.begin(), Index{0},
                                         std::plus<>(), std::equal_to<>()));
      tokens.push_back(static_cast<Index>(here.size()));
      if (!m_knows) continue;
      const bool right_here = exact(answers, i), right_there = exact(uncached, i);
      better += right_here && !right_there ? 1 : 0;
      worse += !right_here && right_there ? 1 : 0;
    }
    const auto count = static_cast<Index>(group.size());
    Comparison comparison{.uncached = score(uncached, group),
                          .agreement = share_of(agreeing, count),
                          .token_agreement = share_of_groups(equal, tokens),
                          .paired = {}};
    if (m_knows) comparison.paired = paired_difference(better, worse, count);
    return comparison;
  }

  [[nodiscard]] Result judge(const std::string& task, const std::vector<std::size_t>& group,
                             const Answers& answers, const Answers* uncached) const {
    Result result{.task = task,
                  .count = static_cast<Index>(group.size()),
                  .score = score(answers, group),
                  .comparison = {}};
    if (uncached != nullptr) result.comparison = compare(answers, *uncached, group);
    return result;
  }

 private:
  const std::vector<Question>& m_questions;
  const dllm_cache::EndTokens& m_ends;
  bool m_knows;  // the answers
};

Json interval_json(const Interval& interval) { return {interval.low, interval.high}; }
Json value_json(const std::optional<Share>& share) { return share ? Json(share->value) : Json(); }

// What a score says; the run's operations and seconds stand between.
Json score_json(const Score& score, std::optional<double> operations,
                std::optional<double> seconds) {
  Json json = {{"exact_match", value_json(score.exact_match)},
               {"character_accuracy", value_json(score.character_accuracy)},
               {"steps", score.steps},
               {"forwards", score.forwards}};
  if (operations) json["operations"] = static_cast<std::uint64_t>(*operations);
  json["rows"] = rows_json(score.rows);
  json["cache_bytes"] = score.cache_bytes;
  if (seconds) json["seconds"] = *seconds;
  json["intervals"] = Json::object();
  if (score.exact_match) {
    json["intervals"]["exact_match"] = interval_json(score.exact_match->interval);
    json["intervals"]["character_accuracy"] = interval_json(score.character_accuracy->interval);
  }
  return json;
}

Json result_json(const Result& result, const Evaluation* run) {
  const auto of_run = [&](double Evaluation::*field) {
    return run != nullptr ? std::optional<double>(run->*field) : std::nullopt;
  };
  Json json = {{"count", result.count}};
  json.update(
      score_json(result.score, of_run(&Evaluation::operations), of_run(&Evaluation::seconds)));
  json["agreement"] = nullptr;
  json["token_agreement"] = nullptr;
  json["uncached"] = nullptr;
  json["paired"] = nullptr;
  if (result.comparison) {
    const auto& [uncached, agreement, tokens, paired] = *result.comparison;
    json["agreement"] = agreement.value;
    json["token_agreement"] = tokens.value;
    json["intervals"]["agreement"] = interval_json(agreement.interval);
    json["intervals"]["token_agreement"] = interval_json(tokens.interval);
    json["uncached"] = score_json(uncached, of_run(&Evaluation::uncached_operations),
                                  of_run(&Evaluation::uncached_seconds));
    if (paired)
      json["paired"] = {{"difference", paired->difference}, {"low", paired->interval.low},
                        {"high", paired->interval.high},    {"p_value", paired->p_value},
                        {"better", paired->better},         {"worse", paired->worse}};
  }
  return json;
}

}  // namespace

Evaluation evaluate(const std::vector<Question>& questions, const dllm_cache::EndTokens& ends,
                    const Answers& answers, const Answers* uncached) {
  const Judge judge(questions, ends);
  std::vector<std::size_t> all(questions.size());
  std::set<std::string> tasks;
  for (std::size_t i = 0; i < questions.size(); ++i) {
    all[i] = i;
    if (!questions[i].task.empty()) tasks.insert(questions[i].task);
  }
  Evaluation evaluation;
  evaluation.overall = judge.judge("", all, answers, uncached);
  for (const std::string& task : tasks) {
    std::vector<std::size_t> group;
    std::copy_if(all.begin(), all.end(), std::back_inserter(group),
                 [&](std::size_t i) { return questions[i].task == task; });
    evaluation.tasks.push_back(judge.judge(task, group, answers, uncached));
  }
  evaluation.operations = answers.operations;
  evaluation.seconds = answers.seconds;
  if (uncached != nullptr) {
    evaluation.uncached_operations = uncached->operations;
    evaluation.uncached_seconds = uncached->seconds;
  }
  return evaluation;
}

Json to_json(const Evaluation& evaluation) {
  Json json = result_json(evaluation.overall, &evaluation);
  json["tasks"] = Json::object();
  for (const Result& task : evaluation.tasks) json["tasks"][task.task] = result_json(task, nullptr);
  return json;
}

}  // namespace programs
