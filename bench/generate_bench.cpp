// SPDX-License-Identifier: Apache-2.0
// Whole generations on shapes of random weights made in memory, uncached and cached steps in turn
// in one process. Names: generate/SETTING/PRECISION/BACKEND; counters of LLaDA's shape:
//   uncached_s, cached_s      mean seconds a step (uncached: three equal steps)
//   wall_ratio, ops_ratio     uncached / cached, on the clock and in counted operations
//   peak_gflops               best product of 1024 rows in this run, same backend and precision
//   uncached_peak_share, verify_peak_share   operations a second against that
//   verify_s, verify_gb_s, read_gb_s   a verified step, the weights it reads a second, a read loop
//   first_s, due_s            the first step, a plain forward, and one with the response due
//   cache_bytes               features held
//   allocations               calls of operator new in a step, all of them oneDNN's
// Counters of a block-causal model (qwen3-0.6b), whose finished blocks are kept:
//   uncached_s, cached_s      seconds a step: uncached, mean of one step in the first block and one
//   in
//                             the last (the uncached run is sampled, not run: it takes too long);
//                             cached, median of all steps but the first
//   prefill_s                 the first step: the prompt and the first block
//   tokens_s, uncached_tokens_s   tokens a second of the whole cached run, its first step included,
//                             and of an uncached one of as many steps of uncached_s each
//   wall_ratio, ops_ratio     uncached / cached of the whole run, likewise
//   limit_share               seconds of reading all weights once, at read_gb_s, against cached_s
//   read_gb_s, cache_bytes    as above
// Every run verifies row counts and the first step's tokens. `--shape llada-8b` times a few steps
// of each kind at full width instead.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <memory_resource>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/support/random_model.hpp"
#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/dllm_cache.hpp"
#include "tests/support/allocation_counter.hpp"

using namespace dllm_cache;

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Setting {
  std::string name;
  Index prompt, response, steps;
  DllmCachePolicy policy;
};

const Setting gsm8k{"gsm8k", 893, 256, 32, {100, 7, 0.25, true}};
const Setting longbench{"longbench", 2016, 32, 32, {100, 8, 0.25, true}};

models::TransformerConfig small_shape() {
  models::TransformerConfig config;
  config.layers = 16;
  config.width = 1024;
  config.heads = {.heads = 16, .kv_heads = 16, .head_dim = 64};
  config.feed_forward = 3072;
  config.vocabulary = 16384;
  config.rotary_theta = 500000.0;
  config.special = {.mask = 16383, .end_of_text = 16382};
  return config;
}

models::TransformerConfig llada_8b_shape() {
  models::TransformerConfig config;
  config.layers = 32;
  config.width = 4096;
  config.heads = {.heads = 32, .kv_heads = 32, .head_dim = 128};
  config.feed_forward = 12288;
  config.vocabulary = 126464;
  config.rotary_theta = 500000.0;
  config.special = {.mask = 126336, .end_of_text = 126081};
  return config;
}

/// Qwen3-0.6B, as SDAR and the A2D models have it.
models::TransformerConfig qwen3_shape() {
  models::TransformerConfig config;
  config.layers = 28;
  config.width = 1024;
  config.heads = {.heads = 16, .kv_heads = 8, .head_dim = 128};
  config.feed_forward = 3072;
  config.vocabulary = 151936;
  config.rotary_theta = 1e6;
  config.special = {.mask = 151669, .end_of_text = 151643};
  return config;
}

std::vector<std::int32_t> prompt_tokens(Index rows, Index vocabulary) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(rows));
  for (std::size_t i = 0; i < tokens.size(); ++i)
    tokens[i] =
        static_cast<std::int32_t>((i * 7919 + 13) % static_cast<std::size_t>(vocabulary - 8));
  return tokens;
}

/// Operations a second of the best product of 1024 rows among the shapes of a layer.
double peak_flops(const models::TransformerModel& model, int threads) {
  models::ThreadTeam team(threads);
  models::Products products(team);
  double best = 0.0;
  const models::LayerWeights& layer = model.layers.front();
  for (const models::Linear* linear : {&layer.query, &layer.gate, &layer.down}) {
    std::vector<float> x(static_cast<std::size_t>(1024 * linear->inputs()), 0.5F);
    std::vector<float> y(static_cast<std::size_t>(1024 * linear->outputs()));
    for (int repeat = 0; repeat < 6; ++repeat) {
      const auto start = Clock::now();
      products.apply(dense_view<const float>(x.data(), 1024, linear->inputs()),
                     {{linear, dense_view(y.data(), 1024, linear->outputs())}});
      best = std::max(best, 2048.0 * static_cast<double>(linear->inputs()) *
                                static_cast<double>(linear->outputs()) / seconds_since(start));
    }
  }
  return best;
}

