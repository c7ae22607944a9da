// SPDX-License-Identifier: Apache-2.0
#include "dllm_cache/feature_cache.hpp"

#include <catch2/catch.hpp>
#include <cstring>
#include <fstream>
#include <string>
#include <type_traits>
#include <vector>

#include "dllm_cache/policies/block_cache.hpp"
#include "dllm_cache/policies/block_verify.hpp"
#include "dllm_cache/policies/dllm_cache.hpp"
#include "dllm_cache/workspace.hpp"
#include "tests/support/cached_run.hpp"
#include "tests/support/exact_refusal.hpp"
#include "tests/support/plain_dllm_cache.hpp"
#include "tests/support/scalars.hpp"
#include "tests/support/scripted_policy.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;
using Catch::Contains;

namespace {

constexpr std::uint64_t seed = 2026;

// Runs a cache beside the plain forward: every row in the pass must be equal at every step, and in
// steps marked as full every row must be in the pass.
template <class Scalar, class Stored>
void require_plain_forward(const AnyPolicy& policy, const SequenceShape& shape, Index layers,
                           Index steps) {
  INFO("seed " << seed << ", prompt " << shape.prompt << ", response " << shape.response
               << ", layers " << layers);
  const TinyModel<Scalar, Stored> model(layers, seed);
  NanResource memory;
  Workspace<Scalar, Stored> workspace(&memory);
  FeatureCache<Scalar, Stored> cache(model.shape(), shape, policy, &memory);
  RandomNumbers random(seed);
  std::vector<Index> tokens = start_tokens(model, shape, random);
  for (Index step = 0; step < steps; ++step) {
    INFO("step " << step);
    const Matrix<Scalar> x = model.embed(tokens);
    const auto in_pass = run_step(workspace, cache, model, x);
    REQUIRE(in_pass.rows.size() >= static_cast<std::size_t>(shape.response));
    REQUIRE(first_difference(in_pass, plain_forward(model, shape, x)) == std::nullopt);
    if (shape.response > 0) REQUIRE(in_pass.rows.back() == shape.rows() - 1);
    commit_tokens(tokens, shape, random);
  }
}

struct Setting {
  Index prompt_interval, response_interval;
  double ratio;
  double similarity_threshold = no_similarity_threshold;
};

// Runs a cache beside the second implementation: every row in the pass, and every key and value of
// the response, must be equal at every step.
template <class Scalar, class Stored>
void require_plain_dllm_cache(const Setting& setting, bool refresh_first_layer,
                              const SequenceShape& shape, Index layers, Index steps = 22,
                              Index kv_heads = 2) {
  INFO("seed " << seed << ", K_p " << setting.prompt_interval << ", K_r "
               << setting.response_interval << ", ratio " << setting.ratio << ", first layer "
               << refresh_first_layer << ", prompt " << shape.prompt << ", response "
               << shape.response << ", shift " << shape.prediction_shift << ", layers " << layers);
  const TinyModel<Scalar, Stored> model(layers, seed, kv_heads);
  PlainDllmCache<Scalar, Stored> expected(model, shape);
  expected.prompt_interval = setting.prompt_interval;
  expected.response_interval = setting.response_interval;
  expected.ratio = setting.ratio;
  expected.similarity_threshold = setting.similarity_threshold;
  expected.refresh_first_layer = refresh_first_layer;
  NanResource memory;
  Workspace<Scalar, Stored> workspace(&memory);
  FeatureCache<Scalar, Stored> cache(
      model.shape(), shape,
      setting.similarity_threshold == no_similarity_threshold
          ? AnyPolicy(DllmCachePolicy{.prompt_interval = setting.prompt_interval,
                                      .response_interval = setting.response_interval,
                                      .ratio = setting.ratio,
                                      .refresh_first_layer = refresh_first_layer})
          : AnyPolicy(BlockVerifyPolicy{.prompt_interval = setting.prompt_interval,
                                        .response_interval = setting.response_interval,
                                        .ratio = setting.ratio,
                                        .similarity_threshold = setting.similarity_threshold,
                                        .recompute_block = false,
                                        .refresh_first_layer = refresh_first_layer}),
      &memory);
  RandomNumbers random(seed);
  std::vector<Index> tokens = start_tokens(model, shape, random);
  for (Index step = 0; step < steps; ++step) {
    INFO("step " << step);
    const Matrix<Scalar> x = model.embed(tokens);
    const Matrix<Scalar> hidden = expected.step(x);
    const auto in_pass = run_step(workspace, cache, model, x);
    const Index first =
        step % setting.prompt_interval == 0 ? 0 : shape.prompt - shape.prediction_shift;
    REQUIRE(in_pass.rows == range(first, shape.rows()));
    REQUIRE(first_difference(in_pass, hidden) == std::nullopt);
    for (Index layer = 0; layer < layers; ++layer) {
      const auto kv = static_cast<std::size_t>(model.shape().kv_width);
      const auto size = static_cast<std::size_t>(shape.rows()) * kv;
      REQUIRE(std::equal(cache.keys(layer).data, cache.keys(layer).data + size,
                         expected.keys(layer).data.begin()));
      REQUIRE(std::equal(cache.values(layer).data, cache.values(layer).data + size,
                         expected.values(layer).data.begin()));
    }
    commit_tokens(tokens, shape, random);
  }
}

}  // namespace

