// SPDX-License-Identifier: Apache-2.0
// Attention of a prompt of 2048 rows with 16 heads on 8 of 128. Names: attention/KIND/BACKEND/
// PRECISION. Kinds: `even`, every row sees all keys; `stairs` of blocks, which see those before
// them and themselves; the same `alone`, one call a block. Counter:
//   flops   operations a second, of which stairs have about half as many
#include <benchmark/benchmark.h>

#include <cmath>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "dllm_cache/models/compute/attention.hpp"
#include "tests/support/random_numbers.hpp"

using namespace dllm_cache;

namespace {

constexpr Index rows = 2048;
constexpr models::HeadShape shape{.heads = 16, .kv_heads = 8, .head_dim = 128};

template <class Stored>
std::vector<Stored> random_features(std::uint64_t seed) {
  std::vector<Stored> features;
  for (const float x :
       testing::RandomNumbers(seed).vector<float>(rows * shape.kv_heads * shape.head_dim))
    features.push_back(Stored(x));
  return features;
}

template <class Stored>
void run_attention(benchmark::State& state, Index block, bool alone,
                   const models::ComputeOptions& options) {
  constexpr Index width = shape.heads * shape.head_dim, narrow = shape.kv_heads * shape.head_dim;
  const std::vector<float> q = testing::RandomNumbers(1).vector<float>(rows * width);
  const std::vector<Stored> k = random_features<Stored>(2), v = random_features<Stored>(3);
  std::vector<Segment<Stored>> segments;
  for (Index begin = 0; begin < rows; begin += block)
    segments.push_back({begin,
                        begin + block,
                        {k.data(), begin + block, narrow, narrow},
                        {v.data(), begin + block, narrow, narrow}});
  const auto all = std::span<const Segment<Stored>>(segments);
  models::ThreadTeam team(models::available_threads());
  models::Attention attention(options, team);
  models::ProductInput out;
  out.resize(rows, width, rows, models::multiplies_bf16(options));
  const auto attend = [&] {
    const auto queries = dense_view(q.data(), rows, width);
    if (!alone) return attention.attend(queries, all, shape, out);
    for (std::size_t i = 0; i < all.size(); ++i)
      attention.attend(queries, all.subspan(i, 1), shape, out);
  };
  attend();  // makes room and primitives
  // The first rows, some in between and the last equal those computed on their own.
  models::ProductInput own;
  own.resize(rows, width, rows, models::multiplies_bf16(options));
  for (const std::size_t i : {std::size_t{0}, all.size() / 2, all.size() - 1}) {
    attention.attend(dense_view(q.data(), rows, width), all.subspan(i, 1), shape, own);
    out.fill([&]<class Element>(MatrixView<Element> found) {
      MatrixView<Element> expected;
      if constexpr (std::is_same_v<Element, float>)
        expected = own.floats();
      else
        expected = own.rounded();
      const float tolerance = out.narrow() ? 0.03F : 1e-5F;
      for (Index at = all[i].begin * width; at < all[i].end * width; ++at)
        if (!(std::abs(static_cast<float>(found.data[at]) - static_cast<float>(expected.data[at])) <
              tolerance))
          return state.SkipWithError("rows differ from those computed on their own");
    });
  }
  const double before = attention.operations();
  for (auto _ : state) attend();
  state.counters["flops"] =
      benchmark::Counter(attention.operations() - before, benchmark::Counter::kIsRate);
}

}  // namespace

int main(int argc, char** argv) {
  struct Kind {
    std::string name;
    Index block;
    bool alone;
  };
  for (const models::Backend backend : {models::Backend::Eigen, models::Backend::OneDnn})
    for (const bool wide : {true, false})
      for (const Kind& kind :
           {Kind{"even", rows, false}, Kind{"stairs_of_4", 4, false}, Kind{"alone_4", 4, true},
            Kind{"stairs_of_32", 32, false}, Kind{"alone_32", 32, true}}) {
        const models::ComputeOptions options{
            backend, wide ? models::Precision::Float32 : models::Precision::Bfloat16};
        if (!models::can_compute(options)) continue;
        const std::string name =
            "attention/" + kind.name + "/" + models::name_of(backend) + (wide ? "/f32" : "/bf16");
        benchmark::RegisterBenchmark(
            name.c_str(),
            [=](benchmark::State& state) {
              if (wide)
                run_attention<float>(state, kind.block, kind.alone, options);
              else
                run_attention<Eigen::bfloat16>(state, kind.block, kind.alone, options);
            })
            ->Unit(benchmark::kMillisecond)
            ->UseRealTime();
      }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