/// Bytes a second of reading a large array with all threads.
double read_bandwidth(int threads) {
  const std::vector<float> memory(std::size_t{64} << 20, 1.0F);  // 256 MiB
  models::ThreadTeam team(threads);
  double best = 0.0;
  for (int repeat = 0; repeat < 3; ++repeat) {
    std::vector<float> sums(256);
    const auto start = Clock::now();
    const auto part = static_cast<Index>(memory.size()) / 256;
    team.for_each(256, 1e9, [&](Index task, models::Scratch&) {
      sums[static_cast<std::size_t>(task)] =
          Eigen::Map<const Eigen::ArrayXf>(memory.data() + task * part, part).sum();
    });
    benchmark::DoNotOptimize(sums.data());
    best =
        std::max(best, static_cast<double>(memory.size() * sizeof(float)) / seconds_since(start));
  }
  return best;
}

double weight_bytes(const models::TransformerConfig& c, models::Precision precision) {
  const Index layer =
      2 * c.width * c.query_width() + 2 * c.width * c.kv_width() + 3 * c.width * c.feed_forward;
  return static_cast<double>(c.layers * layer + c.width * c.vocabulary) *
         (precision == models::Precision::Float32 ? 4.0 : 2.0);
}

double mean(const std::vector<double>& all) {
  return std::accumulate(all.begin(), all.end(), 0.0) / static_cast<double>(all.size());
}

double median(std::vector<double> all) {
  std::nth_element(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(all.size() / 2),
                   all.end());
  return all[all.size() / 2];
}

/// Memory whose pages are there before the clock runs, as in a program that has served before.
class TouchedMemory : public std::pmr::memory_resource {
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    return std::memset(large_pages()->allocate(bytes, alignment), 0, bytes);
  }
  void do_deallocate(void* memory, std::size_t bytes, std::size_t alignment) override {
    large_pages()->deallocate(memory, bytes, alignment);
  }
  [[nodiscard]] bool do_is_equal(const memory_resource& other) const noexcept override {
    return this == &other;
  }
};

/// One generation whose steps are timed one by one.
template <class Stored>
class TimedRun {
 public:
  TimedRun(models::TransformerRunner& runner, const Setting& setting, const AnyPolicy& policy)
      : TimedRun(runner, prompt_tokens(setting.prompt, runner.vocabulary()),
                 {.response = setting.response, .steps = setting.steps}, policy) {}
  TimedRun(models::TransformerRunner& runner, std::span<const std::int32_t> prompt,
           const DecodingOptions& options, const AnyPolicy& policy)
      : m_runner(runner), m_loop(m_runner, &m_memory) {
    m_loop.add(prompt, options, policy);
  }

  void step() {
    const double before = m_runner.operations();
    const auto start = Clock::now();
    allocations.push_back(testing::allocations([&] { m_loop.step(); }));
    seconds.push_back(seconds_since(start));
    operations.push_back(m_runner.operations() - before);
  }

  [[nodiscard]] bool finished() const { return m_loop.finished(); }
  [[nodiscard]] DecodingCounts counts() const { return m_loop.counts(0); }
  [[nodiscard]] Index cache_bytes() const { return m_loop.cache_bytes(0); }
  [[nodiscard]] std::vector<std::int32_t> tokens() const {
    const auto all = m_loop.sequence(0).tokens();
    return {all.begin(), all.end()};
  }

  std::vector<double> seconds, operations;  // of each step so far
  std::vector<long> allocations;

 private:
  TouchedMemory m_memory;
  models::TransformerRunner& m_runner;
  DenoisingLoop<models::TransformerRunner, Stored> m_loop;
};

/// Rows that the method recomputes over a generation, from its definition.
Index expected_deltas(const Setting& s, Index layers) {
  Index rows = 0;
  const auto selected = static_cast<Index>(static_cast<double>(s.response) * s.policy.ratio);
  for (Index step = 0; step < s.steps; ++step) {
    if (step % s.policy.prompt_interval == 0) rows += layers * s.prompt;
    rows += step % s.policy.response_interval == 0 ? layers * s.response
                                                   : s.response + (layers - 1) * selected;
  }
  return rows;
}