TEMPLATE_TEST_CASE("FeatureCache: a full refresh equals the plain forward",
                   "[feature_cache][property]", FloatInFloat, DoubleInDouble, FloatInBfloat16,
                   FloatInHalf, DoubleInFloat) {
  using Scalar = typename TestType::Compute;
  using Stored = typename TestType::Stored;
  for (const Index layers : {1, 3})
    for (const SequenceShape shape :
         {SequenceShape{.prompt = 7, .response = 17}, SequenceShape{.prompt = 0, .response = 1},
          SequenceShape{.prompt = 2, .response = 0}}) {
      require_plain_forward<Scalar, Stored>(NoCache{}, shape, layers, 4);
      require_plain_forward<Scalar, Stored>(
          DllmCachePolicy{.prompt_interval = 1, .response_interval = 1}, shape, layers, 4);
    }
}

TEST_CASE("FeatureCache: prompt interval 1 with ratio 1 equals the plain forward",
          "[feature_cache][property]") {
  for (const Index response_interval : {Index{2}, Index{5}, never})
    for (const bool first : {true, false})
      for (const Index shift : {0, 1})
        require_plain_forward<float, float>(
            DllmCachePolicy{1, response_interval, 1.0, first},
            {.prompt = 7, .response = 17, .prediction_shift = shift}, 3, 12);
}

TEST_CASE("FeatureCache: with ratio 1 the response is as good as due at any prompt interval",
          "[feature_cache][property]") {
  for (const Index prompt_interval : {Index{1}, Index{3}, never}) {
    INFO("seed " << seed << ", K_p " << prompt_interval);
    const TinyModel<float> model(3, seed);
    const SequenceShape shape{.prompt = 5, .response = 9};
    NanResource memory;
    Workspace<float> workspace(&memory);
    FeatureCache<float> verified(model.shape(), shape, DllmCachePolicy{prompt_interval, never, 1.0},
                                 &memory);
    FeatureCache<float> due(model.shape(), shape, DllmCachePolicy{prompt_interval, 1, 0.0},
                            &memory);
    RandomNumbers random(seed);
    std::vector<Index> tokens = start_tokens(model, shape, random);
    for (int step = 0; step < 12; ++step) {
      INFO("step " << step);
      const auto x = model.embed(tokens);
      REQUIRE(run_step(workspace, verified, model, x) == run_step(workspace, due, model, x));
      commit_tokens(tokens, shape, random);
    }
  }
}

TEST_CASE("FeatureCache: a cache that reuses does differ from the plain forward",
          "[feature_cache]") {
  // The properties above would pass with a cache that never caches: this one would not.
  const TinyModel<float> model(2, seed);
  const SequenceShape shape{.prompt = 3, .response = 6};
  Workspace<float> workspace;
  FeatureCache<float> cache(model.shape(), shape, DllmCachePolicy{never, never, 0.25});
  RandomNumbers random(seed);
  std::vector<Index> tokens = start_tokens(model, shape, random);
  run_step(workspace, cache, model, model.embed(tokens));
  commit_tokens(tokens, shape, random);
  const auto x = model.embed(tokens);
  REQUIRE(first_difference(run_step(workspace, cache, model, x), plain_forward(model, shape, x)));
}

