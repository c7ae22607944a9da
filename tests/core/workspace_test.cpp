// SPDX-License-Identifier: Apache-2.0
#include "dllm_cache/workspace.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <limits>
#include <vector>

#include "dllm_cache/policies/block_verify.hpp"
#include "dllm_cache/policies/dllm_cache.hpp"
#include "tests/support/cached_run.hpp"
#include "tests/support/exact_refusal.hpp"
#include "tests/support/plain_dllm_cache.hpp"
#include "tests/support/scripted_policy.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;
using Catch::Contains;

namespace {

constexpr std::uint64_t seed = 77;

// Three sequences of different lengths and policies on one model.
struct Trio {
  TinyModel<float> model{3, seed};
  std::vector<SequenceShape> shapes{{.prompt = 5, .response = 8},
                                    {.prompt = 2, .response = 17, .prediction_shift = 1},
                                    {.prompt = 0, .response = 3}};
  std::vector<AnyPolicy> policies{DllmCachePolicy{5, 3, 0.25}, DllmCachePolicy{4, 2, 0.5},
                                  NoCache{}};
  NanResource memory;
  Workspace<float> workspace{&memory};

  [[nodiscard]] FeatureCache<float> cache(std::size_t i) {
    return {model.shape(), shapes[i], policies[i], &memory};
  }
};

}  // namespace

TEST_CASE("Workspace: a sequence in a batch equals the sequence alone", "[workspace][property]") {
  Trio trio;
  RandomNumbers random(seed);
  std::vector<FeatureCache<float>> alone, together;
  std::vector<std::vector<Index>> tokens;
  for (std::size_t i = 0; i < 3; ++i) {
    alone.push_back(trio.cache(i));
    together.push_back(trio.cache(i));
    tokens.push_back(start_tokens(trio.model, trio.shapes[i], random));
  }
  for (int step = 0; step < 24; ++step) {
    // Any subset in any order, so that the sequences come to stand at different steps.
    std::vector<std::size_t> order{0, 1, 2};
    std::swap(order[0], order[static_cast<std::size_t>(random.below(3))]);
    std::swap(order[1], order[static_cast<std::size_t>(1 + random.below(2))]);
    order.resize(static_cast<std::size_t>(1 + random.below(3)));
    std::vector<FeatureCache<float>*> caches;
    std::vector<Matrix<float>> all;
    for (const std::size_t i : order) {
      caches.push_back(&together[i]);
      all.push_back(trio.model.embed(tokens[i]));
    }
    CallLog log;
    const std::vector<StepInput> inputs(order.size());
    auto pass = trio.workspace.begin_step(caches, inputs);
    const auto batch = run_pass(pass, trio.model, all, &log, 3);
    REQUIRE(log.broken_rule.empty());
    for (std::size_t j = 0; j < order.size(); ++j) {
      INFO("seed " << seed << ", batch " << step << ", sequence " << order[j]);
      REQUIRE(batch[j] == run_step(trio.workspace, alone[order[j]], trio.model, all[j]));
      commit_tokens(tokens[order[j]], trio.shapes[order[j]], random);
    }
  }
  for (std::size_t i = 0; i < 3; ++i) {
    REQUIRE(together[i].counts() == alone[i].counts());
    REQUIRE(together[i].step() == alone[i].step());
    REQUIRE(together[i].step() > 5);
  }
  REQUIRE(together[0].step() != together[1].step());
}