template <class Stored>
void run_generation(benchmark::State& state, const Setting& setting,
                    const models::ComputeOptions& options) {
  const int threads = models::available_threads();
  const models::TransformerConfig config = small_shape();
  const auto model = bench::random_model(config, 3, options);
  for (auto _ : state) {
    models::TransformerRunner runner(model, threads);  // one for all, as in a program that goes on
    TimedRun<Stored> uncached(runner, setting, NoCache{});
    TimedRun<Stored> cached(runner, setting, setting.policy);
    double peak = peak_flops(*model, threads);
    // Uncached and cached steps take turns, so that both see the same machine.
    uncached.step();
    cached.step();
    if (uncached.tokens() != cached.tokens())
      state.SkipWithError("the first step of a cached run must be the uncached one");
    for (Index step = 1; step < setting.steps; ++step) {
      if (step % (setting.steps / 3) == 1) uncached.step();
      cached.step();
    }
    peak = std::max(peak, peak_flops(*model, threads));
    if (cached.counts().recomputed != expected_deltas(setting, config.layers))
      state.SkipWithError("the cached run must recompute the rows that the method says");

    // The first uncached step makes room; its three followers are equal steps.
    const std::vector<double> plain(uncached.seconds.begin() + 1, uncached.seconds.end());
    const std::vector<double> plain_operations(uncached.operations.begin() + 1,
                                               uncached.operations.end());
    std::vector<double> verified, verified_operations;
    for (Index step = 2; step < setting.steps; ++step) {  // the first verified step makes room
      if (step % setting.policy.response_interval == 0) continue;
      verified.push_back(cached.seconds[static_cast<std::size_t>(step)]);
      verified_operations.push_back(cached.operations[static_cast<std::size_t>(step)]);
    }
    auto& counters = state.counters;
    counters["uncached_s"] = mean(plain);
    counters["cached_s"] = mean(cached.seconds);
    counters["wall_ratio"] = mean(plain) / mean(cached.seconds);
    counters["ops_ratio"] = mean(plain_operations) / mean(cached.operations);
    counters["peak_gflops"] = peak * 1e-9;
    counters["uncached_peak_share"] = mean(plain_operations) / mean(plain) / peak;
    counters["verify_peak_share"] = mean(verified_operations) / median(verified) / peak;
    counters["verify_s"] = median(verified);
    counters["verify_gb_s"] = weight_bytes(config, options.precision) / median(verified) * 1e-9;
    counters["read_gb_s"] = read_bandwidth(threads) * 1e-9;
    counters["first_s"] = cached.seconds.front();
    counters["due_s"] =
        cached.seconds[static_cast<std::size_t>(2 * setting.policy.response_interval)];
    counters["allocations"] = static_cast<double>(cached.allocations.back());
    counters["cache_bytes"] = static_cast<double>(cached.cache_bytes());
  }
}

/// A generation block by block, over the exact cache of finished blocks.
template <class Stored>
void run_blocks(benchmark::State& state, const models::ComputeOptions& options) {
  constexpr Index prompt = 1024, response = 256, block = 32, block_steps = 4;
  constexpr Index blocks = response / block, steps = blocks * block_steps;
  const int threads = models::available_threads();
  const models::TransformerConfig config = qwen3_shape();
  const auto model = bench::random_model(config, 7, options, 0, true);
  const DecodingOptions decoding{.response = response,
                                 .steps_per_block = block_steps,
                                 .attention_block = block,
                                 .commit = EvenCommit{}};
  const auto text = prompt_tokens(prompt, config.vocabulary);
  for (auto _ : state) {
    models::TransformerRunner runner(model, threads);
    TimedRun<Stored> uncached(runner, text, decoding, NoCache{});
    TimedRun<Stored> cached(runner, text, decoding, BlockCachePolicy{});
    uncached.step();
    cached.step();
    if (uncached.tokens() != cached.tokens())
      state.SkipWithError("the first step of a cached run must be the uncached one");
    uncached.step();  // the first one made room
    while (!cached.finished()) cached.step();
    // An uncached step of the last block, over the tokens that were found.
    const auto found = cached.tokens();
    DecodingOptions last = decoding;
    last.response = block;
    TimedRun<Stored> end(runner, std::span(found).first(found.size() - block), last, NoCache{});
    end.step();
    // Each block of a step, and each finished one that is followed once more.
    constexpr Index rows = prompt + block * steps + block * (blocks - 1);
    if (static_cast<Index>(cached.seconds.size()) != steps || cached.counts().rows != rows ||
        cached.counts().recomputed != rows * config.layers)
      state.SkipWithError("the cached run must compute the rows that the method says");

    constexpr auto all_steps = static_cast<double>(steps);
    const double uncached_s = (uncached.seconds.back() + end.seconds.back()) / 2;
    const double uncached_operations = (uncached.operations.back() + end.operations.back()) / 2;
    const double cached_s = median({cached.seconds.begin() + 1, cached.seconds.end()});
    const double bandwidth = read_bandwidth(threads);
    auto& counters = state.counters;
    counters["tokens_s"] = response / (all_steps * mean(cached.seconds));
    counters["uncached_tokens_s"] = response / (all_steps * uncached_s);
    counters["wall_ratio"] = uncached_s / mean(cached.seconds);
    counters["ops_ratio"] = uncached_operations / mean(cached.operations);
    counters["uncached_s"] = uncached_s;
    counters["cached_s"] = cached_s;
    counters["prefill_s"] = cached.seconds.front();
    counters["limit_share"] = weight_bytes(config, options.precision) / bandwidth / cached_s;
    counters["read_gb_s"] = bandwidth * 1e-9;
    counters["cache_bytes"] = static_cast<double>(cached.cache_bytes());
  }
}