TEST_CASE("FeatureCache: dLLM-Cache equals a second implementation in every shape",
          "[feature_cache][property]") {
  for (const bool first : {true, false})
    for (const Index prompt : {0, 1, 2, 7})
      for (const Index response : {1, 2, 17})
        for (const Index layers : {1, 2, 3})
          require_plain_dllm_cache<float, float>({5, 3, 0.25}, first,
                                                 {.prompt = prompt, .response = response}, layers);
}

TEST_CASE("FeatureCache: dLLM-Cache equals a second implementation at every setting",
          "[feature_cache][property]") {
  const SequenceShape shape{.prompt = 7, .response = 17};
  for (const bool first : {true, false})
    for (const Setting& setting :
         {Setting{1, 1, 0.25}, Setting{1, 4, 0.3}, Setting{4, 1, 0.5}, Setting{2, 3, 0.0},
          Setting{3, 2, 1.0}, Setting{7, 7, 0.5}, Setting{never, never, 0.1}, Setting{6, 4, 0.01},
          Setting{3, never, 0.0}, Setting{never, 2, 0.75}}) {
      require_plain_dllm_cache<float, float>(setting, first, shape, 3);
      require_plain_dllm_cache<double, double>(setting, first, shape, 2);
    }
}

TEST_CASE("FeatureCache: dLLM-Cache with a similarity threshold equals a second implementation",
          "[feature_cache][property]") {
  const SequenceShape shape{.prompt = 7, .response = 17};
  for (const bool first : {true, false})
    for (const double threshold : {-1.0, 0.0, 0.5, 0.9, 0.99, 1.0})
      for (const Setting& setting :
           {Setting{5, 3, 1.0, threshold}, Setting{never, 7, 0.25, threshold},
            Setting{2, 3, 0.5, threshold}}) {
        require_plain_dllm_cache<float, float>(setting, first, shape, 3);
        require_plain_dllm_cache<float, Eigen::bfloat16>(setting, first, shape, 2);
      }
}

TEST_CASE("FeatureCache: dLLM-Cache with a shifted head equals a second implementation",
          "[feature_cache][property]") {
  for (const bool first : {true, false})
    for (const Index prompt : {1, 2, 7})
      for (const Setting& setting : {Setting{5, 3, 0.25}, Setting{never, 2, 0.5},
                                     Setting{3, 1, 0.25}, Setting{2, 3, 0.0}, Setting{1, 4, 0.25}})
        require_plain_dllm_cache<float, float>(
            setting, first, {.prompt = prompt, .response = 9, .prediction_shift = 1}, 3);
}

TEMPLATE_TEST_CASE("FeatureCache: dLLM-Cache rounds what it keeps, once",
                   "[feature_cache][property]", FloatInBfloat16, FloatInHalf, DoubleInFloat) {
  for (const Setting& setting : {Setting{5, 3, 0.25}, Setting{3, 4, 0.0}, Setting{never, 5, 0.5}})
    require_plain_dllm_cache<typename TestType::Compute, typename TestType::Stored>(
        setting, true, {.prompt = 3, .response = 17, .prediction_shift = 1}, 3);
}

TEST_CASE("FeatureCache: dLLM-Cache equals a second implementation with wide values",
          "[feature_cache][property]") {
  require_plain_dllm_cache<double, double>({5, 4, 0.25}, true, {.prompt = 3, .response = 17}, 3, 20,
                                           9);
}

TEST_CASE("FeatureCache: a prompt without a response is in the pass when it is due only",
          "[feature_cache]") {
  const TinyModel<float> model(2, seed);
  Workspace<float> workspace;
  FeatureCache<float> cache(model.shape(), {.prompt = 3}, DllmCachePolicy{.prompt_interval = 2});
  const auto x = model.embed({1, 2, 3});
  REQUIRE(run_step(workspace, cache, model, x).rows == range(0, 3));
  REQUIRE(run_step(workspace, cache, model, x).rows.empty());
  REQUIRE(cache.step() == 2);
  REQUIRE(run_step(workspace, cache, model, x).rows == range(0, 3));
}

