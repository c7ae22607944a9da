// SPDX-License-Identifier: Apache-2.0
#include <catch2/catch.hpp>
#include <vector>

#include "dllm_cache/dllm_cache.hpp"
#include "tests/support/allocation_counter.hpp"
#include "tests/support/cached_run.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;

namespace {

// A layer whose callbacks allocate nothing: what is counted is the library's.
template <class Stored>
struct ThriftyLayer {
  void value(MatrixView<const float> x, MatrixView<float> v) const { fill(x, v); }
  void query_key(MatrixView<const float> x, std::span<const std::int32_t>, MatrixView<float> q,
                 MatrixView<float> k) const {
    fill(x, q);
    fill(x, k);
  }
  void verify_feature(MatrixView<const float> x, MatrixView<float> f) const { fill(x, f); }
  void delta(MatrixView<const float> x, MatrixView<const float>, std::span<const Segment<Stored>>,
             MatrixView<float> u) const {
    fill(x, u);
  }
  static void fill(MatrixView<const float> x, MatrixView<float> y) {
    for (Index row = 0; row < y.rows; ++row)
      for (Index col = 0; col < y.cols; ++col)
        y.row(row)[col] = 0.3f * x.row(row)[(col + row) % x.cols] - 0.1f * static_cast<float>(col);
  }
};

constexpr ModelShape model{.layers = 3, .width = 40, .query_width = 48, .kv_width = 36};
// The same for policies that look at attention or verify features.
constexpr ModelShape watched_model{
    .layers = 3, .width = 40, .query_width = 72, .kv_width = 36, .heads = 4, .verify_width = 5};

template <class Stored>
void step(Workspace<float, Stored>& workspace, std::span<FeatureCache<float, Stored>* const> caches,
          std::span<const StepInput> inputs, std::vector<float>& memory, RandomNumbers& random) {
  auto pass = workspace.begin_step(caches, inputs);
  for (float& number : memory) number = static_cast<float>(random.signed_unit());
  for (Index layer = 0; layer < model.layers; ++layer)
    pass.layer(ThriftyLayer<Stored>{}, dense_view(memory.data(), pass.row_count(), model.width));
}

}  // namespace

TEST_CASE("Allocations: the counter sees every form of new", "[allocation]") {
  // Called by name: a compiler may leave out the new and delete of an expression.
  constexpr std::align_val_t wide{128};
  REQUIRE(allocations([] { ::operator delete(::operator new(4)); }) == 1);
  REQUIRE(allocations([] { ::operator delete[](::operator new[](4)); }) == 1);
  REQUIRE(allocations([] { ::operator delete(::operator new(4, wide), wide); }) == 1);
  REQUIRE(allocations([] { ::operator delete[](::operator new[](4, wide), wide); }) == 1);
  REQUIRE(allocations([] { ::operator delete(::operator new(4, std::nothrow)); }) == 1);
  REQUIRE(allocations([] {
            base::Buffer<float> buffer;
            buffer.ensure(3);
          }) == 1);
  REQUIRE(allocations([] {}) == 0);
}

TEMPLATE_TEST_CASE("Allocations: none after the first step of each kind", "[allocation]", float,
                   Eigen::bfloat16) {
  using Stored = TestType;
  using Cache = FeatureCache<float, Stored>;
  for (const DllmCachePolicy policy :
       {DllmCachePolicy{4, 3, 0.25}, DllmCachePolicy{4, 3, 0.25, false}, DllmCachePolicy{4, 3, 0.0},
        DllmCachePolicy{4, 3, 1.0, false}, DllmCachePolicy{1, 1, 0.25}}) {
    RandomNumbers random(5);
    Workspace<float, Stored> workspace;
    Cache first(model, {.prompt = 6, .response = 19, .prediction_shift = 1}, policy),
        second(model, {.prompt = 3, .response = 8}, NoCache{});
    const std::vector<Cache*> both{&first, &second}, one{&first};
    const std::vector<StepInput> inputs(2);
    std::vector<float> memory(static_cast<std::size_t>(36 * model.width));
    // Full, verified and due steps, alone and in a batch: steps 0 to 4 show one of each kind.
    for (int i = 0; i < 5; ++i) step<Stored>(workspace, both, inputs, memory, random);
    REQUIRE(allocations([&] {
              for (int i = 0; i < 12; ++i) step<Stored>(workspace, both, inputs, memory, random);
              for (int i = 0; i < 12; ++i)
                step<Stored>(workspace, one, std::span(inputs).first(1), memory, random);
            }) == 0);
  }
}

