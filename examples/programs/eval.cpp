// SPDX-License-Identifier: Apache-2.0
// dllm-eval: how right a model's answers are under a cache policy, beside the uncached ones.
#include <CLI/CLI.hpp>
#include <iostream>
#include <nlohmann/json.hpp>

#include "dllm_cache/models/transformer_runner.hpp"
#include "programs/measure/answer_file.hpp"
#include "programs/measure/evaluation.hpp"
#include "programs/options/command_line.hpp"
#include "programs/options/policies.hpp"
#include "programs/options/threads.hpp"
#include "programs/run/answering.hpp"
#include "programs/run/oddities.hpp"
#include "programs/run/open_model.hpp"
#include "programs/show/evaluation_table.hpp"
#include "programs/show/progress.hpp"
#include "programs/text/text_file.hpp"

namespace {

using namespace programs;
namespace models = dllm_cache::models;
using Json = nlohmann::ordered_json;

struct Options {
  std::string model;
  std::string data;
  std::string json;
  std::string reference;
  std::string save_answers;
  std::optional<Index> count;
  Index batch = 16;
  bool compares = true;
  bool quiet = false;
  ComputeSettings compute;
  Settings settings;
};

void declare(CLI::App& app, Options& options) {
  app.add_option("--model", options.model,
                 "Checkpoint folder (required); a vocab.txt in it, one token a "
                 "character, is needed for data that is text");
  app.add_option("--data", options.data,
                 "Questions, one JSON object a line: prompt and answer (text) or prompt_ids and "
                 "answer_ids (token ids), gen_length and, optionally, task (required); without "
                 "answers only agreement with the uncached run is measured");
  app.add_option("--json", options.json,
                 "Write everything measured to this file (- for standard output)");
  app.add_option("--count", options.count, "Only the first lines of the data")
      ->check(CLI::PositiveNumber);
  app.add_option("--batch", options.batch, "Questions that are answered together")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_flag(
      "--compare-with-uncached,!--no-comparison", options.compares,
      "Answer everything without a cache too and compare (default; not with --policy none)");
  app.add_option("--reference", options.reference,
                 "Compare with these answers of an uncached run instead of running it: a file of "
                 "--save-answers");
  app.add_option("--save-answers", options.save_answers,
                 "Write this run's tokens and steps to this file, one line a question");
  declare_compute(app, options.compute);
  app.add_flag("--quiet", options.quiet, "No progress bar and no table");
  declare_decoding(app, options.settings.decoding, false);
  declare_tokens(app, options.settings.tokens);
  declare_policy(app, options.settings.policy);
}

Answers answer_all(models::TransformerRunner& runner, const std::vector<Question>& questions,
                   const Settings& settings, const Options& options) {
  Progress progress(!options.quiet);
  const std::string words = "questions, policy " + policy_name(settings.policy);
  const auto count = static_cast<Index>(questions.size());
  progress.show(0, count, words);
  return answer(runner, questions, settings, options.compute.features, options.batch,
                [&](Index answered) { progress.show(answered, count, words); });
}

Json settings_json(const Options& options, const AnswerOrigin& origin) {
  Json json = origin.policy;
  json["decoding"] = origin.decoding;
  json.update(origin.compute);
  json["threads"] = options.compute.threads;
  json["batch"] = options.batch;
  json["data"] = origin.data;
  json["model"] = origin.model;
  json["reference"] = options.reference.empty() ? Json() : Json(options.reference);
  return json;
}

int run(const Options& options) {
  if (options.settings.policy.name == "list") {
    list_policies(std::cout);
    return 0;
  }
  if (options.model.empty()) throw BadRequest("--model is required");
  if (options.data.empty()) throw BadRequest("--data is required");
  if (!options.reference.empty() && !options.compares)
    throw BadRequest("--reference does not go with --no-comparison");
  Settings settings = options.settings;
  settings.model = decoding_of(options.model);
  choose_policy(settings);
  const std::string name = policy_name(settings.policy);
  check_given(settings.policy.options, name);
  const std::string policy = policies().at(name).policy;
  // Refused before a large model is opened.
  const Plan plan = resolve(settings);

  std::optional<Vocabulary> vocabulary;
  if (Vocabulary::exists(options.model)) vocabulary.emplace(options.model);
  const std::vector<Question> questions =
      read_questions(options.data, vocabulary ? &*vocabulary : nullptr, options.count);
  std::optional<SavedAnswers> reference;
  if (!options.reference.empty()) reference = read_answers(options.reference);
  Warnings warnings("dllm-eval");
  const auto model = open_model(options.model, options_for(options.compute.model, plan.policy),
                                settings.tokens, warnings);
  const dllm_cache::EndTokens& ends = model->config.special.end_of_text;
  if (ends.empty() && questions.front().expected)
    throw BadRequest("--model must have an end-of-text token to judge answers, it has none");
  check_token_ids(questions, model->config.vocabulary, model->config.special.mask);
  Index longest = 0;
  for (const Question& question : questions)
    longest = std::max(longest, static_cast<Index>(question.prompt.size()) + question.gen_length);
  warn_of_length(longest, model->config, warnings);
  models::TransformerRunner runner(model, options.compute.threads);
  const AnswerOrigin origin = make_origin(options.model, questions, settings, options.compute.model,
                                          options.compute.features);
  if (reference)
    check_reference(options.reference, *reference, origin, questions, model->config.special.mask);

  const Answers answers = answer_all(runner, questions, settings, options);
  if (answers.masks_left > 0) warn_of({.masks_left = answers.masks_left}, warnings);
  if (!options.save_answers.empty()) write_answers(options.save_answers, answers, origin);
  std::optional<Answers> uncached;
  if (reference) {
    uncached = reference->answers;
  } else if (options.compares && policy == "none") {
    uncached = answers;  // by definition
  } else if (options.compares) {
    settings.policy = {.name = "none", .options = {}};
    uncached = answer_all(runner, questions, settings, options);
  }
  const Evaluation evaluation = evaluate(questions, ends, answers, uncached ? &*uncached : nullptr);

  if (!options.json.empty()) {
    Json json = to_json(evaluation);
    json["settings"] = settings_json(options, origin);
    json["masks_left"] = answers.masks_left;
    json["warnings"] = warnings.said();
    write_text(options.json, json.dump() + "\n");
  }
  if (options.json != "-" && !options.quiet) std::cout << to_table(evaluation);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Measures how right a model's answers are under a cache policy, beside the uncached ones, "
      "and what both cost.\n"
      "Exit codes: 0 done, 1 a file cannot be used, 2 a bad option or line of data.",
      "dllm-eval");
  Options options;
  declare(app, options);
  return run_command_line(app, argc, argv, [&] {
    prepare_threads(argv, options.compute.threads);
    return run(options);
  });
}