TEST_CASE("FeatureCache: rows are rotated by the caller's positions", "[feature_cache]") {
  const TinyModel<float> model(2, seed);
  const std::vector<std::int32_t> positions{3, 4, 9, 10, 2, 40};
  const SequenceShape shape{.prompt = 2, .response = 4, .positions = positions};
  RandomNumbers random(seed);
  NanResource memory;
  Workspace<float> workspace(&memory);
  FeatureCache<float> cache(model.shape(), shape, DllmCachePolicy{3, 2, 0.5}, &memory);
  std::vector<Index> tokens = start_tokens(model, shape, random);
  CallLog log;
  for (int step = 0; step < 7; ++step) {
    const auto x = model.embed(tokens);
    const auto in_pass = run_step(workspace, cache, model, x, {}, &log);
    if (step % 6 == 0)
      REQUIRE(first_difference(in_pass, plain_forward(model, shape, x)) == std::nullopt);
    if (step == 2) REQUIRE(log.positions == std::vector<std::int32_t>{9, 10, 2, 40});
    commit_tokens(tokens, shape, random);
  }
}

TEST_CASE("FeatureCache: under block-causal attention a full step equals the plain forward",
          "[feature_cache][block_causal]") {
  const TinyModel<float> model(3, seed);
  for (const Index block : {1, 2, 3, 4, 11, 50})
    for (const Index phase : {0, 2, 3, 5}) {
      const SequenceShape shape{
          .prompt = 3, .response = 8, .attention_block = block, .attention_phase = phase};
      INFO("seed " << seed << ", attention block " << block << ", phase " << phase);
      NanResource memory;
      Workspace<float> workspace(&memory);
      FeatureCache<float> cache(model.shape(), shape, NoCache{}, &memory);
      RandomNumbers random(seed);
      const auto tokens = start_tokens(model, shape, random);
      const auto x = model.embed(tokens);
      REQUIRE(first_difference(run_step(workspace, cache, model, x),
                               plain_forward(model, shape, x)) == std::nullopt);
    }
}

TEST_CASE("FeatureCache: under block-causal attention later blocks do not exist yet",
          "[feature_cache][block_causal]") {
  // Keeps what lies before the active block, recomputes the block: exact, since the block's rows
  // are all that changes and nothing before them sees them.
  const ScriptedPolicy policy{{.name = "blocks", .needs_block = true},
                              [](const StepContext& context, StepPlan& plan) {
                                plan.recompute({context.block.begin, context.live().end});
                              }};
  const TinyModel<float> model(3, seed);
  const SequenceShape shape{.prompt = 3, .response = 8, .attention_block = 4, .attention_phase = 3};
  NanResource memory;
  Workspace<float> workspace(&memory);
  FeatureCache<float> cache(model.shape(), shape, policy, &memory);
  RandomNumbers random(seed);
  std::vector<Index> tokens = start_tokens(model, shape, random);
  for (const Range block : {Range{3, 7}, Range{3, 7}, Range{7, 11}, Range{7, 11}}) {
    for (Index row = block.begin; row < block.end; ++row)
      tokens[static_cast<std::size_t>(row)] = random.below(12);
    INFO("seed " << seed << ", step " << cache.step());
    auto x = model.embed(tokens);
    x.rows = block.end;  // the rest does not exist
    CallLog log;
    std::vector<std::uint8_t> changed(tokens.size());
    std::fill(changed.begin() + block.begin, changed.begin() + block.end, std::uint8_t{1});
    const auto in_pass =
        run_step(workspace, cache, model, x, {.block = block, .changed = changed}, &log);
    REQUIRE(in_pass.rows == range(cache.step() == 1 ? 0 : block.begin, block.end));
    SequenceShape live = shape;
    live.response = block.end - shape.prompt;
    REQUIRE(first_difference(in_pass, plain_forward(model, live, x)) == std::nullopt);
    REQUIRE(log.segment_sizes ==
            (cache.step() == 1 ? std::vector<Index>{3, 4} : std::vector<Index>{4}));
    REQUIRE(log.segment_keys ==
            (cache.step() == 1 ? std::vector<Index>{3, 7} : std::vector<Index>{block.end}));
    REQUIRE(log.broken_rule.empty());
  }
}

