// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "programs/measure/statistics.hpp"
#include "programs/run/answering.hpp"
#include "programs/run/question.hpp"

namespace programs {

/// How good the answers to some questions are, and what they took.
struct Score {
  /// Both are empty where no answers are known.
  std::optional<Share> exact_match;         ///< Answers equal to the expected one, up to the first
                                            ///< end-of-text.
  std::optional<Share> character_accuracy;  ///< Tokens equal to the expected answer padded with
                                            ///< end-of-text.
  Index steps = 0;                          ///< Of all sequences.
  Index forwards = 0;
  dllm_cache::DecodingCounts rows;
  Index cache_bytes = 0;  ///< Of the question that needs most.
};

/// The same answers beside those of an uncached run.
struct Comparison {
  Score uncached;
  Share agreement;                         ///< Questions all of whose tokens are the uncached ones.
  Share token_agreement;                   ///< Tokens that are the uncached ones.
  std::optional<PairedDifference> paired;  ///< Of exact_match.
};

/// Results of a group of questions.
struct Result {
  std::string task;  ///< "" for all questions.
  Index count = 0;
  Score score;
  std::optional<Comparison> comparison;
};

/// Results of a run over all questions and of every task, in the order of their names.
struct Evaluation {
  Result overall;
  std::vector<Result> tasks;  ///< Empty where no question names a task.
  double operations = 0.0;
  double seconds = 0.0;
  double uncached_operations = 0.0;
  double uncached_seconds = 0.0;
};

/// Judges answers, one a question and at least one; `uncached` may be null, `ends` are the model's
/// end tokens, only read where answers are known.
[[nodiscard]] Evaluation evaluate(const std::vector<Question>& questions,
                                  const dllm_cache::EndTokens& ends, const Answers& answers,
                                  const Answers* uncached);

/// Everything in an evaluation as JSON: shares as fractions, null where nothing was compared.
[[nodiscard]] nlohmann::ordered_json to_json(const Evaluation& evaluation);

}  // namespace programs
