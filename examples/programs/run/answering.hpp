// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "dllm_cache/models/transformer_runner.hpp"
#include "programs/options/policies.hpp"
#include "programs/options/settings.hpp"
#include "programs/run/generation.hpp"
#include "programs/run/question.hpp"

namespace programs {

/// What a model said to one question, and what that took.
struct Answer {
  /// At the rows that were to be filled: gaps of the prompt, if any, then the response.
  std::vector<std::int32_t> tokens;
  Index steps = 0;
  Index forwards = 0;
  dllm_cache::DecodingCounts rows;
  Index cache_bytes = 0;

  friend bool operator==(const Answer&, const Answer&) = default;
};

/// Answers to a list of questions in their order, and what cannot be told apart by question.
struct Answers {
  std::vector<Answer> each;
  double operations = 0.0;
  double seconds = 0.0;  ///< Of denoising; loading is not in it.
  Index masks_left = 0;  ///< Tokens of all answers that are still the mask.
};

/// Called with the number of questions answered so far.
using OnAnswer = std::function<void(Index answered)>;

/// Tokens at the rows of a sequence that were to be filled.
[[nodiscard]] std::vector<std::int32_t> filled_tokens(const dllm_cache::SequenceState& state);

/// The options of every question in turn; throws BadRequest naming the line of a question that the
/// settings do not fit.
[[nodiscard]] std::vector<dllm_cache::DecodingOptions> question_options(
    const std::vector<Question>& questions, const Settings& settings,
    const dllm_cache::SpecialTokens& special);

/// Places of the questions, those of equal length together, so that batches end together.
[[nodiscard]] std::vector<std::size_t> places_by_length(const std::vector<Question>& questions);

/// Answers all questions with up to `batch >= 1` of them in a batch, another one joining when one
/// is done. Questions are numbered by their place for random numbers, so that answers do not depend
/// on the batch beyond the rounding of the model's products. `gen_length` of the settings is not
/// read.
///
/// Features are held for the questions of the batch alone. Throws BadRequest naming the line of a
/// question that the settings do not fit, and what the library throws.
[[nodiscard]] Answers answer(dllm_cache::models::TransformerRunner& runner,
                             const std::vector<Question>& questions, const Settings& settings,
                             FeatureType features, Index batch, const OnAnswer& on_answer = {});

/// The same as answer() with the loop that `make_loop()` gives (a pointer to a DenoisingLoop over
/// `model`), for models and selectors of other kinds; `model` counts `operations()`.
template <class Model, class MakeLoop>
[[nodiscard]] Answers answer_with(const Model& model, const MakeLoop& make_loop,
                                  const std::vector<Question>& questions, const Settings& settings,
                                  Index batch, const OnAnswer& on_answer = {}) {
  const auto options = question_options(questions, settings, model.special_tokens());
  const dllm_cache::AnyPolicy policy = make_policy(settings.policy);
  const std::vector<std::size_t> order = places_by_length(questions);
  const std::size_t together = std::min(static_cast<std::size_t>(batch), order.size());

  Answers answers;
  answers.each.resize(questions.size());
  Index answered = 0;
  const double operations_before = model.operations();
  const auto start = std::chrono::steady_clock::now();
  const auto held = make_loop();
  auto& loop = *held;
  std::size_t running = 0;
  const auto fill = [&] {
    while (running < together && static_cast<std::size_t>(loop.sequences()) < order.size()) {
      const std::size_t place = order[static_cast<std::size_t>(loop.sequences())];
      loop.add(questions[place].prompt, options[place], policy);
      ++running;
    }
  };
  const auto note = [&](const dllm_cache::StepReport& report) {
    if (!report.finished) return;
    --running;
    const dllm_cache::SequenceState& state = loop.sequence(report.id);
    answers.masks_left += state.masks_left();
    answers.each[order[static_cast<std::size_t>(report.id)]] = {
        .tokens = filled_tokens(state),
        .steps = state.step(),
        .forwards = loop.forwards(report.id),
        .rows = loop.counts(report.id),
        .cache_bytes = loop.cache_bytes(report.id)};
    loop.release(report.id);
    if (on_answer) on_answer(++answered);
  };
  fill();
  while (running > 0) {
    loop.step(note);
    fill();
  }
  answers.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  answers.operations = model.operations() - operations_before;
  return answers;
}

}  // namespace programs