TEST_CASE("FeatureCache: outside the cached layers every row in the pass is recomputed",
          "[feature_cache]") {
  const TinyModel<float> model(4, seed);
  const SequenceShape shape{.prompt = 2, .response = 4};
  const ScriptedPolicy policy{{.name = "middle", .stored_deltas = {0, 6}},
                              [](const StepContext&, StepPlan& plan) {
                                plan.reuse({1, 4});
                                plan.verify({4, 6}, 1);
                                plan.cached_layers = {1, 3};
                              }};
  Workspace<float> workspace;
  FeatureCache<float> cache(model.shape(), shape, policy);
  RandomNumbers random(seed);
  const auto x = model.embed(start_tokens(model, shape, random));
  run_step(workspace, cache, model, x);
  CallLog log;
  REQUIRE(run_step(workspace, cache, model, x, {}, &log).rows == range(1, 6));
  REQUIRE(log.layers == std::vector<LayerRows>{{5, 5, 5}, {2, 1, 1}, {2, 1, 1}, {5, 5, 5}});
}

TEST_CASE("FeatureCache: a clone taken in mid-run continues as the original does",
          "[feature_cache]") {
  const TinyModel<float> model(3, seed);
  const SequenceShape shape{.prompt = 4, .response = 9, .prediction_shift = 1};
  RandomNumbers random(seed);
  for (const Index pause : {0, 1, 3, 4}) {
    NanResource memory;
    Workspace<float> workspace(&memory);
    FeatureCache<float> original(model.shape(), shape, DllmCachePolicy{5, 3, 0.3}, &memory);
    std::vector<Index> tokens = start_tokens(model, shape, random);
    for (Index step = 0; step < pause; ++step) {
      run_step(workspace, original, model, model.embed(tokens));
      commit_tokens(tokens, shape, random);
    }
    const std::size_t held = memory.bytes_held();
    FeatureCache<float> copy = original.clone();
    REQUIRE(memory.bytes_held() == held + static_cast<std::size_t>(original.bytes()));
    REQUIRE(copy.counts() == original.counts());
    REQUIRE(copy.step() == pause);
    std::vector<PassRows<float>> results;
    std::vector<std::vector<Index>> inputs;
    for (int step = 0; step < 8; ++step) {
      inputs.push_back(tokens);
      results.push_back(run_step(workspace, original, model, model.embed(tokens)));
      commit_tokens(tokens, shape, random);
    }
    for (std::size_t step = 0; step < results.size(); ++step) {
      INFO("cloned after " << pause << " steps, step " << step << " after that");
      REQUIRE(run_step(workspace, copy, model, model.embed(inputs[step])) == results[step]);
    }
    REQUIRE(copy.counts() == original.counts());
  }
}

TEST_CASE("FeatureCache: a moved cache continues where it was", "[feature_cache]") {
  const TinyModel<float> model(2, seed);
  const SequenceShape shape{.prompt = 2, .response = 5};
  RandomNumbers random(seed);
  Workspace<float> workspace;
  FeatureCache<float> cache(model.shape(), shape, DllmCachePolicy{4, 3, 0.4});
  const auto tokens = start_tokens(model, shape, random);
  run_step(workspace, cache, model, model.embed(tokens));
  auto changed = tokens;
  commit_tokens(changed, shape, random);
  FeatureCache<float> twin = cache.clone();
  const auto expected = run_step(workspace, twin, model, model.embed(changed));
  FeatureCache<float> moved = std::move(cache);
  FeatureCache<float> assigned(model.shape(), {.response = 1}, NoCache{});
  assigned = std::move(moved);
  REQUIRE(run_step(workspace, assigned, model, model.embed(changed)) == expected);
  REQUIRE(assigned.counts() == twin.counts());
}

