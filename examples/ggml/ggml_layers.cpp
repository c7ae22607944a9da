// SPDX-License-Identifier: Apache-2.0
// LLaDA or Dream from a GGUF file, computed by ggml under the library's denoising loop: a request
// of dllm-generate in; the answers, and what the cache saved, out.
#include "ggml_layers.hpp"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>

#include "programs/options/threads.hpp"
#include "programs/run/both_ways.hpp"

namespace {

using namespace ggml_runtime;

struct Options {
  std::string file, request;
  AttentionBy attention = AttentionBy::Library;
  int threads = 1;
  std::string features = "f32";
  bool repack = false;
};

int run(const Options& options) {
  const programs::Request request = programs::read_request(options.request);
  WeightPlace place = in_place();
  if (options.repack) place = repacked(ggml_backend_ptr(ggml_backend_cpu_init()).get());
  GgmlModel model(Weights(std::make_shared<GgufFile>(options.file), place), options.threads,
                  options.attention);
  for (const auto& [name, count] : model.weights().places())
    std::fprintf(stderr, "weights:  %d tensors %s\n", count, name.c_str());
  const dllm_cache::ModelDecoding decoding{.decoder = model.config().architecture};
  if (options.features == "bf16")
    return programs::answer_both_ways<GgmlModel, Eigen::bfloat16>(model, request, decoding);
  if (options.features == "f16")
    return programs::answer_both_ways<GgmlModel, Eigen::half>(model, request, decoding);
  return programs::answer_both_ways(model, request, decoding);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Answers a request with a LLaDA or Dream from a GGUF file, three graphs of ggml a layer, "
      "without and with the cache.\nExit codes: 0 done, 1 a file cannot be used, 2 a bad option or "
      "request.",
      "ggml_layers");
  Options options;
  const std::map<std::string, AttentionBy> attentions = {{"library", AttentionBy::Library},
                                                         {"flash", AttentionBy::Flash}};
  app.add_option("FILE.gguf", options.file, "model and weights")->required();
  app.add_option("REQUEST.json", options.request, "as dllm-generate takes it")->required();
  app.add_option("--attention", options.attention, "who computes attention: library or flash")
      ->transform(CLI::CheckedTransformer(attentions));
  app.add_option("--threads", options.threads, "threads of ggml and of the library's attention")
      ->check(CLI::Range(1, 512))
      ->capture_default_str();
  app.add_option("--features", options.features, "what features are stored in")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}))
      ->capture_default_str();
  app.add_flag("--repack", options.repack,
               "matrices in the CPU backend's own layouts where it has one for them");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  // ggml tells every matrix that it lays out anew.
  const auto warnings = [](ggml_log_level level, const char* text, void*) {
    if (level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
  };
  ggml_log_set(warnings, nullptr);
  return programs::run_program("ggml_layers", [&] {
    programs::prepare_threads(argv, options.threads);
    return run(options);
  });
}