TEST_CASE("Workspace: when nothing changed, any plan at all equals the plain forward",
          "[workspace][property]") {
  // Whatever is recomputed, verified, reused or absent, with gaps wherever they fall: features that
  // are still true give the same hidden states, unless a row lands in another row's place.
  RandomNumbers random(seed);
  const ScriptedPolicy policy{{.name = "dice", .stored_deltas = {0, 6}},
                              [&](const StepContext& context, StepPlan& plan) {
                                Index verified = 0;
                                for (RowAction& row : plan.rows) {
                                  row = static_cast<RowAction>(random.below(4));
                                  if (row == RowAction::Verify) ++verified;
                                }
                                plan.verify_count = random.below(verified + 1);
                                plan.cached_layers.begin = random.below(2);
                                plan.cached_layers.end = context.layers - random.below(2);
                              }};
  const TinyModel<float> model(3, seed);
  for (const Index block : {0, 4}) {
    const SequenceShape shape{.prompt = 2, .response = 4, .attention_block = block};
    NanResource memory;
    Workspace<float> workspace(&memory);
    std::vector<FeatureCache<float>> caches;
    std::vector<FeatureCache<float>*> batch;
    std::vector<Matrix<float>> all, expected;
    for (int i = 0; i < 3; ++i) {
      caches.push_back({model.shape(), shape, policy, &memory});
      all.push_back(model.embed({random.below(12), random.below(12), random.below(12),
                                 random.below(12), random.below(12), random.below(12)}));
      expected.push_back(plain_forward(model, shape, all.back()));
    }
    for (auto& cache : caches) batch.push_back(&cache);
    const std::vector<StepInput> inputs(3);
    for (int step = 0; step < 200; ++step) {
      CallLog log;
      auto pass = workspace.begin_step(batch, inputs);
      const auto in_pass = run_pass(pass, model, all, &log, step % 2);
      REQUIRE(log.broken_rule.empty());
      for (std::size_t i = 0; i < 3; ++i) {
        INFO("seed " << seed << ", attention block " << block << ", step " << step << ", sequence "
                     << i);
        REQUIRE(first_difference(in_pass[i], expected[i]) == std::nullopt);
      }
    }
  }
}

TEST_CASE("Workspace: the first rows of one sequence do not continue the last rows of another",
          "[workspace]") {
  // Rows 0 to 3 of the first sequence, then rows 4 to 7 of the second.
  const TinyModel<float> model(2, seed);
  const ScriptedPolicy policy{{.name = "rest"}, [](const StepContext& context, StepPlan& plan) {
                                plan.recompute(context.response());
                              }};
  NanResource memory;
  Workspace<float> workspace(&memory);
  FeatureCache<float> first(model.shape(), {.response = 4}, policy, &memory),
      second(model.shape(), {.prompt = 4, .response = 4}, policy, &memory);
  const std::vector<FeatureCache<float>*> caches{&first, &second};
  const std::vector<StepInput> inputs(2);
  const std::vector<Matrix<float>> all{model.embed({1, 2, 3, 4}),
                                       model.embed({5, 6, 7, 8, 9, 10, 11, 12})};
  for (int step = 0; step < 2; ++step) {
    auto pass = workspace.begin_step(caches, inputs);
    const auto in_pass = run_pass(pass, model, all);
    REQUIRE(in_pass[1].rows == range(step == 0 ? 0 : 4, 8));
    REQUIRE(first_difference(in_pass[0], plain_forward(model, first.shape(), all[0])) ==
            std::nullopt);
    REQUIRE(first_difference(in_pass[1], plain_forward(model, second.shape(), all[1])) ==
            std::nullopt);
  }
}

TEST_CASE("Workspace: verified rows keep their own sums across a gap", "[workspace]") {
  const TinyModel<float> model(1, seed);
  const ScriptedPolicy policy{{.name = "gap", .stored_deltas = {0, 8}},
                              [](const StepContext&, StepPlan& plan) {
                                plan.verify({2, 8}, 1);
                                plan.recompute({4, 6});
                              }};
  Workspace<float> workspace;
  FeatureCache<float> cache(model.shape(), {.prompt = 2, .response = 6}, policy);
  std::vector<Index> tokens{1, 2, 3, 4, 5, 6, 7, 8};
  run_step(workspace, cache, model, model.embed(tokens));
  tokens[7] = 0;
  auto pass = workspace.begin_step(cache);
  run_pass(pass, model, {model.embed(tokens)});
  REQUIRE(std::vector<Index>(pass.recomputed().begin(), pass.recomputed().end()) ==
          std::vector<Index>{4, 5, 7});
  REQUIRE(pass.verified() == 4);
  REQUIRE(pass.verified_row(2) == 6);
  for (const Index j : {-1, 4})
    REQUIRE(refused_argument([&] { static_cast<void>(pass.verified_row(j)); }) ==
            "Pass: verified row must be in [0, 4), got " + std::to_string(j));
  for (std::size_t j = 0; j < 3; ++j) REQUIRE(similarity(pass.sums()[j]) == 1.0);
  REQUIRE(similarity(pass.sums()[3]) < 1.0);
}