TEST_CASE("FeatureCache: after reset it equals a new cache", "[feature_cache]") {
  const TinyModel<float> model(3, seed);
  const DllmCachePolicy policy{4, 3, 0.3};
  NanResource memory;
  Workspace<float> workspace(&memory);
  RandomNumbers random(seed);
  FeatureCache<float> used(model.shape(), {.prompt = 6, .response = 9}, policy, &memory);
  // Smaller, the same size as before, then larger than ever.
  for (const SequenceShape shape :
       {SequenceShape{.prompt = 2, .response = 5},
        SequenceShape{.prompt = 6, .response = 9, .prediction_shift = 1},
        SequenceShape{.prompt = 8, .response = 20}}) {
    for (int step = 0; step < 2; ++step)
      run_step(workspace, used, model,
               model.embed(std::vector<Index>(static_cast<std::size_t>(used.shape().rows()), 3)));
    used.reset(shape);
    FeatureCache<float> fresh(model.shape(), shape, policy, &memory);
    REQUIRE(used.stale());
    REQUIRE(used.step() == 0);
    REQUIRE(used.counts() == RowCounts{});
    REQUIRE(used.bytes() == fresh.bytes());
    REQUIRE(used.stored_deltas() == fresh.stored_deltas());
    std::vector<Index> tokens = start_tokens(model, shape, random);
    for (int step = 0; step < 9; ++step) {
      INFO("seed " << seed << ", prompt " << shape.prompt << ", step " << step);
      const auto x = model.embed(tokens);
      REQUIRE(run_step(workspace, used, model, x) == run_step(workspace, fresh, model, x));
      commit_tokens(tokens, shape, random);
    }
    REQUIRE(used.counts() == fresh.counts());
  }
}

TEST_CASE("FeatureCache: a reset that is refused or runs out of memory changes nothing",
          "[feature_cache][refusal]") {
  const TinyModel<float> model(2, seed);
  const SequenceShape shape{.prompt = 2, .response = 5};
  NanResource memory;
  Workspace<float> workspace;
  FeatureCache<float> cache(model.shape(), shape, DllmCachePolicy{4, 3, 0.4}, &memory);
  RandomNumbers random(seed);
  const auto x = model.embed(start_tokens(model, shape, random));
  run_step(workspace, cache, model, x);
  FeatureCache<float> twin = cache.clone();
  REQUIRE_THAT(refused_argument([&] { cache.reset({.prompt = -1, .response = 5}); }),
               Contains("prompt must be in"));
  memory.fail_from_now_on(true);
  REQUIRE_THROWS_AS(cache.reset({.prompt = 50, .response = 50}), std::bad_alloc);
  memory.fail_from_now_on(false);
  REQUIRE(cache.step() == 1);
  REQUIRE(cache.bytes() == twin.bytes());
  REQUIRE(run_step(workspace, cache, model, x) == run_step(workspace, twin, model, x));
}

TEST_CASE("FeatureCache: marked stale, the next step is a plain forward", "[feature_cache]") {
  const TinyModel<float> model(2, seed);
  const SequenceShape shape{.prompt = 2, .response = 5};
  Workspace<float> workspace;
  FeatureCache<float> cache(model.shape(), shape, DllmCachePolicy{never, never, 0.4});
  RandomNumbers random(seed);
  std::vector<Index> tokens = start_tokens(model, shape, random);
  run_step(workspace, cache, model, model.embed(tokens));
  commit_tokens(tokens, shape, random);
  cache.mark_stale();
  REQUIRE(cache.stale());
  const auto x = model.embed(tokens);
  const auto in_pass = run_step(workspace, cache, model, x);
  REQUIRE(in_pass.rows == range(0, 7));
  REQUIRE(first_difference(in_pass, plain_forward(model, shape, x)) == std::nullopt);
  REQUIRE_FALSE(cache.stale());
}

TEMPLATE_TEST_CASE("FeatureCache: holds keys and values of every row, deltas of reused ones",
                   "[feature_cache]", FloatInFloat, FloatInBfloat16, DoubleInDouble) {
  using Stored = typename TestType::Stored;
  using Cache = FeatureCache<typename TestType::Compute, Stored>;
  const ModelShape model{.layers = 3, .width = 6, .query_width = 16, .kv_width = 8};
  struct Case {
    DllmCachePolicy policy;
    Index shift, stored;
  };
  for (const Case& c : {Case{{}, 0, 5}, Case{{}, 1, 6}, Case{{.response_interval = 1}, 0, 0},
                        Case{{.response_interval = 1}, 1, 1}, Case{{.prompt_interval = 1}, 1, 5}}) {
    const SequenceShape shape{.prompt = 4, .response = 5, .prediction_shift = c.shift};
    NanResource memory;
    const Cache cache(model, shape, c.policy, &memory);
    const auto lines = [](Index elements) {  // bytes, each matrix from a multiple of 64 on
      return (elements * static_cast<Index>(sizeof(Stored)) + 63) / 64 * 64;
    };
    const Index expected = 3 * (2 * lines(9 * 8) + lines(c.stored * 6));
    REQUIRE(cache.bytes() == expected);
    REQUIRE(Cache::bytes_needed(model, shape, c.policy) == expected);
    REQUIRE(memory.bytes_held() == static_cast<std::size_t>(expected));
    REQUIRE(cache.stored_deltas().size() == c.stored);
  }
}

