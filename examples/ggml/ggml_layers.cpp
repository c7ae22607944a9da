// SPDX-License-Identifier: Apache-2.0
// LLaDA or Dream from a GGUF file, computed by ggml under the library's denoising loop: a request
// of dllm-generate in; the answers, and what the cache saved, out.
#include "ggml_layers.hpp"

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/dllm_cache.hpp"
#include "programs/options/policies.hpp"
#include "programs/options/request.hpp"
#include "programs/options/threads.hpp"
#include "programs/text/errors.hpp"

namespace {

using namespace dllm_cache;
using namespace ggml_runtime;

struct Options {
  std::string file, request;
  AttentionBy attention = AttentionBy::Library;
  int threads = 1;
  std::string features = "f32";
  bool repack = false;
};

struct Answers {
  std::vector<std::vector<std::int32_t>> tokens;
  DecodingCounts rows;
  double seconds = 0.0;
};

template <class Stored>
Answers answer(GgmlModel& model, const programs::Request& request, const AnyPolicy& policy) {
  const char* const decoder = model.config().architecture == "dream" ? "dream" : "llada";
  DecodingOptions options = decoding_options(request.settings.decoding, {.decoder = decoder});
  DenoisingLoop<GgmlModel, Stored> loop(model);
  for (const auto& prompt : request.prompts) {
    loop.add(prompt, options, policy);
    ++options.sequence;
  }
  const auto start = std::chrono::steady_clock::now();
  loop.run();
  Answers answers;
  answers.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (Index id = 0; id < loop.sequences(); ++id) {
    // Where the prompt had gaps, all of it as it was filled.
    const SequenceState& state = loop.sequence(id);
    const auto answer = state.has_gaps() ? state.tokens() : state.response();
    answers.tokens.emplace_back(answer.begin(), answer.end());
    answers.rows += loop.counts(id);
  }
  return answers;
}

template <class Stored>
int run(GgmlModel& model, const programs::Request& request) {
  const Answers plain = answer<Stored>(model, request, NoCache{});
  const Answers cached =
      answer<Stored>(model, request, programs::make_policy(request.settings.policy));
  std::size_t equal = 0, all = 0;
  for (std::size_t i = 0; i < cached.tokens.size(); ++i) {
    for (std::size_t j = 0; j < cached.tokens[i].size(); ++j, ++all) {
      std::printf("%s%d", j > 0 ? " " : "", cached.tokens[i][j]);
      equal += cached.tokens[i][j] == plain.tokens[i][j] ? 1U : 0U;
    }
    std::printf("\n");
  }
  std::fprintf(stderr,
               "uncached: %td rows recomputed, %.3f s\n"
               "cached:   %td rows recomputed, %.3f s, %zu of %zu tokens the same\n",
               plain.rows.recomputed, plain.seconds, cached.rows.recomputed, cached.seconds, equal,
               all);
  return 0;
}

int run(const Options& options) {
  const programs::Request request = programs::read_request(options.request);
  if (request.settings.tokens.mask || !request.settings.tokens.ends.empty())
    throw programs::BadRequest("mask_token and end_token are not taken here: the file has them");
  WeightPlace place = in_place();
  if (options.repack) place = repacked(ggml_backend_ptr(ggml_backend_cpu_init()).get());
  GgmlModel model(Weights(std::make_shared<GgufFile>(options.file), place), options.threads,
                  options.attention);
  for (const auto& [name, count] : model.weights().places())
    std::fprintf(stderr, "weights:  %d tensors %s\n", count, name.c_str());
  if (options.features == "bf16") return run<Eigen::bfloat16>(model, request);
  if (options.features == "f16") return run<Eigen::half>(model, request);
  return run<float>(model, request);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Answers a request with a LLaDA or Dream from a GGUF file, computed by ggml, without and with "
      "the cache.\nExit codes: 0 done, 1 a file cannot be used, 2 a bad option or request.",
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
  return programs::run_program("ggml_layers", [&] {
    programs::prepare_threads(argv, options.threads);
    return run(options);
  });
}
