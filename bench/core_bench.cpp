// SPDX-License-Identifier: Apache-2.0
// The core's own work against raw twins that move the same bytes: what selection and row movement
// cost beyond memory. Every benchmark verifies its result.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "dllm_cache/dllm_cache.hpp"

using namespace dllm_cache;

namespace {

std::vector<float> random_floats(Index count, std::uint32_t seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> all(static_cast<std::size_t>(count));
  for (float& one : all) one = normal(engine);
  return all;
}

void set_bytes(benchmark::State& state, Index rows, Index width) {
  // Read cached, read fresh, write cached.
  state.SetBytesProcessed(state.iterations() * 3 * rows * width *
                          static_cast<std::int64_t>(sizeof(float)));
}

}  // namespace

// Similarity, rounding and store in one pass, then selection of a quarter of the rows.
static void BM_select(benchmark::State& state) {
  const Index rows = state.range(0), width = state.range(1);
  const auto fresh = random_floats(rows * width, 1);
  auto cached = random_floats(rows * width, 2);
  VVerifySelector<float> selector;
  std::vector<SimilaritySums> sums(static_cast<std::size_t>(rows));
  std::vector<Index> selected;
  for (auto _ : state) {
    selector.accumulate(dense_view(fresh.data(), rows, width),
                        dense_view(cached.data(), rows, width), sums);
    selector.select(sums, rows / 4, selected);
    benchmark::DoNotOptimize(selected.data());
    benchmark::ClobberMemory();
  }
  if (cached != fresh) state.SkipWithError("fresh values were not stored");
  selector.accumulate(dense_view(fresh.data(), rows, width), dense_view(cached.data(), rows, width),
                      sums);
  for (const SimilaritySums& one : sums)
    if (similarity(one) != 1.0) state.SkipWithError("an unchanged row must score 1");
  set_bytes(state, rows, width);
}

// The raw twin: the same three streams, without any arithmetic that must be kept.
static void BM_select_raw(benchmark::State& state) {
  const Index rows = state.range(0), width = state.range(1);
  const auto fresh = random_floats(rows * width, 1);
  auto cached = random_floats(rows * width, 2);
  const auto count = static_cast<Index>(cached.size());
  float sum = 0.0F;
  for (auto _ : state) {
    Eigen::Map<Eigen::ArrayXf> kept(cached.data(), count);
    sum = kept.sum();  // reads the cached rows
    benchmark::DoNotOptimize(sum);
    kept = Eigen::Map<const Eigen::ArrayXf>(fresh.data(), count);
    benchmark::ClobberMemory();
  }
  if (cached != fresh) state.SkipWithError("fresh values were not stored");
  set_bytes(state, rows, width);
}

static void selector_sizes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"rows", "width"});
  for (const int rows : {32, 256, 1024})
    for (const int width : {512, 1024, 4096}) bench->Args({rows, width});
}
BENCHMARK(BM_select)->Apply(selector_sizes);
BENCHMARK(BM_select_raw)->Apply(selector_sizes);

// One step of an idle layer: what the cache moves around the callbacks. A quarter of the response
// is gathered and scattered, the rest takes its cached delta.
static void BM_gather_scatter(benchmark::State& state) {
  const Index width = state.range(0), prompt = 893, response = 256;
  FeatureCache<float> cache({1, width, width, width}, {.prompt = prompt, .response = response},
                            DllmCachePolicy{never, never, 0.25, false});
  Workspace<float> workspace;
  const auto idle = make_layer(
      [](MatrixView<const float> x, MatrixView<float> v) { as_eigen(v) = as_eigen(x); },
      [](MatrixView<const float>, std::span<const std::int32_t>, MatrixView<float> q,
         MatrixView<float> k) {
        as_eigen(q).setZero();
        as_eigen(k).setZero();
      },
      [](MatrixView<const float>, MatrixView<const float>, std::span<const Segment<float>>,
         MatrixView<float> u) { as_eigen(u).setConstant(1.0F); });
  std::vector<float> hidden(static_cast<std::size_t>((prompt + response) * width), 1.0F);
  {
    auto pass = workspace.begin_step(cache);
    pass.layer(idle, dense_view(hidden.data(), pass.row_count(), width));
  }
  std::fill(hidden.begin(), hidden.end(), 0.0F);
  for (auto _ : state) {
    auto pass = workspace.begin_step(cache);
    pass.layer(idle, dense_view(hidden.data(), pass.row_count(), width));
    if (pass.row_count() != response || pass.recomputed().size() != 64)
      state.SkipWithError("256 rows must be in the pass and 64 be recomputed");
  }
  // Every step adds a delta of ones, fresh or cached, to every row in the pass.
  const auto steps = static_cast<float>(state.iterations());
  if (hidden[0] != steps || hidden[static_cast<std::size_t>(response * width) - 1] != steps)
    state.SkipWithError("every row must take one delta a step");
  state.SetItemsProcessed(state.iterations() * response);
}
BENCHMARK(BM_gather_scatter)->ArgName("width")->Arg(1024)->Arg(4096);

// What a policy that watches attention is told of one layer, as the library computes it: p of some
// rows over all keys, summed over rows and heads. LLaDA-8B's heads; 2 flops a watched row, key and
// column.
static void BM_column_sums(benchmark::State& state) {
  const Index watched = state.range(0), keys = state.range(1), heads = 32, width = 128;
  const auto q = random_floats(watched * heads * width, 1);
  const auto k = random_floats(keys * heads * width, 2);
  std::vector<float> scores(static_cast<std::size_t>(watched * keys));
  std::vector<float> sums(static_cast<std::size_t>(keys));
  std::vector<const float*> queries(static_cast<std::size_t>(watched));
  const auto p = dense_view(scores.data(), watched, keys);
  for (auto _ : state) {
    std::fill(sums.begin(), sums.end(), 0.0F);
    for (Index head = 0; head < heads; ++head) {
      for (Index i = 0; i < watched; ++i)
        queries[static_cast<std::size_t>(i)] = q.data() + (i * heads + head) * width;
      detail::score_keys<float, float>(queries, dense_view(k.data(), keys, heads * width),
                                       head * width, width, 1.0 / std::sqrt(128.0), p);
      for (Index i = 0; i < watched; ++i) {
        detail::softmax_scores(std::span(p.row(i), static_cast<std::size_t>(keys)), keys);
        for (Index key = 0; key < keys; ++key) sums[static_cast<std::size_t>(key)] += p.row(i)[key];
      }
    }
    benchmark::DoNotOptimize(sums.data());
    benchmark::ClobberMemory();
  }
  const double all = std::accumulate(sums.begin(), sums.end(), 0.0);
  if (std::abs(all - static_cast<double>(watched * heads)) > 1e-3 * static_cast<double>(watched))
    state.SkipWithError("probabilities of a row and head must sum to 1");
  state.counters["flops"] =
      benchmark::Counter(2.0 * static_cast<double>(watched * keys * heads * width) *
                             static_cast<double>(state.iterations()),
                         benchmark::Counter::kIsRate);
}
BENCHMARK(BM_column_sums)
    ->ArgNames({"watched", "keys"})
    ->Args({32, 1149})
    ->Args({32, 2048})
    ->Args({256, 1149});

BENCHMARK_MAIN();
