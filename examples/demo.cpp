// SPDX-License-Identifier: Apache-2.0
// dllm-demo: the same prompt without and with the cache, side by side.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <sstream>
#include <string>
#include <vector>

#include "dllm_cache/models/load_model.hpp"
#include "support/command_line.hpp"
#include "support/generation.hpp"
#include "support/progress.hpp"
#include "support/text_file.hpp"
#include "support/vocabulary.hpp"

namespace {

using namespace programs;
namespace models = dllm_cache::models;

struct Options {
  std::string model;
  std::string prompt_file;
  int threads = models::available_threads();
  Settings settings;
};

constexpr int column = 38;  // two of them and a gap fit into 80 columns

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    // Long lines continue below, so that columns stay columns.
    for (std::size_t at = 0; at == 0 || at < line.size(); at += column)
      lines.push_back(line.substr(at, column));
  }
  return lines;
}

void print_columns(const std::string& left, const std::string& right) {
  const auto a = lines_of(left), b = lines_of(right);
  for (std::size_t i = 0; i < std::max(a.size(), b.size()); ++i)
    std::printf("  %-*s %s\n", column, i < a.size() ? a[i].c_str() : "",
                i < b.size() ? b[i].c_str() : "");
}

GenerationResult run_once(models::TransformerRunner& runner, Request request, const char* policy,
                          const char* words) {
  request.settings.caching.policy = policy;
  Progress progress(true);
  const Index steps = planned_steps(request);
  return generate(runner, request, {}, [&](const dllm_cache::StepReport& report) {
    progress.show(report.step + 1, steps, words);
    return true;
  });
}

int run(const Options& options) {
  const auto model = models::load_model(options.model);
  const Vocabulary vocabulary(options.model);
  const std::string text = read_text(options.prompt_file);
  Request request;
  request.prompts.push_back(vocabulary.encode(text));
  request.settings = options.settings;

  std::printf("Prompt (%zu tokens):\n\n", request.prompts.front().size());
  for (const std::string& line : lines_of(text)) std::printf("  %s\n", line.c_str());
  std::printf("\n");

  models::TransformerRunner runner(model, options.threads);
  const GenerationResult off = run_once(runner, request, "none", "cache off");
  const GenerationResult on = run_once(runner, request, "dllm-cache", "cache on");

  const std::int32_t end = model->config.special.end_of_text;
  print_columns("cache off", "cache on (dLLM-Cache)");
  print_columns(std::string(column, '-'), std::string(column, '-'));
  print_columns(vocabulary.decode(off.tokens.front(), end),
                vocabulary.decode(on.tokens.front(), end));
  print_columns(std::string(column, '-'), std::string(column, '-'));
  const auto compare = [](const char* what, const std::string& a, const std::string& b) {
    print_columns(what + a, what + b);
  };
  const auto number = [](const char* format, auto value) {
    char buffer[64];
    std::snprintf(buffer, sizeof buffer, format, value);
    return std::string(buffer);
  };
  compare("forwards         ", number("%td", off.forwards), number("%td", on.forwards));
  compare("rows recomputed  ", number("%td", off.rows.update), number("%td", on.rows.update));
  compare("operations       ", number("%.3g", off.operations), number("%.3g", on.operations));
  compare("seconds          ", number("%.3f", off.seconds), number("%.3f", on.seconds));
  compare("feature bytes    ", number("%td", off.cache_bytes), number("%td", on.cache_bytes));

  const auto& a = off.tokens.front();
  const auto& b = on.tokens.front();
  std::size_t equal = 0;
  for (std::size_t i = 0; i < a.size(); ++i) equal += a[i] == b[i] ? 1U : 0U;
  std::printf("\nTokens: %s (%zu of %zu)\n", a == b ? "all equal" : "not all equal", equal,
              a.size());
  std::printf(
      "With the cache: %.1f times fewer rows, %.1f times fewer operations, %.1f times "
      "faster\n",
      static_cast<double>(off.rows.update) / static_cast<double>(on.rows.update),
      off.operations / on.operations, off.seconds / on.seconds);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Answers one prompt without and with the cache and compares answers and cost.",
               "dllm-demo");
  Options options;
  options.settings.decoding.block_length = 32;
  app.add_option("--model", options.model, "Checkpoint folder with a vocab.txt")->required();
  app.add_option("--prompt-file", options.prompt_file, "The prompt as text")->required();
  declare_gen_length(app, options.settings.decoding);
  app.add_option("--block-length", options.settings.decoding.block_length, "Tokens a block")
      ->default_str("32");
  declare_threads(app, options.threads);
  return run_command_line(app, argc, argv, [&] { return run(options); });
}