TEST_CASE("Workspace: sequences of a batch pass their own inputs to their policies",
          "[workspace]") {
  const TinyModel<float> model(1, seed);
  std::vector<Range> seen;
  const ScriptedPolicy policy{{.name = "looking"}, [&](const StepContext& context, StepPlan& plan) {
                                seen.push_back(context.block);
                                plan.recompute(context.live());
                              }};
  Workspace<float> workspace;
  FeatureCache<float> first(model.shape(), {.response = 2}, policy),
      second(model.shape(), {.response = 3}, policy);
  const std::vector<FeatureCache<float>*> caches{&first, &second};
  const std::vector<StepInput> inputs{{.block = {0, 1}}, {.block = {1, 3}}};
  for (int step = 0; step < 2; ++step) {
    auto pass = workspace.begin_step(caches, inputs);
    run_pass(pass, model, {model.embed({1, 2}), model.embed({3, 4, 5})});
  }
  REQUIRE(seen == std::vector<Range>{{0, 1}, {1, 3}});
}

TEST_CASE("Workspace: exactly the planned rows are computed in every layer and step",
          "[workspace][counts]") {
  const TinyModel<float> model(3, seed);
  const SequenceShape shape{.prompt = 5, .response = 8, .prediction_shift = 1};
  // K_p 4, K_r 3, ratio 0.25: 2 of 8 rows selected; the last prompt row is in the pass always.
  const LayerRows both{13, 13, 13}, response{8, 8, 8}, selected{8, 2, 2}, none{0, 0, 0};
  const LayerRows row_and_response{9, 9, 9}, prompt_and_selected{13, 7, 7};
  struct Case {
    DllmCachePolicy policy;
    std::vector<std::vector<LayerRows>> steps;
  };
  const std::vector<Case> cases{
      {{4, 3, 0.25, true},
       {{both, both, both},
        {row_and_response, selected, selected},
        {row_and_response, selected, selected},
        {row_and_response, response, response},
        {both, prompt_and_selected, prompt_and_selected}}},
      {{4, 3, 0.25, false},
       {{both, both, both},
        {selected, selected, selected},
        {selected, selected, selected},
        {response, response, response},
        {prompt_and_selected, prompt_and_selected, prompt_and_selected}}},
      {{never, never, 0.0, true}, {{both, both, both}, {row_and_response, none, none}}},
      {{never, never, 0.0, false}, {{both, both, both}, {none, none, none}}},
      {{never, never, 0.1, false}, {{both, both, both}, {{8, 0, 0}, {8, 0, 0}, {8, 0, 0}}}},
  };
  for (const Case& c : cases) {
    RandomNumbers random(seed);
    Workspace<float> workspace;
    FeatureCache<float> cache(model.shape(), shape, c.policy);
    std::vector<Index> tokens = start_tokens(model, shape, random);
    RowCounts counts;
    for (std::size_t step = 0; step < c.steps.size(); ++step) {
      INFO("K_p " << c.policy.prompt_interval << ", ratio " << c.policy.ratio << ", first layer "
                  << c.policy.refresh_first_layer << ", step " << step);
      CallLog log;
      const auto in_pass = run_step(workspace, cache, model, model.embed(tokens), {}, &log);
      REQUIRE(log.layers == c.steps[step]);
      REQUIRE(log.broken_rule.empty());
      counts.rows += static_cast<Index>(in_pass.rows.size());
      for (const LayerRows& rows : c.steps[step]) {
        counts.values += rows.value;
        counts.recomputed += rows.delta;
      }
      REQUIRE(cache.counts() == counts);
      commit_tokens(tokens, shape, random);
    }
  }
}

TEST_CASE("Workspace: rows as similar as the threshold says are verified and left alone",
          "[workspace][counts]") {
  const TinyModel<float> model(2, seed);
  const SequenceShape shape{.prompt = 2, .response = 6};
  // Between two steps nothing changes but the tokens of rows 3 and 5: in layer 0 every other value
  // is the one before, bit for bit.
  std::vector<Index> tokens{1, 2, 3, 4, 5, 6, 7, 8};
  const auto rows_of = [&](double threshold, double ratio) {
    Workspace<float> workspace;
    FeatureCache<float> cache(model.shape(), shape,
                              BlockVerifyPolicy{.ratio = ratio,
                                                .similarity_threshold = threshold,
                                                .recompute_block = false,
                                                .refresh_first_layer = false});
    run_step(workspace, cache, model, model.embed(tokens));
    std::vector<Index> changed = tokens;
    changed[3] = 9;
    changed[5] = 10;
    CallLog log;
    run_step(workspace, cache, model, model.embed(changed), {}, &log);
    return log.layers.front();
  };
  CHECK(rows_of(no_similarity_threshold, 1.0) == LayerRows{6, 6, 6});
  CHECK(rows_of(1.0, 1.0) == LayerRows{6, 2, 2});
  CHECK(rows_of(1.0, 0.17) == LayerRows{6, 1, 1});  // the ratio still is the most
  CHECK(rows_of(-1.0, 1.0) == LayerRows{6, 0, 0});
}