TEST_CASE("FeatureCache: without a cache it holds one layer's keys and values", "[feature_cache]") {
  const ModelShape model{.layers = 7, .width = 6, .query_width = 16, .kv_width = 8};
  const SequenceShape shape{.prompt = 4, .response = 5};
  NanResource memory;
  const FeatureCache<float> cache(model, shape, NoCache{}, &memory);
  REQUIRE(cache.bytes() == 2 * 320);  // 9 * 8 floats in whole lines of 64 bytes
  REQUIRE(FeatureCache<float>::bytes_needed(model, shape, NoCache{}) == 2 * 320);
  REQUIRE(memory.bytes_held() == 2 * 320);
}

TEST_CASE("FeatureCache: the features of all layers lie apart", "[feature_cache]") {
  const ModelShape model{.layers = 3, .width = 6, .query_width = 16, .kv_width = 8};
  const FeatureCache<float> cache(model, {.prompt = 4, .response = 5}, DllmCachePolicy{});
  const float* next = cache.keys(0).data;
  for (Index layer = 0; layer < 3; ++layer) {
    REQUIRE(cache.keys(layer).data == next);
    REQUIRE(cache.keys(layer).rows == 9);
    REQUIRE(cache.keys(layer).cols == 8);
    next += 80;  // 9 * 8, in whole lines of 16
    REQUIRE(cache.values(layer).data == next);
    REQUIRE(cache.values(layer).rows == 9);
    next += 80;
    REQUIRE(cache.deltas(layer).data == next);
    REQUIRE(cache.deltas(layer).rows == 5);
    REQUIRE(cache.deltas(layer).cols == 6);
    next += 32;  // 5 * 6
  }
}

TEST_CASE("FeatureCache: bad shapes are refused by field, range and value",
          "[feature_cache][refusal]") {
  const auto message = [](const ModelShape& model, const SequenceShape& shape,
                          const AnyPolicy& policy) {
    std::string needed = refused_argument(
        [&] { static_cast<void>(FeatureCache<float>::bytes_needed(model, shape, policy)); });
    REQUIRE(refused_argument([&] { FeatureCache<float>(model, shape, policy); }) == needed);
    return needed;
  };
  const ModelShape model{.layers = 3, .width = 6, .query_width = 16, .kv_width = 8};
  const auto with = [&](Index ModelShape::*field, Index value) {
    ModelShape changed = model;
    changed.*field = value;
    return message(changed, {.response = 5}, NoCache{});
  };
  REQUIRE_THAT(with(&ModelShape::layers, 0), Contains("layers must be in [1, 65536], got 0"));
  REQUIRE_THAT(with(&ModelShape::layers, 65537),
               Contains("layers must be in") && Contains("65537"));
  REQUIRE_THAT(with(&ModelShape::width, 0), Contains("width must be in [1, 16777216], got 0"));
  REQUIRE_THAT(with(&ModelShape::query_width, -4),
               Contains("query_width must be in [1, 16777216]"));
  REQUIRE_THAT(with(&ModelShape::kv_width, never), Contains("kv_width must be in [1, 16777216]"));
  REQUIRE_THAT(with(&ModelShape::row_multiple, 0),
               Contains("row_multiple must be in [1, 4096], got 0"));
  REQUIRE_THAT(with(&ModelShape::row_multiple, 4097),
               Contains("row_multiple must be in [1, 4096], got 4097"));
  REQUIRE_THAT(message(model, {}, NoCache{}), Contains("at least 1 row"));
  REQUIRE_THAT(message(model, {.response = 5}, DllmCachePolicy{.ratio = 2}), Contains("ratio"));
  REQUIRE_THAT(
      message({65536, 1 << 24, 1, 1 << 24}, {.response = Index{1} << 20}, DllmCachePolicy{}),
      Contains("features must fit in 2^62 bytes"));
}

