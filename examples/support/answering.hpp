// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "dllm_cache/models/transformer_runner.hpp"
#include "support/generation.hpp"
#include "support/question.hpp"
#include "support/settings.hpp"

namespace programs {

/// What a model said to one question, and what that took.
struct Answer {
  std::vector<std::int32_t> tokens;  ///< `[gen_length]`.
  Index steps = 0;
  Index forwards = 0;
  dllm_cache::RowCounts rows;
  Index cache_bytes = 0;

  friend bool operator==(const Answer&, const Answer&) = default;
};

/// Answers to a list of questions in their order, and what cannot be told apart by question.
struct Answers {
  std::vector<Answer> each;
  double operations = 0.0;
  double seconds = 0.0;  ///< Of denoising; loading is not in it.
};

/// Called with the number of questions answered so far.
using OnAnswer = std::function<void(Index answered)>;

/// Answers all questions with up to `batch >= 1` of them in a batch, another one joining when one
/// is done. Questions are numbered by their place for random numbers, so that answers do not depend
/// on the batch beyond the rounding of the model's products. `settings.decoding.gen_length` is not
/// read.
///
/// Features are held for the questions of the batch, four times as many where sequences end at
/// different times. Throws BadRequest naming the line of a question that the settings do not fit,
/// and what the library throws.
[[nodiscard]] Answers answer(dllm_cache::models::TransformerRunner& runner,
                             const std::vector<Question>& questions, const Settings& settings,
                             FeatureType features, Index batch, const OnAnswer& on_answer = {});

}  // namespace programs