TEST_CASE("Workspace: the counts of a batch are those of its sequences", "[workspace][counts]") {
  Trio trio;
  std::vector<FeatureCache<float>> caches;
  for (std::size_t i = 0; i < 3; ++i) caches.push_back(trio.cache(i));
  const std::vector<FeatureCache<float>*> batch{&caches[0], &caches[1], &caches[2]};
  const std::vector<StepInput> inputs(3);
  std::vector<Matrix<float>> all;
  for (const SequenceShape& shape : trio.shapes)
    all.push_back(trio.model.embed(std::vector<Index>(static_cast<std::size_t>(shape.rows()), 1)));
  CallLog log;
  for (int step = 0; step < 2; ++step) {
    auto pass = trio.workspace.begin_step(batch, inputs);
    run_pass(pass, trio.model, all, &log);
  }
  // First 13, 19 and 3 rows in 3 layers. Then layer 0 takes 8, 18 and 3; the others verify 8 and
  // 17, select 2 and 8, and the third sequence recomputes all.
  REQUIRE(caches[0].counts() ==
          RowCounts{.rows = 21, .values = 39 + 24, .recomputed = 39 + 8 + 2 * 2});
  REQUIRE(caches[1].counts() ==
          RowCounts{.rows = 37, .values = 57 + 18 + 34, .recomputed = 57 + 18 + 2 * 8});
  REQUIRE(caches[2].counts() == RowCounts{.rows = 6, .values = 18, .recomputed = 18});
}

TEST_CASE("Pass: says which rows are in the pass, where they lie and what became of them",
          "[workspace]") {
  Trio trio;
  auto first = trio.cache(0), second = trio.cache(1);
  const std::vector<FeatureCache<float>*> caches{&first, &second};
  const std::vector<StepInput> inputs(2);
  RandomNumbers random(seed);
  std::vector<std::vector<Index>> tokens{start_tokens(trio.model, trio.shapes[0], random),
                                         start_tokens(trio.model, trio.shapes[1], random)};
  for (int step = 0; step < 2; ++step) {
    auto pass = trio.workspace.begin_step(caches, inputs);
    REQUIRE(pass.sequences() == 2);
    REQUIRE(pass.open());
    const auto rows = [&](Index i) {
      return std::vector<Index>(pass.rows(i).begin(), pass.rows(i).end());
    };
    if (step == 0) {
      REQUIRE(pass.row_count() == 13 + 19);
      REQUIRE(rows(0) == range(0, 13));
      REQUIRE(pass.packed(1) == Range{13, 32});
    } else {
      REQUIRE(pass.row_count() == 8 + 18);
      REQUIRE(pass.packed(0) == Range{0, 8});
      REQUIRE(pass.packed(1) == Range{8, 26});
      REQUIRE(rows(0) == range(5, 13));
      REQUIRE(rows(1) == range(1, 19));
      REQUIRE(pass.find(5, 0) == 0);
      REQUIRE(pass.find(12, 0) == 7);
      REQUIRE(pass.find(4, 0) == std::nullopt);
      REQUIRE(pass.find(13, 0) == std::nullopt);
      REQUIRE(pass.find(-1, 0) == std::nullopt);
      REQUIRE(pass.find(1, 1) == 8);
      REQUIRE(pass.find(18, 1) == 25);
      REQUIRE(pass.find(0, 1) == std::nullopt);
    }
    run_pass(pass, trio.model, {trio.model.embed(tokens[0]), trio.model.embed(tokens[1])});
    REQUIRE_FALSE(pass.open());
    REQUIRE(pass.layers_done() == 3);
    if (step == 1) {
      REQUIRE(pass.verified(0) == 8);
      REQUIRE(pass.verified(1) == 17);
      REQUIRE(pass.verified_row(0, 0) == 5);
      REQUIRE(pass.verified_row(16, 1) == 18);
      REQUIRE(pass.sums(0).size() == 8);
      // What was recomputed is what the selector's rule says of the reported sums.
      for (const Index i : {0, 1}) {
        std::vector<Index> expected;
        VVerifySelector<float>().select(pass.sums(i), i == 0 ? 2 : 8, expected);
        for (Index& place : expected) place = pass.verified_row(place, i);
        REQUIRE(std::vector<Index>(pass.recomputed(i).begin(), pass.recomputed(i).end()) ==
                expected);
      }
    } else {
      REQUIRE(pass.verified(0) == 0);
      REQUIRE(pass.recomputed(1).size() == 19);
    }
    for (std::size_t i = 0; i < 2; ++i) commit_tokens(tokens[i], trio.shapes[i], random);
  }
}