TEST_CASE("FeatureCache: a reset refused for the policy's traits changes nothing",
          "[feature_cache][refusal]") {
  struct OddPolicy {  // stores too much when the prompt is long
    PolicyTraits traits(const SequenceShape& shape) const {
      return {.name = "odd", .stored_deltas = {0, shape.rows() + (shape.prompt > 5 ? 1000 : 0)}};
    }
    void plan(const StepContext& context, StepPlan& plan) const { plan.reuse(context.live()); }
  };
  const TinyModel<float> model(2, seed);
  NanResource memory;
  Workspace<float> workspace;
  FeatureCache<float> cache(model.shape(), {.prompt = 1, .response = 3}, OddPolicy{}, &memory);
  const auto x = model.embed({1, 2, 3, 4});
  const auto before = run_step(workspace, cache, model, x);
  const SequenceShape longer{.prompt = 6, .response = 3};
  REQUIRE_THAT(refused_argument([&] { cache.reset(longer); }), Contains("stored_deltas must lie"));
  REQUIRE(run_step(workspace, cache, model, x) == before);
  REQUIRE_THAT(
      refused_argument([&] {
        static_cast<void>(FeatureCache<float>::bytes_needed(model.shape(), longer, OddPolicy{}));
      }),
      Contains("stored_deltas must lie"));
}

TEST_CASE("FeatureCache: forks share memory until one of them writes", "[feature_cache][fork]") {
  const TinyModel<float> model(2, seed);
  const SequenceShape shape{.prompt = 40, .response = 8, .attention_block = 8};
  Workspace<float> workspace;
  FeatureCache<float> first(model.shape(), shape, BlockCachePolicy{});
  RandomNumbers random(seed);
  const std::vector<Index> tokens = start_tokens(model, shape, random);
  const auto x = model.embed(tokens);
  run_step(workspace, first, model, x, {.block = {40, 48}});
  FeatureCache<float> second = first.fork();
  FeatureCache<float> third = second.fork();
  CHECK(first.own_bytes() == first.bytes());
  CHECK(second.own_bytes() == 0);
  const std::vector<float> before(second.keys(1).row(0), second.keys(1).row(0) + 48 * 4);
  std::vector<std::uint8_t> changed(48);
  changed[41] = 1;
  run_step(workspace, first, model, x, {.block = {40, 48}, .changed = changed});
  run_step(workspace, third, model, x, {.block = {40, 48}, .changed = changed});
  CHECK(third.own_bytes() == third.bytes() / 48 * 8);
  CHECK(second.own_bytes() == 0);
  CHECK(std::equal(before.begin(), before.end(), second.keys(1).row(0)));
  // Whoever goes first takes nothing from the others.
  first.reset(shape);
  run_step(workspace, first, model, x, {.block = {40, 48}});
  { const FeatureCache<float> gone = std::move(first); }
  first = third.clone();
  third = second.fork();
  CHECK(std::equal(before.begin(), before.end(), third.keys(1).row(0)));
  CHECK(first.own_bytes() == first.bytes());
  FeatureCache<float> never_computed(model.shape(), shape, BlockCachePolicy{});
  CHECK(never_computed.fork().stale());
}

#if defined(__linux__)
TEST_CASE("FeatureCache: what forks share takes memory once", "[feature_cache][fork]") {
  const auto anonymous_bytes = [] {
    std::ifstream status("/proc/self/status");
    std::string word;
    long kilobytes = 0;
    while (status >> word)
      if (word == "RssAnon:") status >> kilobytes;
    return static_cast<double>(kilobytes) * 1024.0;
  };
  const SequenceShape shape{.prompt = 4096, .response = 64, .attention_block = 32};
  FeatureCache<float> first({.layers = 4, .width = 64, .query_width = 64, .kv_width = 256}, shape,
                            BlockCachePolicy{});
  const auto bytes = static_cast<double>(first.bytes());  // 32 MiB
  std::vector<FeatureCache<float>> forks;
  forks.push_back(first.fork());
  const double before = anonymous_bytes();
  for (int i = 0; i < 7; ++i) forks.push_back(first.fork());
  // They are read, and hold what the first one does.
  for (const auto& one : forks)
    for (Index row = 0; row < shape.rows(); ++row)
      REQUIRE(std::memcmp(one.values(3).row(row), first.values(3).row(row), 256 * sizeof(float)) ==
              0);
  CHECK(anonymous_bytes() - before < bytes);
}
#endif
