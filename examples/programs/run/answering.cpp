// SPDX-License-Identifier: Apache-2.0
#include "programs/run/answering.hpp"

#include <algorithm>
#include <memory>
#include <numeric>

#include "dllm_cache/decoding/check_decoding.hpp"
#include "dllm_cache/decoding/denoising_loop.hpp"
#include "programs/text/errors.hpp"

namespace programs {

using dllm_cache::models::TransformerRunner;

std::vector<dllm_cache::DecodingOptions> question_options(
    const std::vector<Question>& questions, const Settings& settings,
    const dllm_cache::SpecialTokens& special) {
  std::vector<dllm_cache::DecodingOptions> all;
  dllm_cache::DecodingOptions options =
      dllm_cache::decoding_options(settings.decoding, settings.model);
  for (const Question& question : questions) {
    options.response = question.gen_length;
    options.sequence = all.size();
    try {
      const bool has_masks = std::find(question.prompt.begin(), question.prompt.end(),
                                       special.mask) != question.prompt.end();
      dllm_cache::check_decoding(options,
                                 {.prompt_has_masks = has_masks,
                                  .has_end_tokens = !special.end_of_text.empty(),
                                  .prompt_rows = static_cast<Index>(question.prompt.size())},
                                 dllm_cache::key_words);
    } catch (const std::invalid_argument& error) {
      throw BadRequest(question.where + ": " + error.what());
    }
    all.push_back(options);
  }
  return all;
}

std::vector<std::int32_t> filled_tokens(const dllm_cache::SequenceState& state) {
  std::vector<std::int32_t> tokens;
  const std::size_t rows = static_cast<std::size_t>(state.prompt_rows()) + state.response().size();
  for (std::size_t row = 0; row < rows; ++row)
    if (state.given()[row] == 0) tokens.push_back(state.tokens()[row]);
  return tokens;
}

std::vector<std::size_t> places_by_length(const std::vector<Question>& questions) {
  std::vector<std::size_t> order(questions.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return questions[a].gen_length < questions[b].gen_length;
  });
  return order;
}

namespace {

template <class Stored>
Answers run(TransformerRunner& runner, const std::vector<Question>& questions,
            const Settings& settings, Index batch, const OnAnswer& on_answer) {
  using Loop = dllm_cache::DenoisingLoop<TransformerRunner, Stored>;
  return answer_with(
      runner, [&] { return std::make_unique<Loop>(runner); }, questions, settings, batch,
      on_answer);
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