TEST_CASE("Pass: a sequence that is not in the batch is refused", "[workspace][refusal]") {
  Trio trio;
  auto cache = trio.cache(0);
  const auto pass = trio.workspace.begin_step(cache);
  REQUIRE_THAT(refused_argument([&] { static_cast<void>(pass.rows(1)); }),
               Contains("Pass: sequence must be in [0, 1), got 1"));
  REQUIRE_THAT(refused_argument([&] { static_cast<void>(pass.packed(-1)); }),
               Contains("Pass: sequence must be in [0, 1), got -1"));
}

TEST_CASE("Pass: a misshapen x is refused and nothing has happened", "[workspace][refusal]") {
  Trio trio;
  auto cache = trio.cache(0);
  std::vector<float> memory(20 * 10);
  auto pass = trio.workspace.begin_step(cache);
  CallLog log;
  CountingLayer<TinyLayer<float>, float> layer(trio.model.layer(0), log);
  const auto message = [&](Index rows, Index cols, Index stride) {
    return refused_argument([&] {
      pass.layer(layer, MatrixView<float>{memory.data(), rows, cols, stride});
    });
  };
  REQUIRE_THAT(message(12, 6, 6), Contains("Pass: x must be [13, 6], got [12, 6]"));
  REQUIRE_THAT(message(14, 6, 6), Contains("Pass: x must be [13, 6], got [14, 6]"));
  REQUIRE_THAT(message(13, 7, 7), Contains("Pass: x must be [13, 6], got [13, 7]"));
  REQUIRE_THAT(message(13, 6, 5), Contains("Pass: x must be [13, 6]") && Contains("stride 5"));
  REQUIRE(log.calls == 0);
  REQUIRE(pass.open());
  REQUIRE(pass.layers_done() == 0);
  const auto x = trio.model.embed(std::vector<Index>(13, 2));
  REQUIRE(first_difference(run_pass(pass, trio.model, {x}).front(),
                           plain_forward(trio.model, trio.shapes[0], x)) == std::nullopt);
}

TEST_CASE("Pass: a layer too many is refused", "[workspace][refusal]") {
  Trio trio;
  auto cache = trio.cache(0);
  auto pass = trio.workspace.begin_step(cache);
  auto x = trio.model.embed(std::vector<Index>(13, 2));
  run_pass(pass, trio.model, {x});
  REQUIRE_THAT(refused_call([&] { pass.layer(trio.model.layer(0), x.view()); }),
               Contains("Pass: layer() after 3 of 3 layers, when the pass has ended"));
  REQUIRE(cache.step() == 1);
  REQUIRE_FALSE(cache.stale());
}

TEST_CASE("Workspace: a second open pass is refused, in one workspace or two",
          "[workspace][refusal]") {
  Trio trio;
  Workspace<float> other;
  auto first = trio.cache(0), second = trio.cache(1);
  auto pass = trio.workspace.begin_step(first);
  REQUIRE_THAT(refused_call([&] { static_cast<void>(trio.workspace.begin_step(second)); }),
               Contains("Workspace: begin_step() while a pass is open"));
  const std::vector<FeatureCache<float>*> both{&second, &first};
  const std::vector<StepInput> inputs(2);
  REQUIRE_THAT(refused_call([&] { static_cast<void>(other.begin_step(both, inputs)); }),
               Contains("begin_step() while a step is open"));
  REQUIRE_FALSE(second.planner().step_open());
  REQUIRE(first.planner().step_open());
  REQUIRE(pass.row_count() == 13);
  REQUIRE_NOTHROW(static_cast<void>(other.begin_step(second)));
}

TEST_CASE("Workspace: one cache twice in a batch is refused", "[workspace][refusal]") {
  Trio trio;
  auto cache = trio.cache(0);
  const std::vector<FeatureCache<float>*> twice{&cache, &cache};
  const std::vector<StepInput> inputs(2);
  REQUIRE_THAT(refused_call([&] { static_cast<void>(trio.workspace.begin_step(twice, inputs)); }),
               Contains("begin_step() while a step is open"));
  REQUIRE_FALSE(cache.planner().step_open());
}

