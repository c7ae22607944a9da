// SPDX-License-Identifier: Apache-2.0
// dllm-demo: the same prompt without and with the cache, side by side.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "dllm_cache/models/transformer_runner.hpp"
#include "programs/options/command_line.hpp"
#include "programs/options/policies.hpp"
#include "programs/options/threads.hpp"
#include "programs/run/generation.hpp"
#include "programs/run/oddities.hpp"
#include "programs/run/open_model.hpp"
#include "programs/show/progress.hpp"
#include "programs/show/race.hpp"
#include "programs/show/side_by_side.hpp"
#include "programs/show/stepwise_run.hpp"
#include "programs/show/styled_text.hpp"
#include "programs/show/terminal.hpp"
#include "programs/text/text_file.hpp"
#include "programs/text/vocabulary.hpp"

namespace {

using namespace programs;
namespace models = dllm_cache::models;

struct Options {
  std::string model;
  std::string prompt;
  std::string prompt_file;
  int threads = models::available_threads();
  double speed = 1.0;
  bool no_live = false;
  bool no_colour = false;
  OptionValues decoding = {{"block_length", "32"}};
  PolicyChoice policy;
};

void print_lines(const std::vector<std::string>& lines) {
  for (const std::string& line : lines) std::printf("%s\n", line.c_str());
}

/// The prompt, shortened in its middle to `most` lines.
void print_prompt(const std::string& prompt, std::size_t tokens, int columns, std::size_t most) {
  std::vector<std::string> lines = wrap_text(prompt, columns - 4);
  std::printf(" Prompt (%zu tokens):\n\n", tokens);
  if (lines.size() > most) {
    const auto cut = lines.begin() + static_cast<std::ptrdiff_t>(most / 2);
    lines.erase(cut, cut + static_cast<std::ptrdiff_t>(lines.size() - most));
    lines.insert(lines.begin() + static_cast<std::ptrdiff_t>(most / 2), "...");
  }
  for (const std::string& line : lines) std::printf("   %s\n", line.c_str());
  std::printf("\n");
}

void run_quietly(const Side& side, Index steps) {
  Progress progress(true);
  while (!side.run.finished()) {
    side.run.step();
    progress.show(side.run.steps(), steps, side.title);
  }
}

void print_answers(const Side& off, const Side& on, const std::string& a, const std::string& b,
                   int columns) {
  if (columns < race_columns) {
    for (const auto& [side, text] : {std::pair(&off, &a), std::pair(&on, &b)}) {
      std::printf(" %s:\n\n", side->title.c_str());
      for (const std::string& line : wrap_text(*text, std::max(columns - 4, 1)))
        std::printf("   %s\n", line.c_str());
      std::printf("\n");
    }
    return;
  }
  const int width = column_width(race_columns);
  const std::string rule(static_cast<std::size_t>(width), '-');
  print_lines(render_columns(off.title, on.title, width));
  print_lines(render_columns(rule, rule, width));
  print_lines(render_columns(a, b, width));
  print_lines(render_columns(rule, rule, width));
  std::printf("\n");
}

int run(const Options& options) {
  if (options.policy.name == "list") {
    list_policies(std::cout);
    return 0;
  }
  Settings settings{.decoding = options.decoding,
                    .policy = options.policy,
                    .tokens = {},
                    .model = decoding_of(options.model)};
  choose_policy(settings);
  const std::string policy = policy_name(settings.policy);
  check_given(options.policy.options, policy);
  const Plan on_plan = resolve(settings);
  settings.policy = {.name = "none", .options = {}};
  const Plan off_plan = resolve(settings);
  const Index steps = planned_steps({}, off_plan.decoding, dllm_cache::no_token);
  const std::string prompt =
      options.prompt_file.empty() ? options.prompt : read_text(options.prompt_file);

  Warnings warnings("dllm-demo");
  const auto model = open_model(options.model, {}, {}, warnings);
  const Vocabulary vocabulary(options.model);
  const dllm_cache::EndTokens& ends = model->config.special.end_of_text;
  const std::vector<std::int32_t> tokens = vocabulary.encode(prompt);
  check_prompts({tokens}, off_plan.decoding, model->config);
  warn_of_length(static_cast<dllm_cache::Index>(tokens.size()) + off_plan.decoding.response,
                 model->config, warnings);
  models::TransformerRunner runner(model, options.threads);
  StepwiseRun off_run(runner, tokens, off_plan), on_run(runner, tokens, on_plan);
  const Side off{off_run, "cache off"}, on{on_run, "cache on (" + policy + ")"};

  const TerminalTraits terminal = detect_terminal(!options.no_colour);
  const bool live = can_race(terminal) && !options.no_live;
  constexpr int frame_lines = 24;  // what is left of the terminal may be filled by the prompt
  print_prompt(prompt, tokens.size(), terminal.columns,
               static_cast<std::size_t>(live ? std::max(terminal.rows - frame_lines, 6) : 40));
  bool shown = false;
  if (live) {
    shown = race(off, on, vocabulary, ends,
                 {.steps = steps, .speed = options.speed, .colour = !options.no_colour});
    std::printf("\n");
  } else {
    run_quietly(off, steps);
    run_quietly(on, steps);
  }
  const RunRecord off_record = off_run.record(), on_record = on_run.record();
  if (!shown)
    print_answers(off, on, vocabulary.decode(off_record.tokens, ends),
                  vocabulary.decode(on_record.tokens, ends),
                  detect_terminal(!options.no_colour).columns);
  print_lines(compare_runs(off_record, on_record));
  return 0;
}

void declare(CLI::App& app, Options& options) {
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.add_option("--model", options.model, "Checkpoint folder with a vocab.txt")->required();
  auto* prompt = app.add_option_group("prompt", "what is answered");
  prompt->add_option("--prompt", options.prompt, "The prompt as text");
  prompt->add_option("--prompt-file", options.prompt_file, "The same, read from a file");
  prompt->require_option(1);
  declare_decoding(app, options.decoding);
  declare_policy(app, options.policy);
  declare_threads(app, options.threads);
  app.add_option("--speed", options.speed,
                 "Show it in slow motion, at this share of the true speed; the clocks stay true")
      ->capture_default_str()
      ->check(CLI::Range(0.01, 1.0));
  app.add_flag("--no-live", options.no_live,
               "Print answers and summary only, as where the output is no terminal");
  app.add_flag("--no-color", options.no_colour,
               "Brightness alone tells tokens apart, as with NO_COLOR set");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Answers one prompt without and with the cache, both at once, and compares answers and "
      "cost.\n"
      "In a terminal of 80 columns or more the answers are drawn while they grow.\n"
      "Exit codes: 0 done, 1 a file cannot be used, 2 a bad option or prompt.",
      "dllm-demo");
  Options options;
  declare(app, options);
  return run_command_line(app, argc, argv, [&] {
    prepare_threads(argv, options.threads);
    return run(options);
  });
}
