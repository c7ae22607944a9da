// SPDX-License-Identifier: Apache-2.0
// dllm-generate: a checkpoint folder and a request in, answers and their cost out.
#include <CLI/CLI.hpp>
#include <iostream>
#include <nlohmann/json.hpp>

#include "dllm_cache/models/transformer_runner.hpp"
#include "programs/options/command_line.hpp"
#include "programs/options/policies.hpp"
#include "programs/options/request.hpp"
#include "programs/options/settings_json.hpp"
#include "programs/options/threads.hpp"
#include "programs/run/generation.hpp"
#include "programs/run/open_model.hpp"
#include "programs/show/progress.hpp"
#include "programs/text/text_file.hpp"
#include "programs/text/vocabulary.hpp"

namespace {

using namespace programs;
namespace models = dllm_cache::models;

struct Options {
  std::string model;
  std::string request;
  std::string prompt;
  std::string prompt_file;
  std::string infill;
  std::string json;
  std::string trace;
  ComputeSettings compute;
  bool audit = false;
  bool quiet = false;
  Settings settings;
};

void declare(CLI::App& app, Options& options) {
  app.add_option("--model", options.model,
                 "Checkpoint folder: config.json and model.safetensors, or its shards with their "
                 "index (required)");
  auto* request =
      app.add_option("--request", options.request,
                     "JSON file with prompt_ids (a list of prompts of any lengths) and, "
                     "optionally, the settings below; an option beats the request");
  auto* prompt =
      app.add_option("--prompt", options.prompt, "A prompt as text, for models with a vocab.txt");
  auto* prompt_file =
      app.add_option("--prompt-file", options.prompt_file, "The same, read from a file");
  auto* infill = app.add_option("--infill", options.infill,
                                "Text with gaps to fill, such as \"x = <mask:3>\\n\", for models "
                                "with a vocab.txt: <mask:N> is "
                                "a gap of N tokens; --gen-length tokens follow it (default 0)");
  prompt->excludes(request)->excludes(prompt_file)->excludes(infill);
  prompt_file->excludes(request)->excludes(infill);
  infill->excludes(request);
  app.add_option("--json", options.json,
                 "Write tokens, sequence (where the prompt held masks: all of it, filled), steps, "
                 "forwards, operations, rows, cache_bytes, seconds, threads, masks_left, "
                 "empty_steps and warnings to this file (- for standard output)");
  app.add_option("--trace", options.trace,
                 "Write what happened to every row in every step and layer to this safetensors "
                 "file, for dllm-trace: prompt_tokens, final_tokens, tokens_before_step, "
                 "step_of_forward, stepN.layerL.selected, .similarity and .treatment (0 absent, 1 "
                 "reused, 2 verified, 3 recomputed)");
  app.add_flag("--audit", options.audit,
               "Run the uncached forward beside every step and report how far the logits and the "
               "tokens of the cached one are from it; not with guidance");
  declare_compute(app, options.compute);
  app.add_flag("--quiet", options.quiet,
               "No progress bar, answers or summary: --json and warnings alone");

  declare_decoding(app, options.settings.decoding);
  declare_tokens(app, options.settings.tokens);
  declare_policy(app, options.settings.policy);
}

std::string prompt_text(const Options& options) {
  if (options.prompt_file.empty()) return options.prompt;
  std::string text = read_text(options.prompt_file);
  if (text.empty()) throw BadRequest(options.prompt_file + ": empty");
  return text;
}

nlohmann::ordered_json to_json(const GenerationResult& result, const Warnings& warnings,
                               int threads, bool audited) {
  nlohmann::ordered_json json = {{"tokens", result.tokens}};
  if (!result.sequences.empty()) json["sequence"] = result.sequences;
  json["steps"] = result.steps;
  json["forwards"] = result.forwards;
  json["operations"] = static_cast<std::uint64_t>(result.operations);
  json["rows"] = rows_json(result.rows);
  json["cache_bytes"] = result.cache_bytes;
  json["seconds"] = result.seconds;
  json["threads"] = threads;
  json["masks_left"] = result.odd.masks_left;
  json["empty_steps"] = result.odd.empty_steps;
  json["warnings"] = warnings.said();
  if (audited) json["audit"] = audit_json(result.audit);
  return json;
}

void print_answers(const GenerationResult& result, const Vocabulary* vocabulary,
                   const dllm_cache::EndTokens& ends) {
  const bool whole = !result.sequences.empty();
  for (const auto& tokens : whole ? result.sequences : result.tokens) {
    if (vocabulary != nullptr) {
      // Given text goes on behind an end token; the response does not.
      std::string text;
      const std::size_t given = tokens.size() - result.tokens.front().size();
      if (whole) text = vocabulary->decode(std::span(tokens).first(given), {});
      std::cout << text << vocabulary->decode(std::span(tokens).subspan(given), ends) << '\n';
      continue;
    }
    for (std::size_t i = 0; i < tokens.size(); ++i) std::cout << (i > 0 ? " " : "") << tokens[i];
    std::cout << '\n';
  }
}

int run(const Options& options) {
  if (options.settings.policy.name == "list") {
    list_policies(std::cout);
    return 0;
  }
  if (options.model.empty()) throw BadRequest("--model is required");
  if (options.request.empty() && options.prompt.empty() && options.prompt_file.empty() &&
      options.infill.empty())
    throw BadRequest("one of --request, --prompt, --prompt-file and --infill must be given");
  Request request;
  if (!options.request.empty()) request = read_request(options.request);
  Settings settings = merge(options.settings, request.settings);
  if (!options.infill.empty()) settings.decoding.try_emplace("gen_length", "0");
  // Everything that is asked for is known to make sense before a large model is opened.
  settings.model = decoding_of(options.model);
  choose_policy(settings);
  check_given(options.settings.policy.options, policy_name(settings.policy));
  const Plan plan = resolve(settings);

  Warnings warnings("dllm-generate");
  const auto model = open_model(options.model, options_for(options.compute.model, plan.policy),
                                settings.tokens, warnings);
  const models::TransformerConfig& config = model->config;
  std::optional<Vocabulary> vocabulary;
  if (Vocabulary::exists(options.model)) vocabulary.emplace(options.model);
  if (options.request.empty()) {
    if (!vocabulary)
      throw BadRequest("--prompt and --infill need a model with a vocab.txt, " + options.model +
                       " has none: use --request, which examples/text.py makes");
    request.prompts.push_back(options.infill.empty()
                                  ? vocabulary->encode(prompt_text(options))
                                  : vocabulary->encode_gaps(options.infill, config.special.mask));
  }
  Index longest = 0;
  for (const auto& prompt : request.prompts)
    longest = std::max(longest, static_cast<Index>(prompt.size()) + plan.decoding.response);
  warn_of_length(longest, config, warnings);
  const Index steps = planned_steps(request.prompts, plan.decoding, config.special.mask);

  models::TransformerRunner runner(model, options.compute.threads);
  Trace trace;
  Watchers watchers;
  if (!options.trace.empty()) watchers.trace = &trace;
  std::optional<models::TransformerRunner> auditor;
  if (options.audit) watchers.auditor = &auditor.emplace(model, options.compute.threads);
  Progress progress(!options.quiet);
  GenerationResult result = generate(
      runner, request.prompts, plan, watchers,
      [&](const dllm_cache::StepReport& report) {
        const auto left =
            std::count(report.tokens.begin(), report.tokens.end(), config.special.mask);
        progress.show(report.step + 1, steps,
                      "steps, sequence " + std::to_string(report.id) + ": " + std::to_string(left) +
                          " tokens masked");
        return true;
      },
      options.compute.features);
  result.odd.unknown_tokens = count_unknown(result.tokens, vocabulary ? &*vocabulary : nullptr);
  warn_of(result.odd, warnings);
  if (!options.trace.empty()) trace.write(options.trace);
  if (!options.json.empty())
    write_text(options.json,
               to_json(result, warnings, options.compute.threads, options.audit).dump() + "\n");
  if (options.json != "-" && !options.quiet) {
    print_answers(result, vocabulary ? &*vocabulary : nullptr, config.special.end_of_text);
    std::fprintf(stderr, "%td steps, %td forwards, %.3f s, %.3g operations, %td rows recomputed\n",
                 result.steps, result.forwards, result.seconds, result.operations,
                 result.rows.recomputed);
    if (options.audit) std::cout << audit_table(result.audit);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Generates text with a masked diffusion language model (LLaDA, Dream), with a feature "
      "cache.\n"
      "Exit codes: 0 done, 1 a file cannot be used, 2 a bad option or request.",
      "dllm-generate");
  Options options;
  declare(app, options);
  return run_command_line(app, argc, argv, [&] {
    prepare_threads(argv, options.compute.threads);
    return run(options);
  });
}