TEST_CASE("Allocations: none by a policy that looks at attention, hides rows or remembers",
          "[allocation]") {
  // As a loop tells them: two blocks of six rows, one token a step from the left.
  constexpr Index prompt = 5, rows = 17, block_rows = 6;
  struct Kind {
    const char* what;
    AnyPolicy policy;
  };
  for (const Kind& kind :
       {Kind{"elastic", ElasticPolicy{}}, Kind{"elastic, always cut", ElasticPolicy{.gamma = 2.0}},
        Kind{"sparse", SparseDllmPolicy{}}, Kind{"dpad", DPadPolicy{.suffix_window = 5}},
        Kind{"streaming", StreamingDllmPolicy{.suffix_window = 2}},
        Kind{"d2cache", D2CachePolicy{.current_k = 3}},
        Kind{"window", WindowDiffusionPolicy{.refresh_cycle = 3, .window_tokens = 4}},
        Kind{"spa", SpaCachePolicy{.prompt_interval = 5, .response_interval = 3, .proxy_rank = 0}},
        Kind{"dynamic", DynamicDllmPolicy{2, 3}}, Kind{"entropy", EntropyCachePolicy{0.5, 3}}}) {
    CAPTURE(kind.what);
    Workspace<float> workspace;
    const SequenceShape shape{.prompt = prompt, .response = rows - prompt};
    FeatureCache<float> cache(watched_model, shape, kind.policy);
    const std::vector<FeatureCache<float>*> one{&cache};
    std::vector<float> memory(static_cast<std::size_t>(rows * model.width));
    std::vector<std::uint8_t> masked(rows), changed(rows), candidates(rows);
    std::vector<std::uint16_t> unchanged(rows);
    const std::vector<float> likely(rows, 0.5F), unsure(rows, 0.25F);
    const auto run = [&] {
      RandomNumbers random(11);  // the same rows are watched each time
      for (Index done = 0; done < rows - prompt; ++done) {
        const Index begin = prompt + done / block_rows * block_rows;
        for (Index row = 0; row < rows; ++row) {
          const auto at = static_cast<std::size_t>(row);
          masked[at] = row >= prompt + done ? 1 : 0;
          changed[at] = done > 0 && row + 1 == prompt + done ? 1 : 0;
          candidates[at] = masked[at] != 0 && row >= begin && row < begin + block_rows ? 1 : 0;
          const bool decoded = row >= prompt && masked[at] == 0;
          unchanged[at] =
              static_cast<std::uint16_t>(decoded ? prompt + done - 1 - row : Index{65535});
        }
        const StepInput input{.block = {begin, begin + block_rows},
                              .block_step = done % block_rows,
                              .masked = masked,
                              .changed = changed,
                              .confidence = likely,
                              .unchanged_steps = unchanged,
                              .candidates = candidates,
                              .entropy = unsure};
        step<float>(workspace, one, std::span(&input, 1), memory, random);
      }
    };
    run();
    cache.reset(shape);
    run();  // memories and those of open steps change places: both have grown by now
    cache.reset(shape);
    CHECK(allocations(run) == 0);
    CHECK(cache.step() == rows - prompt);
  }
}

