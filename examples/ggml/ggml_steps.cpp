// SPDX-License-Identifier: Apache-2.0
// LLaDA or Dream in ggml, a graph a step, on any backend: a GGUF file and a request of
// dllm-generate in; the answers, and what the cache saved, out.
#include "ggml_steps.hpp"

#include <CLI/CLI.hpp>

#include "answers.hpp"

int main(int argc, char** argv) {
  using namespace ggml_runtime;
  std::string file, request, backend = "cpu", attention = "flash";
  int threads = 1;
  CLI::App app{"Answers a request with and without the cache; ggml carries out whole steps."};
  app.add_option("file", file, "GGUF file of LLaDA or Dream")->required();
  app.add_option("request", request, "request of dllm-generate (JSON)")->required();
  app.add_option("--backend", backend, "device of ggml: cpu, CUDA0, Metal, Vulkan0, ...");
  app.add_option("--attention", attention, "operations that attention is made of")
      ->check(CLI::IsMember({"flash", "products"}));
  app.add_option("--threads", threads, "threads, where the backend has any");
  CLI11_PARSE(app, argc, argv);
  return programs::run_program("ggml_steps", [&] {
    const programs::Request read = programs::read_request(request);
    GgmlStepsModel model(std::make_shared<GgufFile>(file), backend, threads,
                         attention == "flash" ? StepAttention::Flash : StepAttention::Products);
    return answer_both_ways(model, read);
  });
}