TEST_CASE("Workspace: batches that do not fit together are refused", "[workspace][refusal]") {
  Trio trio;
  auto cache = trio.cache(0);
  const TinyModel<float> deeper(4, seed);
  FeatureCache<float> other(deeper.shape(), {.response = 2}, NoCache{});
  const auto message = [&](const std::vector<FeatureCache<float>*>& caches, std::size_t inputs) {
    const std::vector<StepInput> given(inputs);
    return refused_argument([&] { static_cast<void>(trio.workspace.begin_step(caches, given)); });
  };
  REQUIRE_THAT(message({}, 0), Contains("got 0 caches and 0 inputs"));
  REQUIRE_THAT(message({&cache}, 2), Contains("got 1 caches and 2 inputs"));
  REQUIRE_THAT(message({&cache, nullptr}, 2), Contains("a cache of the batch is null"));
  REQUIRE_THAT(message({&cache, &other}, 2),
               Contains("must have one model shape, that of cache 1 is not"));
  REQUIRE_FALSE(cache.planner().step_open());
}

TEST_CASE("Workspace: calls on a cache with an open pass are refused", "[workspace][refusal]") {
  Trio trio;
  auto cache = trio.cache(0);
  {
    const auto pass = trio.workspace.begin_step(cache);
    REQUIRE_THAT(refused_call([&] { cache.reset({.response = 1}); }),
                 Contains("FeatureCache: reset() while a pass is open"));
    REQUIRE_THAT(refused_call([&] { static_cast<void>(cache.clone()); }),
                 Contains("FeatureCache: clone() while a pass is open"));
    REQUIRE_THAT(refused_call([&] { cache.mark_stale(); }), Contains("while a step is open"));
  }
  REQUIRE_NOTHROW(cache.reset({.response = 1}));
}

TEST_CASE("Workspace: a plan refused in a batch touches none of its caches",
          "[workspace][refusal]") {
  Trio trio;
  bool bad = false;
  trio.policies[1] = ScriptedPolicy{{.name = "moody"}, [&](const StepContext&, StepPlan& plan) {
                                      bad ? plan.reuse({0, 1}) : plan.recompute({0, 19});
                                    }};
  auto first = trio.cache(0), second = trio.cache(1);
  auto first_alone = trio.cache(0), second_alone = trio.cache(1);
  RandomNumbers random(seed);
  const std::vector<Matrix<float>> all{
      trio.model.embed(start_tokens(trio.model, trio.shapes[0], random)),
      trio.model.embed(start_tokens(trio.model, trio.shapes[1], random))};
  const std::vector<FeatureCache<float>*> caches{&first, &second};
  const std::vector<StepInput> inputs(2);
  for (int step = 0; step < 6; ++step) {
    if (step > 0) {
      bad = true;
      REQUIRE_THAT(
          refused_call([&] { static_cast<void>(trio.workspace.begin_step(caches, inputs)); }),
          Contains("moody: row 0"));
      bad = false;
    }
    REQUIRE(first.step() == step);
    REQUIRE_FALSE(first.planner().step_open());
    REQUIRE_FALSE(second.planner().step_open());
    REQUIRE(first.stale() == (step == 0));
    auto pass = trio.workspace.begin_step(caches, inputs);
    const auto batch = run_pass(pass, trio.model, all);
    REQUIRE(batch[0] == run_step(trio.workspace, first_alone, trio.model, all[0]));
    REQUIRE(batch[1] == run_step(trio.workspace, second_alone, trio.model, all[1]));
  }
}

TEST_CASE("Workspace: a policy that throws leaves the cache unchanged", "[workspace]") {
  Trio trio;
  bool fail = false;
  trio.policies[0] = ScriptedPolicy{{.name = "moody", .stored_deltas = {5, 13}},
                                    [&](const StepContext& context, StepPlan& plan) {
                                      if (fail) throw CallbackError();
                                      plan.verify(context.response(), 2);
                                    }};
  auto cache = trio.cache(0), twin = trio.cache(0);
  RandomNumbers random(seed);
  std::vector<Index> tokens = start_tokens(trio.model, trio.shapes[0], random);
  for (int step = 0; step < 5; ++step) {
    const auto x = trio.model.embed(tokens);
    if (step > 0) {
      fail = true;
      REQUIRE_THROWS_AS(static_cast<void>(trio.workspace.begin_step(cache)), CallbackError);
      fail = false;
      REQUIRE_FALSE(cache.stale());
    }
    REQUIRE(run_step(trio.workspace, cache, trio.model, x) ==
            run_step(trio.workspace, twin, trio.model, x));
    commit_tokens(tokens, trio.shapes[0], random);
  }
}

