// SPDX-License-Identifier: Apache-2.0
// dllm-study: dllm-eval with other criteria for the rows that are recomputed, and with a measure of
// how the change of values predicts that of deltas. Features are float32.
#include <CLI/CLI.hpp>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "dllm_cache/models/transformer_runner.hpp"
#include "oracle_model.hpp"
#include "programs/measure/answer_file.hpp"
#include "programs/measure/evaluation.hpp"
#include "programs/options/command_line.hpp"
#include "programs/options/policies.hpp"
#include "programs/run/answering.hpp"
#include "programs/run/open_model.hpp"
#include "programs/show/evaluation_table.hpp"
#include "programs/show/progress.hpp"
#include "programs/text/text_file.hpp"

namespace {

using namespace programs;
namespace models = dllm_cache::models;
using Json = nlohmann::ordered_json;
using study::Criterion;

const std::map<std::string, Criterion> criteria = {{"cosine", Criterion::Cosine},
                                                   {"l2", Criterion::L2},
                                                   {"random", Criterion::Random},
                                                   {"oracle", Criterion::Oracle},
                                                   {"last-recomputed", Criterion::LastRecomputed}};

struct Options {
  std::string model, data, json, reference;
  std::string criterion = "cosine";
  bool measures = false;
  std::optional<Index> count;
  Index batch = 16;
  bool quiet = false;
  ComputeSettings compute;
  Settings settings;
};

void declare(CLI::App& app, Options& options) {
  app.add_option("--model", options.model, "Checkpoint folder with a vocab.txt")->required();
  app.add_option("--data", options.data, "Questions, as for dllm-eval")->required();
  app.add_option("--reference", options.reference,
                 "Answers of dllm-eval --policy none, to compare");
  app.add_option("--json", options.json, "Write everything measured to this file");
  app.add_option("--criterion", options.criterion,
                 "cosine, l2, random, oracle or last-recomputed: what decides which verified rows "
                 "are recomputed")
      ->capture_default_str()
      ->check(CLI::IsMember(criteria));
  app.add_flag("--measure-changes", options.measures,
               "Also correlate the cosines of values and of deltas (one question at a time, as "
               "the oracle)");
  app.add_option("--count", options.count, "Only the first lines of the data")
      ->check(CLI::PositiveNumber);
  app.add_option("--batch", options.batch, "Questions that are answered together")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_flag("--quiet", options.quiet, "No progress bar and no table");
  declare_compute(app, options.compute);
  declare_decoding(app, options.settings.decoding, false);
  declare_policy(app, options.settings.policy);
}

Json correlations(const std::vector<study::ChangeStatistics>& layers) {
  Json all = Json::array();
  study::Correlation total;
  for (const study::ChangeStatistics& layer : layers) {
    const study::Correlation& one = layer.cosines;
    all.push_back(one.count > 0 ? Json(one.coefficient()) : Json());
    total += one;
  }
  return {{"layers", all}, {"all", total.coefficient()}, {"rows", total.count}};
}

int run(const Options& options) {
  Settings settings = options.settings;
  settings.model = decoding_of(options.model);
  check_given(settings.policy.options, policy_name(settings.policy));
  if (options.compute.features != FeatureType::Float32)
    throw BadRequest("--features must be float32 here");
  if (options.criterion == "last-recomputed" &&
      settings.policy.options.contains("similarity_threshold"))
    throw BadRequest("--similarity-threshold does not go with --criterion last-recomputed");
  const Vocabulary vocabulary(options.model);
  const std::vector<Question> questions = read_questions(options.data, &vocabulary, options.count);
  Warnings warnings("dllm-study");
  const auto model = open_model(options.model, options.compute.model, {}, warnings);
  models::TransformerRunner runner(model, options.compute.threads);
  const AnswerOrigin origin = make_origin(options.model, questions, settings, options.compute.model,
                                          options.compute.features);
  std::optional<SavedAnswers> reference;
  if (!options.reference.empty()) {
    reference = read_answers(options.reference);
    check_reference(options.reference, *reference, origin, questions, model->config.special.mask);
  }

  study::Selector selector;
  selector.criterion = criteria.at(options.criterion);
  const bool foresees = options.measures || selector.criterion == Criterion::Oracle;
  Progress progress(!options.quiet);
  const auto show = [&](Index answered) {
    progress.show(answered, static_cast<Index>(questions.size()),
                  "questions, criterion " + options.criterion);
  };
  Answers answers;
  Json changes;
  if (foresees) {
    study::OracleModel oracle(runner);
    selector.changes = oracle.changes();
    answers = answer_with(
        oracle,
        [&] {
          using Loop = dllm_cache::DenoisingLoop<study::OracleModel, float, study::Selector>;
          auto loop = std::make_unique<Loop>(oracle, dllm_cache::large_pages(), selector);
          // One sequence runs at a time: the one that joined last.
          oracle.watch([loop = loop.get()]() -> const study::OracleModel::Cache& {
            return loop->cache(loop->sequences() - 1);
          });
          return loop;
        },
        questions, settings, 1, show);
    changes = correlations(oracle.statistics());
  } else {
    using Loop = dllm_cache::DenoisingLoop<models::TransformerRunner, float, study::Selector>;
    answers = answer_with(
        runner, [&] { return std::make_unique<Loop>(runner, dllm_cache::large_pages(), selector); },
        questions, settings, options.batch, show);
  }
  const Evaluation evaluation = evaluate(questions, model->config.special.end_of_text, answers,
                                         reference ? &reference->answers : nullptr);
  if (!options.json.empty()) {
    Json json = to_json(evaluation);
    json["settings"] = origin.policy;
    json["settings"]["decoding"] = origin.decoding;
    json["settings"]["criterion"] = options.criterion;
    json["changes"] = changes;
    write_text(options.json, json.dump() + "\n");
  }
  if (!options.quiet) std::cout << to_table(evaluation);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Compares criteria for the rows that a cache recomputes, by the answers.",
               "dllm-study");
  Options options;
  declare(app, options);
  return run_command_line(app, argc, argv, [&] { return run(options); });
}