// A few steps of each kind at full width; a whole generation is extrapolated from them.
void run_llada_8b() {
  const int threads = models::available_threads();
  const models::ComputeOptions options{.precision = models::Precision::Bfloat16};
  const models::TransformerConfig config = llada_8b_shape();
  constexpr Index distinct = 4;
  std::printf(
      "LLaDA-8B shape, bf16, 32 layers whose weights repeat %td distinct ones, %d threads\n",
      distinct, threads);
  const auto model = bench::random_model(config, 5, options, distinct);
  const Setting setting{"gsm8k", 893, 256, 256, {100, 7, 0.25, true}};
  const double peak = peak_flops(*model, threads);
  models::TransformerRunner runner(model, threads);
  TimedRun<Eigen::bfloat16> cached(runner, setting, setting.policy);
  for (int step = 0; step < 9; ++step) {
    cached.step();
    std::printf("  step %d: %.2f s, %.3g operations\n", step, cached.seconds.back(),
                cached.operations.back());
    std::fflush(stdout);
  }
  TimedRun<Eigen::bfloat16> uncached(runner, setting, NoCache{});
  uncached.step();
  uncached.step();
  const double full = uncached.seconds.back(), due = cached.seconds[7];
  const double verified = median({cached.seconds.begin() + 2, cached.seconds.begin() + 7});
  std::printf("peak product %.0f GFLOP/s; features %.2f GiB\n", peak * 1e-9,
              static_cast<double>(cached.cache_bytes()) / 1073741824.0);
  std::printf(
      "uncached step %.2f s (%.0f %% of peak), response due %.2f s, verified %.2f s (%.0f %% "
      "of peak)\n",
      full, 100.0 * uncached.operations.back() / full / peak, due, verified,
      100.0 * cached.operations[6] / verified / peak);
  double total = 0.0;
  for (Index step = 0; step < setting.steps; ++step)
    total += step % setting.policy.prompt_interval == 0     ? full
             : step % setting.policy.response_interval == 0 ? due
                                                            : verified;
  std::printf(
      "extrapolated, not run: 256 steps uncached %.0f s, cached %.0f s, %.1f times faster\n",
      256.0 * full, total, 256.0 * full / total);
}

template <class Run>
void register_run(const std::string& setting, const models::ComputeOptions& options,
                  const Run& run) {
  const bool wide = options.precision == models::Precision::Float32;
  const std::string name = "generate/" + setting + (wide ? "/f32/" : "/bf16/") +
                           (options.backend == models::Backend::Eigen ? "eigen" : "onednn");
  benchmark::RegisterBenchmark(name.c_str(),
                               [=](benchmark::State& state) {
                                 if (wide)
                                   run(state, float());
                                 else
                                   run(state, Eigen::bfloat16());
                               })
      ->Iterations(1)
      ->Unit(benchmark::kMillisecond)
      ->UseRealTime();
}

void register_all() {
  std::vector<models::ComputeOptions> all;
  for (const auto precision : {models::Precision::Float32, models::Precision::Bfloat16})
    for (const auto backend : {models::Backend::Eigen, models::Backend::OneDnn}) {
      if (models::can_compute({backend, precision})) all.push_back({backend, precision});
    }
  for (const Setting& setting : {gsm8k, longbench})
    for (const models::ComputeOptions& options : all)
      register_run(setting.name, options, [=]<class Stored>(benchmark::State& state, Stored) {
        run_generation<Stored>(state, setting, options);
      });
  for (const models::ComputeOptions& options : all)
    register_run("qwen3-0.6b", options, [=]<class Stored>(benchmark::State& state, Stored) {
      run_blocks<Stored>(state, options);
    });
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--shape") == 0 && i + 1 < argc) {
      if (std::strcmp(argv[i + 1], "llada-8b") != 0) {
        std::fprintf(stderr, "bench_generate: --shape must be llada-8b, got %s\n", argv[i + 1]);
        return 2;
      }
      try {
        run_llada_8b();
      } catch (const std::invalid_argument& error) {  // no products of bf16 here
        std::fprintf(stderr, "bench_generate: %s\n", error.what());
        return 2;
      }
      return 0;
    }
  }
  register_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
