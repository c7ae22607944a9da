// SPDX-License-Identifier: Apache-2.0
#include "support/answering.hpp"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <span>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "support/errors.hpp"

namespace programs {

using dllm_cache::models::TransformerRunner;

namespace {

/// The options of every question; refuses what does not fit one before anything runs.
std::vector<dllm_cache::DecodingOptions> options_of(const TransformerRunner& runner,
                                                    const std::vector<Question>& questions,
                                                    const DecodingSettings& settings) {
  std::vector<dllm_cache::DecodingOptions> all;
  dllm_cache::DecodingOptions options = decoding_options(settings, runner.prediction_shift() > 0);
  for (const Question& question : questions) {
    options.response = question.gen_length;
    options.sequence = all.size();
    try {
      static_cast<void>(
          dllm_cache::SequenceState(question.prompt, options, runner.special_tokens()));
    } catch (const std::invalid_argument& error) {
      throw BadRequest(question.where + ": " + error.what());
    }
    all.push_back(options);
  }
  return all;
}

/// Places of the questions, those of equal length together, so that batches end together.
std::vector<std::size_t> by_length(const std::vector<Question>& questions) {
  std::vector<std::size_t> order(questions.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return questions[a].gen_length < questions[b].gen_length;
  });
  return order;
}

template <class Stored>
Answers run(TransformerRunner& runner, const std::vector<Question>& questions,
            const Settings& settings, Index batch, const OnAnswer& on_answer) {
  const auto options = options_of(runner, questions, settings.decoding);
  const dllm_cache::AnyPolicy policy = make_policy(settings.caching);
  const std::vector<std::size_t> order = by_length(questions);
  // A loop holds the features of its finished sequences too; a new one begins with none.
  const bool end_together =
      dllm_cache::is_counted(options.front().commit) && !options.front().early_stop;
  const std::size_t together = std::min(static_cast<std::size_t>(batch), order.size());
  const std::size_t per_loop = end_together ? together : 4 * together;

  Answers answers;
  answers.each.resize(questions.size());
  Index answered = 0;
  const double operations_before = runner.operations();
  const auto start = std::chrono::steady_clock::now();
  for (std::size_t begin = 0; begin < order.size(); begin += per_loop) {
    const std::span places =
        std::span(order).subspan(begin, std::min(per_loop, order.size() - begin));
    dllm_cache::DenoisingLoop<TransformerRunner, Stored> loop(runner);
    std::size_t running = 0;
    const auto fill = [&] {
      while (running < together && static_cast<std::size_t>(loop.sequences()) < places.size()) {
        const std::size_t place = places[static_cast<std::size_t>(loop.sequences())];
        loop.add(questions[place].prompt, options[place], policy);
        ++running;
      }
    };
    const auto note = [&](const dllm_cache::StepReport& report) {
      if (!report.finished) return;
      --running;
      const auto response = loop.sequence(report.id).response();
      answers.each[places[static_cast<std::size_t>(report.id)]] = {
          .tokens = {response.begin(), response.end()},
          .steps = report.step + 1,
          .forwards = loop.forwards(report.id),
          .rows = loop.counts(report.id),
          .cache_bytes = loop.cache_bytes(report.id)};
      if (on_answer) on_answer(++answered);
    };
    for (fill(); running > 0; fill()) loop.step(note);
  }
  answers.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  answers.operations = runner.operations() - operations_before;
  return answers;
}

}  // namespace

Answers answer(TransformerRunner& runner, const std::vector<Question>& questions,
               const Settings& settings, FeatureType features, Index batch,
               const OnAnswer& on_answer) {
  if (batch < 1) throw BadRequest("batch must be at least 1, got " + std::to_string(batch));
  if (questions.empty()) return {};
  return features == FeatureType::Float32
             ? run<float>(runner, questions, settings, batch, on_answer)
             : run<Eigen::bfloat16>(runner, questions, settings, batch, on_answer);
}

}  // namespace programs