TEST_CASE("Workspace: after a callback throws anywhere the next step is a plain forward",
          "[workspace][property]") {
  Trio trio;
  const DllmCachePolicy policy{5, 3, 0.25};
  const SequenceShape& shape = trio.shapes[0];
  for (const Index broken_step : {0, 1, 2, 3, 5})
    for (Index throw_at = 0; throw_at < 9; ++throw_at) {
      INFO("seed " << seed << ", step " << broken_step << ", callback " << throw_at);
      RandomNumbers random(seed);
      auto cache = trio.cache(0);
      PlainDllmCache<float> expected(trio.model, shape);
      expected.prompt_interval = policy.prompt_interval;
      expected.response_interval = policy.response_interval;
      expected.ratio = policy.ratio;
      std::vector<Index> tokens = start_tokens(trio.model, shape, random);
      for (Index step = 0; step < 12; ++step) {
        const auto x = trio.model.embed(tokens);
        const RowCounts counts = cache.counts();
        if (step == broken_step) {
          CallLog log;
          log.throw_at = throw_at;
          auto pass = trio.workspace.begin_step(cache);
          REQUIRE_THROWS_AS(run_pass(pass, trio.model, {x}, &log), CallbackError);
          REQUIRE_FALSE(pass.open());
          auto rows = x;
          rows.rows = pass.row_count();
          REQUIRE_THAT(refused_call([&] { pass.layer(trio.model.layer(0), rows.view()); }),
                       Contains("when the pass has ended"));
          REQUIRE(cache.stale());
          REQUIRE(cache.step() == step);
          REQUIRE(cache.counts() == counts);
        }
        const auto in_pass = run_step(trio.workspace, cache, trio.model, x);
        REQUIRE(first_difference(in_pass, expected.step(x, step == broken_step)) == std::nullopt);
        if (step == broken_step) {
          REQUIRE(in_pass.rows == range(0, shape.rows()));
          REQUIRE(first_difference(in_pass, plain_forward(trio.model, shape, x)) == std::nullopt);
        }
        commit_tokens(tokens, shape, random);
      }
      REQUIRE(cache.step() == 12);
    }
}

TEST_CASE("Workspace: a pass dropped between layers leaves its cache stale", "[workspace]") {
  Trio trio;
  const SequenceShape& shape = trio.shapes[0];
  for (const Index done : {0, 1, 2}) {
    INFO("dropped after " << done << " layers");
    RandomNumbers random(seed);
    auto cache = trio.cache(0);
    auto tokens = start_tokens(trio.model, shape, random);
    run_step(trio.workspace, cache, trio.model, trio.model.embed(tokens));
    commit_tokens(tokens, shape, random);
    auto x = trio.model.embed(tokens);
    {
      auto pass = trio.workspace.begin_step(cache);
      auto moved = std::move(pass);  // the moved-from pass must not end the step
      auto rows = x;
      rows.rows = moved.row_count();
      for (Index layer = 0; layer < done; ++layer)
        moved.layer(trio.model.layer(layer), rows.view());
      REQUIRE(moved.layers_done() == done);
      REQUIRE(cache.planner().step_open());
      // NOLINTNEXTLINE: a pass that was moved from may still be asked
      REQUIRE_FALSE(pass.open());
    }
    REQUIRE(cache.stale());
    REQUIRE(cache.step() == 1);
    const auto in_pass = run_step(trio.workspace, cache, trio.model, x);
    REQUIRE(in_pass.rows == range(0, 13));
    REQUIRE(first_difference(in_pass, plain_forward(trio.model, shape, x)) == std::nullopt);
    REQUIRE(run_step(trio.workspace, cache, trio.model, x).rows == range(5, 13));
  }
}

