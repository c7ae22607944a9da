// SPDX-License-Identifier: Apache-2.0
// LLaDA or Dream from a GGUF file, carried out by a backend of ggml step by step under the
// library's denoising loop: a request of dllm-generate in; the answers, and what the cache saved,
// out.
#include "ggml_steps.hpp"

#include <CLI/CLI.hpp>
#include <map>

#include "programs/options/threads.hpp"
#include "programs/run/both_ways.hpp"

int main(int argc, char** argv) {
  using namespace ggml_runtime;
  CLI::App app(
      "Answers a request with a LLaDA or Dream from a GGUF file, a graph of ggml a step, without "
      "and with the cache.\nExit codes: 0 done, 1 a file cannot be used, 2 a bad option or "
      "request.",
      "ggml_steps");
  std::string file, request, backend = "cpu";
  StepAttention attention = StepAttention::Flash;
  int threads = 1;
  const std::map<std::string, StepAttention> attentions = {{"flash", StepAttention::Flash},
                                                           {"products", StepAttention::Products}};
  app.add_option("FILE.gguf", file, "model and weights")->required();
  app.add_option("REQUEST.json", request, "as dllm-generate takes it")->required();
  app.add_option("--backend", backend, "a device of ggml: cpu, CUDA0, Metal, Vulkan0, ...")
      ->capture_default_str();
  app.add_option("--attention", attention, "what attention is made of: flash or products")
      ->transform(CLI::CheckedTransformer(attentions));
  app.add_option("--threads", threads, "threads, where the backend has any")
      ->check(CLI::Range(1, 512))
      ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return programs::run_program("ggml_steps", [&] {
    programs::prepare_threads(argv, threads);
    const programs::Request read = programs::read_request(request);
    GgmlStepsModel model(std::make_shared<GgufFile>(file), backend, threads, attention);
    return programs::answer_both_ways(model, read, {.decoder = model.config().architecture});
  });
}