TEST_CASE("Allocations: a sequence that hides and watches nothing takes nothing for it",
          "[allocation]") {
  // The same memory as ever, of features and of the workspace; see the count below.
  NanResource memory;
  RandomNumbers random(12);
  Workspace<float> workspace(&memory);
  FeatureCache<float> cache(watched_model, {.prompt = 6, .response = 19},
                            DllmCachePolicy{4, 3, 0.25}, &memory);
  ModelShape plain = watched_model;
  plain.heads = plain.verify_width = 0;
  CHECK(cache.bytes() == FeatureCache<float>::bytes_needed(plain, {.prompt = 6, .response = 19},
                                                           DllmCachePolicy{4, 3, 0.25}));
  const std::vector<FeatureCache<float>*> one{&cache};
  const std::vector<StepInput> inputs(1);
  std::vector<float> x(static_cast<std::size_t>(25 * model.width));
  for (int i = 0; i < 6; ++i) step<float>(workspace, one, inputs, x, random);
  // What a step takes beside memory of its own: nothing.
  CHECK(allocations([&] { step<float>(workspace, one, inputs, x, random); }) == 0);
  CHECK(cache.key_place(2, 24) == 24);
}

TEST_CASE("Allocations: a verified step allocates nothing that a full step did not need",
          "[allocation]") {
  // Rows are gathered in layers, and their number changes; the selector alone is new in step 1.
  RandomNumbers random(6);
  Workspace<float> workspace;
  FeatureCache<float> cache(model, {.prompt = 6, .response = 64},
                            DllmCachePolicy{never, never, .3});
  const std::vector<FeatureCache<float>*> one{&cache};
  const std::vector<StepInput> inputs(1);
  std::vector<float> memory(static_cast<std::size_t>(70 * model.width));
  step<float>(workspace, one, inputs, memory, random);
  step<float>(workspace, one, inputs, memory, random);
  REQUIRE(allocations([&] { step<float>(workspace, one, inputs, memory, random); }) == 0);
}

TEST_CASE("Allocations: none when a threshold selects more rows than ever before", "[allocation]") {
  RandomNumbers random(9);
  Workspace<float> workspace;
  FeatureCache<float> cache(model, {.prompt = 6, .response = 24},
                            BlockVerifyPolicy{.prompt_interval = never,
                                              .response_interval = never,
                                              .ratio = 1.0,
                                              .similarity_threshold = 0.9999});
  const StepInput input{.block = {6, 10}};
  std::vector<float> start = random.vector<float>(30 * model.width), memory = start;
  const auto step = [&](Index changed) {
    memory = start;
    for (Index row = 30 - changed; row < 30; row += 2)  // they lie apart
      for (Index col = 0; col < model.width; ++col)
        memory[static_cast<std::size_t>(row * model.width + col)] *= col % 2 == 0 ? -1.0F : 1.0F;
    auto pass = workspace.begin_step(cache, input);
    float* const in_pass = memory.data() + (30 - pass.row_count()) * model.width;
    for (Index layer = 0; layer < model.layers; ++layer)
      pass.layer(ThriftyLayer<float>{}, dense_view(in_pass, pass.row_count(), model.width));
    return static_cast<Index>(pass.recomputed().size());
  };
  step(0);
  step(0);  // the layer's values depend on the place of a row: all seem to have changed
  const Index few = step(0);
  Index many = 0;
  REQUIRE(allocations([&] { many = step(16); }) == 0);
  CHECK(few == 4);
  CHECK(many > few);
}

TEST_CASE("Allocations: none after a step that was dropped", "[allocation]") {
  RandomNumbers random(7);
  Workspace<float> workspace;
  FeatureCache<float> cache(model, {.prompt = 4, .response = 9}, DllmCachePolicy{never, 2, 0.5});
  const std::vector<FeatureCache<float>*> one{&cache};
  const std::vector<StepInput> inputs(1);
  std::vector<float> memory(static_cast<std::size_t>(13 * model.width));
  for (int i = 0; i < 3; ++i) step<float>(workspace, one, inputs, memory, random);
  REQUIRE(allocations([&] {
            for (int i = 0; i < 3; ++i) {
              static_cast<void>(workspace.begin_step(cache));
              step<float>(workspace, one, inputs, memory, random);
            }
          }) == 0);
}

