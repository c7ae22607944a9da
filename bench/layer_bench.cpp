// SPDX-License-Identifier: Apache-2.0
// One layer in one step of 893 prompt and 256 response rows: uncached, with the response due, and
// verified with a quarter of the response selected. Names: layer/KIND/SHAPE/PRECISION; counters:
//   flops           operations a second
//   outside_share   time spent outside the three callbacks, as a share of the step
#include <benchmark/benchmark.h>

#include <chrono>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bench/support/random_model.hpp"
#include "dllm_cache/dllm_cache.hpp"

using namespace dllm_cache;

namespace {

constexpr Index prompt = 893, response = 256;

models::TransformerConfig shape_of(const std::string& name) {
  models::TransformerConfig config;
  config.layers = 1;
  config.vocabulary = 256;
  config.special = {.mask = 255, .end_of_text = 254};
  if (name == "small") {
    config.width = 1024;
    config.heads = {.heads = 16, .kv_heads = 16, .head_dim = 64};
    config.feed_forward = 3072;
  } else if (name == "llada-8b") {
    config.width = 4096;
    config.heads = {.heads = 32, .kv_heads = 32, .head_dim = 128};
    config.feed_forward = 12288;
  } else {  // dream-7b
    config.width = 3584;
    config.heads = {.heads = 28, .kv_heads = 4, .head_dim = 128};
    config.feed_forward = 18944;
  }
  return config;
}

AnyPolicy policy_of(const std::string& kind) {
  if (kind == "uncached") return NoCache{};
  if (kind == "response_due") return DllmCachePolicy{never, 1, 0.25, false};
  return DllmCachePolicy{never, never, 0.25, false};
}

/// Passes everything on and adds up the time spent in it.
struct TimedLayer {
  models::TransformerLayerHandle layer;
  double* seconds;

  void value(MatrixView<const float> x, MatrixView<float> v) {
    timed([&] { layer.value(x, v); });
  }
  void query_key(MatrixView<const float> x, std::span<const std::int32_t> positions,
                 MatrixView<float> q, MatrixView<float> k) {
    timed([&] { layer.query_key(x, positions, q, k); });
  }
  template <StoredScalar Stored>
  void delta(MatrixView<const float> x, MatrixView<const float> q,
             std::span<const Segment<Stored>> segments, MatrixView<float> u) {
    timed([&] { layer.delta(x, q, segments, u); });
  }

 private:
  template <class Work>
  void timed(const Work& work) {
    const auto start = std::chrono::steady_clock::now();
    work();
    *seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
};

template <class Stored>
void run_layer(benchmark::State& state, const std::string& kind, const std::string& shape,
               const models::ComputeOptions& options) {
  // One model at a time: the weights of the largest take a gigabyte.
  static std::pair<std::string, std::shared_ptr<const models::TransformerModel>> held;
  const std::string key = shape + std::to_string(static_cast<int>(options.precision));
  if (held.first != key) {
    held = {};
    held = {key, bench::random_model(shape_of(shape), 7, options)};
  }
  models::TransformerRunner runner(held.second, models::available_threads());
  FeatureCache<float, Stored> cache(runner.shape(), {.prompt = prompt, .response = response},
                                    policy_of(kind));
  Workspace<float, Stored> workspace;
  const Index width = runner.shape().width;
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(prompt + response));
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i % 251);
  std::vector<float> hidden(tokens.size() * static_cast<std::size_t>(width));
  double inside = 0.0, total = 0.0;
  const auto step = [&] {
    auto pass = workspace.begin_step(cache);
    const auto x = dense_view(hidden.data(), pass.row_count(), width);
    const auto first = static_cast<std::size_t>(pass.rows().front());
    runner.embed(std::span<const std::int32_t>(tokens).subspan(first), x);
    const auto start = std::chrono::steady_clock::now();  // embedding is no layer's work
    pass.layer(TimedLayer{runner.layer(0), &inside}, x);
    total += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return pass.row_count();
  };
  const Index all = step();
  const std::vector<float> expected(hidden.begin() + (all - response) * width, hidden.end());
  step();  // the first step of this kind makes room for its rows
  const double before = runner.operations();
  inside = total = 0.0;
  Index rows_in_pass = 0;
  for (auto _ : state) rows_in_pass = step();
  // No token changed, so a cached step gives what the full one gave: to rounding in float32, to the
  // rounding of stored features in bf16.
  const float tolerance = options.precision == models::Precision::Float32 ? 1e-3F : 0.1F;
  const float* found = hidden.data() + (rows_in_pass - response) * width;
  for (std::size_t i = 0; i < expected.size(); ++i)
    if (!(std::abs(found[i] - expected[i]) < tolerance)) {
      state.SkipWithError("response rows differ from the uncached layer's");
      break;
    }
  state.counters["flops"] =
      benchmark::Counter(runner.operations() - before, benchmark::Counter::kIsRate);
  state.counters["outside_share"] = 1.0 - inside / total;
}

}  // namespace

int main(int argc, char** argv) {
  for (const char* shape : {"small", "llada-8b", "dream-7b"})
    for (const bool wide : {true, false})
      for (const char* kind : {"uncached", "response_due", "verified"}) {
        const models::ComputeOptions options{.precision = wide ? models::Precision::Float32
                                                               : models::Precision::Bfloat16};
        if (!models::can_compute(options)) continue;
        const std::string name =
            std::string("layer/") + kind + "/" + shape + (wide ? "/f32" : "/bf16");
        benchmark::RegisterBenchmark(name.c_str(),
                                     [=](benchmark::State& state) {
                                       if (wide)
                                         run_layer<float>(state, kind, shape, options);
                                       else
                                         run_layer<Eigen::bfloat16>(state, kind, shape, options);
                                     })
            ->Unit(benchmark::kMillisecond)
            ->UseRealTime();
      }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