TEST_CASE("Workspace: a callback that throws makes every cache of the batch stale", "[workspace]") {
  Trio trio;
  auto first = trio.cache(0), second = trio.cache(1);
  const std::vector<FeatureCache<float>*> caches{&first, &second};
  const std::vector<StepInput> inputs(2);
  RandomNumbers random(seed);
  std::vector<std::vector<Index>> tokens{start_tokens(trio.model, trio.shapes[0], random),
                                         start_tokens(trio.model, trio.shapes[1], random)};
  for (int step = 0; step < 3; ++step) {
    const std::vector<Matrix<float>> all{trio.model.embed(tokens[0]), trio.model.embed(tokens[1])};
    if (step == 1) {
      auto pass = trio.workspace.begin_step(caches, inputs);
      CallLog log;
      log.throw_at = 5;
      REQUIRE_THROWS_AS(run_pass(pass, trio.model, all, &log), CallbackError);
      REQUIRE(first.stale());
      REQUIRE(second.stale());
    }
    auto pass = trio.workspace.begin_step(caches, inputs);
    const auto batch = run_pass(pass, trio.model, all);
    if (step == 1)
      for (std::size_t i = 0; i < 2; ++i)
        REQUIRE(first_difference(batch[i], plain_forward(trio.model, trio.shapes[i], all[i])) ==
                std::nullopt);
    REQUIRE(batch[0].rows.size() == (step == 2 ? 8u : 13u));
    for (std::size_t i = 0; i < 2; ++i) commit_tokens(tokens[i], trio.shapes[i], random);
  }
}

namespace {

// A selector of one's own: picks the places it is told, whatever the sums are. Its sums are no
// cosines.
struct ToldSelector {
  std::vector<Index> told;
  void accumulate(MatrixView<const float> fresh, MatrixView<float> cached,
                  std::span<SimilaritySums> sums) const {
    VVerifySelector<float>().accumulate(fresh, cached, sums);
    for (SimilaritySums& one : sums)
      one = {std::numeric_limits<double>::infinity(), 1.0, 1.0};  // similarity: infinite
  }
  void select(std::span<const SimilaritySums>, Index, std::vector<Index>& selected) const {
    selected = told;
  }
};

}  // namespace

TEST_CASE("Workspace: a selector of one's own decides, within the count", "[workspace]") {
  const TinyModel<float> model(2, seed);
  using Cache = FeatureCache<float, float, ToldSelector>;
  Workspace<float, float, ToldSelector> workspace;
  Cache cache(model.shape(), {.prompt = 2, .response = 6}, DllmCachePolicy{never, never, 0.5},
              std::pmr::get_default_resource(), ToldSelector{{4, 1}});
  const auto x = model.embed({1, 2, 3, 4, 5, 6, 7, 8});
  const auto step = [&]() -> std::vector<Index> {
    auto pass = workspace.begin_step(cache);
    run_pass(pass, model, {x});
    return {pass.recomputed().begin(), pass.recomputed().end()};
  };
  REQUIRE(step() == range(0, 8));
  REQUIRE(step() == std::vector<Index>{3, 6});
  cache.selector().told = {};
  REQUIRE(step().empty());
  cache.selector().told = {0, 1, 2, 3};
  REQUIRE_THAT(refused_call([&] { step(); }),
               Contains("RowSelector: select() must leave at most 3 rows, left 4"));
  REQUIRE(cache.stale());
  REQUIRE(step() == range(0, 8));
  cache.selector().told = {6};
  REQUIRE_THAT(refused_call([&] { step(); }),
               Contains("RowSelector: selected places must be in [0, 6), got 6"));
  REQUIRE(step() == range(0, 8));
  cache.selector().told = {-1};
  REQUIRE_THAT(refused_call([&] { step(); }), Contains("must be in [0, 6), got -1"));
}

TEST_CASE("Workspace: a layer may be made of three lambdas", "[workspace]") {
  const TinyModel<float> model(2, seed);
  const SequenceShape shape{.prompt = 2, .response = 3};
  FeatureCache<float> cache(model.shape(), shape, NoCache{});
  Workspace<float> workspace;
  auto x = model.embed({1, 2, 3, 4, 5});
  const auto expected = plain_forward(model, shape, x);
  auto pass = workspace.begin_step(cache);
  for (Index number = 0; number < 2; ++number) {
    const TinyLayer<float> tiny = model.layer(number);
    auto layer = make_layer([=](auto a, auto v) { tiny.value(a, v); },
                            [=](auto a, auto p, auto q, auto k) { tiny.query_key(a, p, q, k); },
                            [=](auto a, auto q, auto s, auto u) { tiny.delta(a, q, s, u); });
    pass.layer(layer, x.view());
  }
  REQUIRE(x.data == expected.data);
}