TEST_CASE("Allocations: reset to a sequence that is not longer keeps all memory", "[allocation]") {
  RandomNumbers random(8);
  Workspace<float> workspace;
  FeatureCache<float> cache(model, {.prompt = 6, .response = 19}, DllmCachePolicy{4, 3, 0.25});
  const std::vector<FeatureCache<float>*> one{&cache};
  const std::vector<StepInput> inputs(1);
  std::vector<float> memory(static_cast<std::size_t>(25 * model.width));
  for (int i = 0; i < 5; ++i) step<float>(workspace, one, inputs, memory, random);
  const float* features = cache.keys(0).data;
  REQUIRE(allocations([&] {
            cache.reset({.prompt = 10, .response = 12});
            for (int i = 0; i < 6; ++i) step<float>(workspace, one, inputs, memory, random);
            cache.reset({.prompt = 6, .response = 19});
            for (int i = 0; i < 6; ++i) step<float>(workspace, one, inputs, memory, random);
          }) == 0);
  REQUIRE(cache.keys(0).data == features);
}

TEST_CASE("Allocations: bytes_needed allocates nothing", "[allocation]") {
  const AnyPolicy policy = DllmCachePolicy{};
  REQUIRE(allocations([&] {
            static_cast<void>(FeatureCache<float>::bytes_needed(model, {.response = 1000}, policy));
          }) == 0);
}

TEST_CASE("Allocations: all memory of features and workspace comes from the given resource",
          "[allocation]") {
  NanResource memory;
  {
    RandomNumbers random(9);
    Workspace<float> workspace(&memory);
    FeatureCache<float> cache(model, {.prompt = 6, .response = 19}, DllmCachePolicy{4, 3, 0.25},
                              &memory);
    REQUIRE(memory.allocations() == 1);
    const std::vector<FeatureCache<float>*> one{&cache};
    const std::vector<StepInput> inputs(1);
    std::vector<float> x(static_cast<std::size_t>(25 * model.width));
    for (int i = 0; i < 5; ++i) step<float>(workspace, one, inputs, x, random);
    // Values and keys, queries, deltas; gathered rows in the first verified step, and again in the
    // first that recomputes the prompt too.
    REQUIRE(memory.allocations() == 1 + 3 + 2);
  }
  REQUIRE(memory.bytes_held() == 0);
}

TEST_CASE("Allocations: a reset that runs out of memory at any point changes nothing",
          "[allocation]") {
  const SequenceShape small{.prompt = 1, .response = 3}, large{.prompt = 200, .response = 200};
  std::vector<float> memory(static_cast<std::size_t>(400 * model.width));
  Index failures = 0;
  for (long fails = 0; fails < 20; ++fails) {
    INFO("allocation " << fails << " fails");
    FeatureCache<float> cache(model, small, DllmCachePolicy{.response_interval = 4});
    FeatureCache<float> twin(model, small, DllmCachePolicy{.response_interval = 4});
    Workspace<float> workspace;
    const auto hidden_after_step = [&](FeatureCache<float>& one) {
      auto pass = workspace.begin_step(one);
      std::fill(memory.begin(), memory.end(), 0.5F);
      for (Index layer = 0; layer < model.layers; ++layer)
        pass.layer(ThriftyLayer<float>{}, dense_view(memory.data(), pass.row_count(), model.width));
      return std::vector<float>(memory.begin(), memory.begin() + pass.row_count() * model.width);
    };
    REQUIRE(hidden_after_step(cache) == hidden_after_step(twin));
    bool refused = false;
    static_cast<void>(allocations(
        [&] {
          try {
            cache.reset(large);
          } catch (const std::bad_alloc&) {
            refused = true;
          }
        },
        fails));
    if (!refused) break;
    ++failures;
    REQUIRE(cache.step() == 1);
    REQUIRE(cache.shape().rows() == small.rows());
    for (int more = 0; more < 5; ++more)
      REQUIRE(hidden_after_step(cache) == hidden_after_step(twin));
  }
  REQUIRE(failures >= 4);
}
