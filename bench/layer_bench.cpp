// SPDX-License-Identifier: Apache-2.0
// One LLaDA layer in one step of 893 prompt and 256 response rows: uncached, with the response due,
// and verified with a quarter of the response selected. Names: layer/KIND/width:D.
#include <benchmark/benchmark.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "dllm_cache/dllm_cache.hpp"
#include "support/random_model.hpp"

using namespace dllm_cache;

namespace {

constexpr Index prompt = 893, response = 256;

// Weights are made once a width: at 4096 they take 0.9 GB.
std::shared_ptr<const models::TransformerModel> model_of(Index width) {
  static std::map<Index, std::shared_ptr<const models::TransformerModel>> models;
  auto& model = models[width];
  if (!model) {
    models::TransformerConfig config;
    config.layers = 1;
    config.width = width;
    config.heads = {.heads = width == 4096 ? 32 : 16,
                    .kv_heads = width == 4096 ? 32 : 16,
                    .head_dim = width == 4096 ? 128 : 64};
    config.feed_forward = 3 * width;
    config.vocabulary = 256;
    config.special = {.mask = 255, .end_of_text = 254};
    model = bench::random_model(config, 7);
  }
  return model;
}

AnyPolicy policy_of(const std::string& kind) {
  if (kind == "uncached") return NoCache{};
  if (kind == "response_due") return DllmCachePolicy{never, 1, 0.25, false};
  return DllmCachePolicy{never, never, 0.25, false};
}

void run_layer(benchmark::State& state, const std::string& kind) {
  const Index width = state.range(0);
  models::TransformerRunner runner(model_of(width), models::available_threads());
  FeatureCache<float> cache(runner.shape(), {.prompt = prompt, .response = response},
                            policy_of(kind));
  Workspace<float> workspace;
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(prompt + response));
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i % 251);
  std::vector<float> hidden(tokens.size() * static_cast<std::size_t>(width));
  const auto step = [&] {
    auto pass = workspace.begin_step(cache);
    const auto x = dense_view(hidden.data(), pass.flow(), width);
    const auto first = static_cast<std::size_t>(pass.rows().front());
    runner.embed(std::span<const std::int32_t>(tokens).subspan(first), x);
    pass.layer(runner.layer(0), x);
    return pass.flow();
  };
  const Index all = step();
  const std::vector<float> expected(hidden.begin() + (all - response) * width, hidden.end());
  step();  // the first step of this kind makes room for its rows
  const double before = runner.operations();
  Index flow = 0;
  for (auto _ : state) flow = step();
  // No token changed, so a cached step must give what the full one gave.
  const float* found = hidden.data() + (flow - response) * width;
  for (std::size_t i = 0; i < expected.size(); ++i)
    if (!(std::abs(found[i] - expected[i]) < 1e-3F)) {
      state.SkipWithError("response rows differ from the uncached layer's");
      break;
    }
  state.counters["flops"] =
      benchmark::Counter(runner.operations() - before, benchmark::Counter::kIsRate);
  state.counters["rows"] = static_cast<double>(flow);
}

}  // namespace

int main(int argc, char** argv) {
  for (const char* kind : {"uncached", "response_due", "verified"})
    benchmark::RegisterBenchmark((std::string("layer/") + kind).c_str(),
                                 [kind](benchmark::State& state) { run_layer(state, kind); })
        ->ArgName("width")
        ->Arg(1024)
        ->Arg(4096)
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
