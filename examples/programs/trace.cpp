// SPDX-License-Identifier: Apache-2.0
// dllm-trace: a trace of dllm-generate in, one HTML page that shows it out.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <optional>
#include <string>

#include "programs/options/command_line.hpp"
#include "programs/show/trace_file.hpp"
#include "programs/show/trace_page.hpp"
#include "programs/text/text_file.hpp"
#include "programs/text/vocabulary.hpp"

namespace {

using namespace programs;

struct Options {
  std::string trace;
  std::string vocabulary;
  std::string out;
};

int run(const Options& options) {
  std::optional<Vocabulary> vocabulary;
  if (!options.vocabulary.empty()) vocabulary.emplace(options.vocabulary);
  const auto sequences = read_trace(options.trace);
  const std::string page =
      make_trace_page(sequences, vocabulary ? &*vocabulary : nullptr,
                      std::filesystem::path(options.trace).filename().string());
  write_text(options.out, page);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Turns a trace written by dllm-generate --trace into one HTML page: what happened to every "
      "row in every step and layer.\n"
      "The page needs no network; its address keeps the view (layer, zoom, a clicked cell).\n"
      "Exit codes: 0 done, 1 a file cannot be used, 2 a bad option.",
      "dllm-trace");
  Options options;
  app.add_option("--trace", options.trace, "The trace, a safetensors file")->required();
  app.add_option("--vocab", options.vocabulary,
                 "Checkpoint folder with a vocab.txt: tokens are shown as text, else as numbers");
  app.add_option("--out", options.out, "The page to write (- for standard output)")->required();
  return run_command_line(app, argc, argv, [&] { return run(options); });
}
