// SPDX-License-Identifier: Apache-2.0
#include "dllm_cache/step_planner.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "dllm_cache/policies/block_cache.hpp"
#include "dllm_cache/policies/block_verify.hpp"
#include "dllm_cache/policies/dllm_cache.hpp"
#include "tests/support/exact_refusal.hpp"
#include "tests/support/scripted_policy.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;
using Catch::Contains;
using Catch::Equals;

namespace {

constexpr RowAction A = RowAction::Absent, U = RowAction::Reuse, V = RowAction::Verify,
                    R = RowAction::Recompute;
using RowActions = std::vector<RowAction>;

// A planner of 2 layers whose first step, which asks nobody, is behind it.
StepPlanner started(ScriptedPolicy policy,
                    const SequenceShape& shape = {.prompt = 2, .response = 4},
                    const StepInput& first = {}) {
  StepPlanner planner(std::move(policy), shape, 2);
  planner.begin_step(first);
  planner.commit_step();
  return planner;
}

ScriptedPolicy keeping_all(std::function<void(const StepContext&, StepPlan&)> script,
                           Range stored = {0, 6}) {
  return {{.name = "scripted", .stored_deltas = stored}, std::move(script)};
}

std::string plan_refusal(std::function<void(const StepContext&, StepPlan&)> script,
                         Range stored = {0, 6}) {
  StepPlanner planner = started(keeping_all(std::move(script), stored));
  std::string message = refused_call([&] { planner.begin_step({}); });
  // Refused plans leave no trace, whatever was wrong with them.
  REQUIRE_FALSE(planner.step_open());
  REQUIRE_FALSE(planner.stale());
  REQUIRE(planner.step() == 1);
  return message;
}

}  // namespace

TEST_CASE("SequenceShape: without attention blocks every row sees every row", "[plan]") {
  const SequenceShape shape{.prompt = 3, .response = 5};
  for (Index row = 0; row < 8; ++row) REQUIRE(shape.key_end(row) == 8);
}

TEST_CASE("SequenceShape: with attention blocks a row sees the end of its own block", "[plan]") {
  const auto ends = [](Index block, Index phase) {
    const SequenceShape shape{
        .prompt = 3, .response = 5, .attention_block = block, .attention_phase = phase};
    std::vector<Index> all;
    for (Index row = 0; row < 8; ++row) all.push_back(shape.key_end(row));
    return all;
  };
  REQUIRE(ends(1, 0) == std::vector<Index>{1, 2, 3, 4, 5, 6, 7, 8});
  REQUIRE(ends(3, 0) == std::vector<Index>{3, 3, 3, 6, 6, 6, 8, 8});
  REQUIRE(ends(3, 1) == std::vector<Index>{1, 4, 4, 4, 7, 7, 7, 8});
  REQUIRE(ends(3, 7) == std::vector<Index>{1, 4, 4, 4, 7, 7, 7, 8});
  REQUIRE(ends(4, 3) == std::vector<Index>{3, 3, 3, 7, 7, 7, 7, 8});
  REQUIRE(ends(100, 0) == std::vector<Index>(8, 8));
}

TEST_CASE("SequenceShape: a shape that no cache can serve is refused by field, range and value",
          "[plan][refusal]") {
  const auto message = [](const SequenceShape& shape) {
    return refused_argument([&] { check_shape(shape); });
  };
  REQUIRE_THAT(message({.prompt = -1, .response = 4}),
               Contains("prompt must be in [0, 2^31], got -1"));
  REQUIRE_THAT(message({.prompt = (Index{1} << 31) + 1, .response = 4}),
               Contains("prompt must be in [0, 2^31], got 2147483649"));
  REQUIRE_THAT(message({.prompt = 4, .response = -2}),
               Contains("response must be in [0, 2^31], got -2"));
  REQUIRE_THAT(message({.prompt = 4, .response = never}),
               Contains("response must be in [0, 2^31], got 9223372036854775807"));
  REQUIRE_THAT(message({}), Contains("prompt + response must be at least 1 row, got 0"));
  REQUIRE_THAT(message({.prompt = 1, .response = 4, .prediction_shift = 2}),
               Contains("prediction_shift must be in [0, prompt = 1], got 2"));
  REQUIRE_THAT(message({.prompt = 1, .response = 4, .prediction_shift = -1}),
               Contains("prediction_shift must be in [0, prompt = 1], got -1"));
  REQUIRE_THAT(message({.prompt = 1, .response = 4, .attention_block = -3}),
               Contains("attention_block must be in [0, 2^31], got -3"));
  REQUIRE_THAT(message({.prompt = 1, .response = 4, .attention_block = never}),
               Contains("attention_block must be in [0, 2^31], got 9223372036854775807"));
  REQUIRE_THAT(message({.prompt = 1, .response = 4, .attention_block = 2, .attention_phase = 6}),
               Contains("attention_phase must be in [0, rows = 5], got 6"));
  REQUIRE_THAT(message({.prompt = 1, .response = 4, .attention_block = 2, .attention_phase = -1}),
               Contains("attention_phase must be in [0, rows = 5], got -1"));
  const std::vector<std::int32_t> four(4);
  REQUIRE_THAT(message({.prompt = 1, .response = 4, .positions = four}),
               Contains("positions must be empty or one a row (5), got 4"));
}

TEST_CASE("SequenceShape: the smallest and the widest legal shapes are accepted", "[plan]") {
  const std::vector<std::int32_t> one(1);
  REQUIRE_NOTHROW(check_shape(SequenceShape{.prompt = 1}));
  REQUIRE_NOTHROW(check_shape(SequenceShape{.response = 1}));
  REQUIRE_NOTHROW(check_shape(SequenceShape{
      .prompt = Index{1} << 31, .response = Index{1} << 31, .attention_block = Index{1} << 31}));
  REQUIRE_NOTHROW(check_shape(SequenceShape{.prompt = 1,
                                            .prediction_shift = 1,
                                            .attention_block = 1,
                                            .attention_phase = 1,
                                            .positions = one}));
}

TEST_CASE("StepPlan: the strongest action asked for a row wins in any order", "[plan]") {
  StepPlan plan;
  plan.clear(6, 2, "mine");
  plan.reuse({0, 5});
  plan.recompute({1, 3});
  plan.verify({2, 4}, 1);
  plan.reuse({1, 4});
  REQUIRE(plan.rows == RowActions{U, R, R, V, U, A});
  REQUIRE(plan.verify_count == 1);
  REQUIRE(plan.cached_layers == Range{0, 2});
}

TEST_CASE("StepPlan: clear empties everything that the step before asked for", "[plan]") {
  StepPlan plan;
  plan.clear(3, 2, "mine");
  plan.verify({0, 3}, 2);
  plan.cached_layers = {1, 1};
  plan.clear(4, 5, "other");
  REQUIRE(plan.rows == RowActions(4, A));
  REQUIRE(plan.verify_count == 0);
  REQUIRE(plan.cached_layers == Range{0, 5});
  REQUIRE(plan.policy == "other");
  REQUIRE_NOTHROW(plan.verify({0, 1}, 1));
}

TEST_CASE("StepPlan: what is asked for outside the rows is refused with policy, call and range",
          "[plan][refusal]") {
  StepPlan plan;
  plan.clear(4, 2, "mine");
  REQUIRE_THAT(refused_call([&] {
                 plan.recompute({-1, 2});
               }),
               Contains("mine") && Contains("recompute() range must lie in [0, 4), got [-1, 2)"));
  REQUIRE_THAT(refused_call([&] {
                 plan.reuse({2, 5});
               }),
               Contains("mine") && Contains("reuse() range must lie in [0, 4), got [2, 5)"));
  REQUIRE_THAT(refused_call([&] {
                 plan.verify({3, 2}, 0);
               }),
               Contains("mine") && Contains("verify() range must lie in [0, 4), got [3, 2)"));
  REQUIRE(plan.rows == RowActions(4, A));
}

TEST_CASE("StepPlan: a second verify and a negative count are refused", "[plan][refusal]") {
  StepPlan plan;
  plan.clear(4, 2, "mine");
  REQUIRE_THAT(refused_call([&] {
                 plan.verify({0, 4}, -1);
               }),
               Contains("mine") && Contains("verify() count must be at least 0, got -1"));
  plan.verify({0, 2}, 1);
  REQUIRE_THAT(refused_call([&] {
                 plan.verify({2, 4}, 1);
               }),
               Contains("mine") && Contains("verify() may be called once a plan"));
}

TEST_CASE("DllmCachePolicy: options out of range are refused by field, range and value",
          "[policy][refusal]") {
  const auto message = [](DllmCachePolicy policy) {
    return refused_argument([&] { StepPlanner(policy, {.prompt = 2, .response = 4}, 1); });
  };
  REQUIRE_THAT(message({.prompt_interval = 0}),
               Contains("policy dllm-cache: prompt_interval must be at least 1 or never, got 0"));
  REQUIRE_THAT(
      message({.response_interval = -7}),
      Contains("policy dllm-cache: response_interval must be at least 1 or never, got -7"));
  REQUIRE_THAT(message({.ratio = -0.1}), Contains("ratio must be in [0, 1], got -0.1"));
  REQUIRE_THAT(message({.ratio = 1.5}), Contains("ratio must be in [0, 1], got 1.5"));
  REQUIRE_THAT(message({.ratio = std::numeric_limits<double>::quiet_NaN()}),
               Contains("ratio must be in [0, 1], got nan"));
}

TEST_CASE("DllmCachePolicy: prompt and response fall due on their own intervals", "[policy]") {
  StepPlanner planner(DllmCachePolicy{.prompt_interval = 4, .response_interval = 3, .ratio = 0.5},
                      {.prompt = 2, .response = 3}, 3);
  const RowActions both{R, R, R, R, R}, verified{A, A, V, V, V}, response{A, A, R, R, R},
      prompt{R, R, V, V, V};
  const std::vector<RowActions> expected{both,     verified, verified, response, prompt,
                                         verified, response, verified, prompt,   response,
                                         verified, verified, both,     verified};
  for (std::size_t step = 0; step < expected.size(); ++step) {
    INFO("step " << step);
    const StepPlan& plan = planner.begin_step({});
    REQUIRE(plan.rows == expected[step]);
    REQUIRE(plan.verify_count == (plan.rows[2] == V ? 1 : 0));
    REQUIRE(plan.cached_layers == (step == 0 ? Range{0, 3} : Range{1, 3}));
    planner.commit_step();
  }
}

TEST_CASE("DllmCachePolicy: an interval of never falls due at the first step only", "[policy]") {
  StepPlanner planner(
      DllmCachePolicy{.prompt_interval = never, .response_interval = never, .ratio = 0.25},
      {.prompt = 1, .response = 2}, 1);
  for (int step = 0; step < 300; ++step) {
    REQUIRE(planner.begin_step({}).rows == (step == 0 ? RowActions{R, R, R} : RowActions{A, V, V}));
    planner.commit_step();
  }
}

TEST_CASE("DllmCachePolicy: the count of selected rows is the product truncated in double",
          "[policy]") {
  const auto count = [](Index response, double ratio) {
    StepPlanner planner(DllmCachePolicy{.response_interval = 2, .ratio = ratio},
                        {.response = response}, 1);
    planner.begin_step({});
    planner.commit_step();
    return planner.begin_step({}).verify_count;
  };
  REQUIRE(count(256, 0.25) == 64);
  REQUIRE(count(3, 0.25) == 0);
  REQUIRE(count(17, 0.25) == 4);
  REQUIRE(count(10, 0.29) == 2);
  REQUIRE(count(100, 0.29) == 28);  // 28.999999999999996 in double, 29 in float
  REQUIRE(count(17, 1.0) == 17);
}

TEST_CASE("DllmCachePolicy: ratio 0 reuses, a ratio that selects nothing still verifies",
          "[policy]") {
  const auto rows = [](double ratio) {
    StepPlanner planner(DllmCachePolicy{.response_interval = 2, .ratio = ratio}, {.response = 3},
                        1);
    planner.begin_step({});
    planner.commit_step();
    return planner.begin_step({}).rows;
  };
  REQUIRE(rows(0.0) == RowActions{U, U, U});
  REQUIRE(rows(0.1) == RowActions{V, V, V});
}

TEST_CASE("DllmCachePolicy: with a shifted head the last prompt row is in the pass at every step",
          "[policy]") {
  StepPlanner planner(DllmCachePolicy{.prompt_interval = 3, .response_interval = 2, .ratio = 1.0},
                      {.prompt = 3, .response = 2, .prediction_shift = 1}, 2);
  const std::vector<RowActions> expected{
      {R, R, R, R, R}, {A, A, U, V, V}, {A, A, U, R, R}, {R, R, R, V, V}, {A, A, U, R, R}};
  for (const RowActions& rows : expected) {
    REQUIRE(planner.begin_step({}).rows == rows);
    planner.commit_step();
  }
}

TEST_CASE("DllmCachePolicy: only deltas that may be reused are stored", "[policy]") {
  const auto stored = [](DllmCachePolicy policy, Index shift) {
    return policy.traits({.prompt = 5, .response = 3, .prediction_shift = shift}).stored_deltas;
  };
  REQUIRE(stored({}, 0) == Range{5, 8});
  REQUIRE(stored({}, 1) == Range{4, 8});
  REQUIRE(stored({.prompt_interval = 1}, 1) == Range{5, 8});
  REQUIRE(stored({.response_interval = 1}, 0).empty());
  REQUIRE(stored({.response_interval = 1}, 1) == Range{4, 5});
}

TEST_CASE("DllmCachePolicy: the first layer is refreshed unless told otherwise", "[policy]") {
  const auto cached = [](bool refresh) {
    StepPlanner planner(DllmCachePolicy{.response_interval = 2, .refresh_first_layer = refresh},
                        {.response = 3}, 4);
    planner.begin_step({});
    planner.commit_step();
    return planner.begin_step({}).cached_layers;
  };
  REQUIRE(cached(true) == Range{1, 4});
  REQUIRE(cached(false) == Range{0, 4});
}

TEST_CASE("BlockVerifyPolicy: the active block is recomputed, the rows beside it are verified",
          "[policy]") {
  const auto plan_of = [](BlockVerifyPolicy policy, Range block, Index shift) {
    StepPlanner planner(policy, {.prompt = 2, .response = 8, .prediction_shift = shift}, 2);
    planner.begin_step({.block = {2, 6}});
    planner.commit_step();
    return planner.begin_step({.block = block, .block_step = 1});
  };
  const StepPlan verified = plan_of({.ratio = 0.5}, {2, 5}, 0);
  CHECK(verified.rows == std::vector<RowAction>{A, A, R, R, R, V, V, V, V, V});
  CHECK(verified.verify_count == 2);  // half of the five others, truncated
  const StepPlan reused = plan_of({.ratio = 0.0}, {5, 10}, 0);
  CHECK(reused.rows == std::vector<RowAction>{A, A, U, U, U, R, R, R, R, R});
  // With a shifted head the row before predicts the block's first token.
  const StepPlan first = plan_of({.ratio = 0.5}, {2, 5}, 1);
  CHECK(first.rows == std::vector<RowAction>{A, R, R, R, R, V, V, V, V, V});
  CHECK(first.verify_count == 2);
  const StepPlan second = plan_of({.ratio = 0.5}, {5, 10}, 1);
  CHECK(second.rows == std::vector<RowAction>{A, U, V, V, R, R, R, R, R, R});
  CHECK(second.verify_count == 1);
  // One block is the whole response.
  const StepPlan whole = plan_of({.ratio = 1.0}, {2, 10}, 0);
  CHECK(whole.rows == std::vector<RowAction>{A, A, R, R, R, R, R, R, R, R});
  CHECK(whole.verify_count == 0);
}

TEST_CASE("BlockVerifyPolicy: its similarity threshold is that of its verified plans", "[policy]") {
  StepPlanner planner(
      BlockVerifyPolicy{.ratio = 1.0, .similarity_threshold = 0.5, .recompute_block = false},
      {.prompt = 2, .response = 3}, 2);
  CHECK(planner.begin_step({}).similarity_threshold == no_similarity_threshold);  // none verified
  planner.commit_step();
  CHECK(planner.begin_step({}).similarity_threshold == 0.5);
  CHECK(planner.plan().verify_count == 3);
}

TEST_CASE("AnyPolicy: holds its own copy of a policy, and copies are independent", "[policy]") {
  const SequenceShape shape{.prompt = 2, .response = 2};
  DllmCachePolicy policy{.response_interval = 5};
  AnyPolicy first = policy;
  policy.response_interval = 0;  // refused, were it seen
  AnyPolicy second = first;
  first = AnyPolicy(NoCache{});
  REQUIRE(first.traits(shape).name == "none");
  REQUIRE(second.traits(shape).name == "dllm-cache");
  first = second;
  REQUIRE(first.traits(shape).name == "dllm-cache");
  const AnyPolicy& itself = first;
  first = itself;
  REQUIRE(first.traits(shape).stored_deltas == Range{2, 4});
}

TEST_CASE("NoCache: recomputes the live rows at every step and keeps nothing", "[policy]") {
  StepPlanner planner(NoCache{}, {.prompt = 2, .response = 4, .attention_block = 2}, 2);
  REQUIRE_FALSE(planner.traits().keeps_features);
  for (int step = 0; step < 3; ++step) {
    REQUIRE(planner.begin_step({.block = {2, 4}}).rows == RowActions{R, R, R, R, A, A});
    planner.commit_step();
  }
  REQUIRE(planner.begin_step({}).rows == RowActions(6, R));
}

TEST_CASE("StepPlanner: fewer layers than one are refused", "[step_planner][refusal]") {
  REQUIRE_THAT(refused_argument([] { StepPlanner(NoCache{}, {.response = 1}, 0); }),
               Contains("layers must be at least 1, got 0"));
}

TEST_CASE("StepPlanner: traits that store deltas outside the rows are refused",
          "[step_planner][refusal]") {
  const auto message = [](Range stored) {
    return refused_argument([&] {
      StepPlanner(ScriptedPolicy{{.name = "mine", .stored_deltas = stored}}, {.response = 4}, 1);
    });
  };
  REQUIRE_THAT(message({0, 5}), Contains("mine: stored_deltas must lie in [0, 4), got [0, 5)"));
  REQUIRE_THAT(message({-1, 3}), Contains("mine: stored_deltas must lie in [0, 4), got [-1, 3)"));
  REQUIRE_THAT(message({3, 2}), Contains("mine: stored_deltas must lie in [0, 4), got [3, 2)"));
}

TEST_CASE("StepPlanner: the first step recomputes all rows without asking the policy",
          "[step_planner]") {
  int asked = 0;
  StepPlanner planner(keeping_all([&](const StepContext&, StepPlan& plan) {
                        ++asked;
                        plan.reuse({5, 6});
                      }),
                      {.prompt = 2, .response = 4}, 2);
  REQUIRE(planner.stale());
  REQUIRE(planner.begin_step({}).rows == RowActions(6, R));
  planner.commit_step();
  REQUIRE(asked == 0);
  REQUIRE_FALSE(planner.stale());
  REQUIRE(planner.begin_step({}).rows == RowActions{A, A, A, A, A, U});
  REQUIRE(asked == 1);
}

TEST_CASE("StepPlanner: a policy sees everything that the caller and the cache know",
          "[step_planner]") {
  const std::vector<std::uint8_t> masked{0, 0, 1, 0, 1, 1}, changed{0, 0, 0, 1, 0, 0};
  const std::vector<float> confidence{0, 0, .5f, 0, .25f, .125f};
  const std::vector<std::int32_t> positions{4, 5, 6, 7, 8, 9};
  int asked = 0;
  StepPlanner planner =
      started(keeping_all([&](const StepContext& context, StepPlan& plan) {
                ++asked;
                CHECK(context.block == Range{2, 4});
                CHECK(context.block_step == 3);
                CHECK(context.masked.data() == masked.data());
                CHECK(context.changed.data() == changed.data());
                CHECK(context.confidence.data() == confidence.data());
                CHECK(context.layers == 2);
                CHECK(context.step == 1);
                CHECK(context.prompt() == Range{0, 2});
                CHECK(context.response() == Range{2, 6});
                CHECK(context.active_block() == Range{2, 4});
                CHECK(context.live() == Range{0, 6});
                CHECK(std::vector<std::int32_t>(context.shape.positions.begin(),
                                                context.shape.positions.end()) == positions);
                plan.recompute(context.live());
              }),
              {.prompt = 2, .response = 4, .positions = positions});
  planner.begin_step({{2, 4}, 3, masked, changed, confidence});
  REQUIRE(asked == 1);
}

TEST_CASE("StepPlanner: without a block the response is the active block", "[step_planner]") {
  StepPlanner planner = started(keeping_all([](const StepContext& context, StepPlan& plan) {
    CHECK(context.active_block() == Range{2, 6});
    plan.recompute({0, 6});
  }));
  planner.begin_step({});
}

TEST_CASE("StepPlanner: positions are 0, 1, 2, ... or a copy of the caller's", "[step_planner]") {
  std::vector<std::int32_t> positions{-3, 0, 11};
  const auto of = [](const StepPlanner& planner) {
    return std::vector<std::int32_t>(planner.positions().begin(), planner.positions().end());
  };
  StepPlanner planner(NoCache{}, {.prompt = 1, .response = 2, .positions = positions}, 1);
  positions.assign(3, 99);
  REQUIRE(of(planner) == std::vector<std::int32_t>{-3, 0, 11});
  REQUIRE(planner.shape().positions.data() == planner.positions().data());
  const StepPlanner copy = planner;
  REQUIRE(copy.shape().positions.data() != planner.positions().data());
  REQUIRE(of(copy) == std::vector<std::int32_t>{-3, 0, 11});
  planner.reset({.prompt = 1, .response = 3});
  REQUIRE(of(planner) == std::vector<std::int32_t>{0, 1, 2, 3});
}

TEST_CASE("StepPlanner: malformed inputs are refused by field, range and value",
          "[step_planner][refusal]") {
  StepPlanner planner(NoCache{}, {.prompt = 2, .response = 4}, 2);
  const auto message = [&](const StepInput& input) {
    std::string text = refused_argument([&] { planner.begin_step(input); });
    REQUIRE_FALSE(planner.step_open());
    return text;
  };
  const std::vector<std::uint8_t> five(5), six(6);
  const std::vector<float> seven(7);
  REQUIRE_THAT(message({.block = {-1, 2}}), Contains("block must lie in [0, 6), got [-1, 2)"));
  REQUIRE_THAT(message({.block = {2, 7}}), Contains("block must lie in [0, 6), got [2, 7)"));
  REQUIRE_THAT(message({.block = {4, 3}}), Contains("block must lie in [0, 6), got [4, 3)"));
  REQUIRE_THAT(message({.block_step = -1}), Contains("block_step must be at least 0, got -1"));
  REQUIRE_THAT(message({.masked = five}),
               Contains("masked must be empty or have one entry a row (6), got 5"));
  REQUIRE_THAT(message({.changed = five}),
               Contains("changed must be empty or have one entry a row (6), got 5"));
  REQUIRE_THAT(message({.confidence = seven}),
               Contains("confidence must be empty or have one entry a row (6), got 7"));
  REQUIRE_NOTHROW(planner.begin_step({.block = {0, 6}, .masked = six, .changed = six}));
}

TEST_CASE("StepPlanner: an input that the policy needs and does not get is refused",
          "[step_planner][refusal]") {
  const auto message = [](PolicyTraits traits) {
    StepPlanner planner(ScriptedPolicy{traits}, {.prompt = 2, .response = 4}, 2);
    return refused_argument([&] { planner.begin_step({}); });
  };
  REQUIRE_THAT(message({.name = "mine", .needs_block = true}),
               Contains("block must be given, policy mine needs it"));
  REQUIRE_THAT(message({.name = "mine", .needs_masked = true}),
               Contains("masked must be given, policy mine needs it"));
  REQUIRE_THAT(message({.name = "mine", .needs_changed = true}),
               Contains("changed must be given, policy mine needs it"));
  REQUIRE_THAT(message({.name = "mine", .needs_confidence = true}),
               Contains("confidence must be given, policy mine needs it"));
}

TEST_CASE("StepPlanner: every plan that cannot be carried out is refused with policy and row",
          "[step_planner][refusal]") {
  using C = const StepContext&;
  REQUIRE_THAT(plan_refusal([](C, StepPlan& plan) { plan.rows.resize(5); }),
               Contains("scripted: rows must keep its size 6, got 5"));
  REQUIRE_THAT(plan_refusal([](C, StepPlan& plan) {
                 plan.cached_layers = {0, 3};
               }),
               Contains("scripted: cached_layers must lie in [0, 2), got [0, 3)"));
  REQUIRE_THAT(plan_refusal([](C, StepPlan& plan) {
                 plan.cached_layers = {-1, 2};
               }),
               Contains("scripted: cached_layers must lie in [0, 2), got [-1, 2)"));
  REQUIRE_THAT(plan_refusal([](C, StepPlan& plan) {
                 plan.cached_layers = {2, 1};
               }),
               Contains("scripted: cached_layers must lie in [0, 2), got [2, 1)"));
  REQUIRE_THAT(plan_refusal([](C, StepPlan& plan) { plan.rows[3] = static_cast<RowAction>(4); }),
               Contains("scripted: row 3 has no known action"));
  REQUIRE_THAT(plan_refusal([](C, StepPlan& plan) {
                 plan.verify({1, 4}, 4);
               }),
               Contains("scripted: verify_count must be in [0, verified rows = 3], got 4"));
  REQUIRE_THAT(plan_refusal([](C, StepPlan& plan) {
                 plan.verify({1, 4}, 2, std::nan(""));
               }),
               Contains("scripted: verify() threshold must be a number, got nan"));
  REQUIRE_THAT(plan_refusal([](C, StepPlan& plan) { plan.similarity_threshold = std::nan(""); }),
               Contains("scripted: similarity_threshold must be a number, got nan"));
  REQUIRE_THAT(plan_refusal([](C, StepPlan& plan) { plan.verify_count = -1; }),
               Contains("scripted: verify_count must be in [0, verified rows = 0], got -1"));
  REQUIRE_THAT(plan_refusal(
                   [](C, StepPlan& plan) {
                     plan.reuse({1, 3});
                   },
                   {2, 6}),
               Contains("scripted: row 1 is to be reused or verified, but lies outside"));
  REQUIRE_THAT(plan_refusal(
                   [](C, StepPlan& plan) {
                     plan.verify({4, 6}, 0);
                   },
                   {0, 5}),
               Contains("scripted: row 5 is to be reused or verified, but lies outside"));
  REQUIRE_THAT(plan_refusal([](C, StepPlan& plan) {
                 plan.reuse({2, 9});
               }),
               Contains("scripted: reuse() range must lie in [0, 6), got [2, 9)"));
}

TEST_CASE(
    "StepPlanner: a verified row that is also asked to be recomputed does not count as verified",
    "[step_planner][refusal]") {
  REQUIRE_THAT(plan_refusal([](const StepContext&, StepPlan& plan) {
                 plan.verify({1, 4}, 3);
                 plan.recompute({3, 6});
               }),
               Contains("verify_count must be in [0, verified rows = 2], got 3"));
}

TEST_CASE("StepPlanner: the plans at the edge of what is allowed are accepted", "[step_planner]") {
  int step = 0;
  StepPlanner planner = started(keeping_all([&](const StepContext&, StepPlan& plan) {
    if (step == 0) plan.verify({0, 6}, 6);
    if (step == 1) plan.cached_layers = {2, 2};
    if (step == 2) plan.reuse({6, 6});
  }));
  for (; step < 3; ++step) {
    REQUIRE_NOTHROW(planner.begin_step({}));
    planner.commit_step();
  }
}

TEST_CASE("StepPlanner: a policy that keeps no features may not read any",
          "[step_planner][refusal]") {
  StepPlanner planner = started(
      {{.name = "forgetful", .keeps_features = false}, [](const StepContext&, StepPlan& plan) {
         plan.recompute({1, 6});
       }});
  REQUIRE_THAT(refused_call([&] { planner.begin_step({}); }),
               Contains("forgetful: row 0 is absent, but its key would be read"));
}

TEST_CASE("StepPlanner: with attention blocks only rows up to the active block's end are live",
          "[step_planner]") {
  const SequenceShape shape{
      .prompt = 3, .response = 7, .attention_block = 4, .attention_phase = 2};  // 2, 6, 10
  StepPlanner planner(NoCache{}, shape, 1);
  const auto live = [&](Range block) {
    const RowActions& rows = planner.begin_step({.block = block}).rows;
    const auto count = std::count(rows.begin(), rows.end(), R);
    REQUIRE(std::all_of(rows.begin(), rows.begin() + count, [](RowAction t) { return t == R; }));
    planner.cancel_step();
    return count;
  };
  REQUIRE(live({0, 2}) == 2);
  REQUIRE(live({3, 5}) == 6);
  REQUIRE(live({2, 6}) == 6);
  REQUIRE(live({6, 7}) == 10);
  REQUIRE(live({}) == 10);
}

TEST_CASE("StepPlanner: rows after the live ones may not be in the pass",
          "[step_planner][refusal]") {
  const SequenceShape shape{.prompt = 2, .response = 4, .attention_block = 2};
  StepPlanner planner = started(keeping_all([](const StepContext&, StepPlan& plan) {
                                  plan.recompute({2, 5});
                                }),
                                shape);
  REQUIRE_THAT(refused_call([&] {
                 planner.begin_step({.block = {2, 4}});
               }),
               Contains("scripted: row 4 is in the pass, but lies after the live rows"));
  REQUIRE_NOTHROW(planner.begin_step({.block = {4, 6}}));
}

TEST_CASE("StepPlanner: rows that no step has computed are neither reused nor read",
          "[step_planner][refusal]") {
  const SequenceShape shape{.prompt = 2, .response = 4, .attention_block = 2};
  Range reused = {}, verified = {}, recomputed = {};
  const auto policy = keeping_all([&](const StepContext&, StepPlan& plan) {
    plan.reuse(reused);
    plan.verify(verified, 0);
    plan.recompute(recomputed);
  });
  StepPlanner planner = started(policy, shape, {.block = {2, 4}});  // rows 4 and 5 not computed
  const auto message = [&] { return refused_call([&] { planner.begin_step({.block = {4, 6}}); }); };
  reused = {3, 5};
  REQUIRE_THAT(message(), Contains("scripted: row 4 has no stored features to reuse or verify"));
  reused = {};
  verified = {5, 6};
  REQUIRE_THAT(message(), Contains("scripted: row 5 has no stored features to reuse or verify"));
  verified = {};
  recomputed = {4, 5};
  REQUIRE_THAT(message(), Contains("scripted: row 5 is absent, but its key would be read"));
  recomputed = {4, 6};
  const std::vector<std::uint8_t> nothing(6);
  REQUIRE_NOTHROW(planner.begin_step({.block = {4, 6}, .changed = nothing}));
  planner.commit_step();
  recomputed = {};
  reused = {2, 6};
  REQUIRE_NOTHROW(planner.begin_step({.block = {4, 6}}));
}

TEST_CASE("StepPlanner: rows computed before a stale step are forgotten by it",
          "[step_planner][refusal]") {
  const SequenceShape shape{.prompt = 2, .response = 4, .attention_block = 2};
  StepPlanner planner = started(keeping_all([](const StepContext&, StepPlan& plan) {
                                  plan.reuse({4, 6});
                                }),
                                shape);
  REQUIRE_NOTHROW(planner.begin_step({}));
  planner.drop_step();
  planner.begin_step({.block = {2, 4}});
  planner.commit_step();
  REQUIRE_THAT(refused_call([&] {
                 planner.begin_step({.block = {4, 6}});
               }),
               Contains("scripted: row 4 has no stored features to reuse or verify"));
}

TEST_CASE("StepPlanner: a cancelled step leaves no trace", "[step_planner]") {
  StepPlanner planner(DllmCachePolicy{.prompt_interval = 2, .response_interval = 2},
                      {.prompt = 1, .response = 2}, 1);
  planner.begin_step({});
  planner.cancel_step();
  REQUIRE(planner.stale());
  REQUIRE(planner.step() == 0);
  planner.begin_step({});
  planner.commit_step();
  REQUIRE(planner.begin_step({}).rows == RowActions{A, V, V});
  planner.cancel_step();
  REQUIRE_FALSE(planner.stale());
  REQUIRE_FALSE(planner.step_open());
  REQUIRE(planner.step() == 1);
  REQUIRE(planner.begin_step({}).rows == RowActions{A, V, V});
}

TEST_CASE("StepPlanner: a dropped step makes the next one a full one and keeps the phase",
          "[step_planner]") {
  StepPlanner planner(DllmCachePolicy{.prompt_interval = 3, .response_interval = 2},
                      {.prompt = 1, .response = 2}, 1);
  for (int step = 0; step < 4; ++step) {
    planner.begin_step({});
    planner.commit_step();
  }
  REQUIRE(planner.begin_step({}).rows == RowActions{A, R, R});  // step 4
  planner.drop_step();
  REQUIRE(planner.stale());
  REQUIRE(planner.step() == 4);
  const StepPlan& full = planner.begin_step({});
  REQUIRE(full.rows == RowActions{R, R, R});
  REQUIRE(full.cached_layers == Range{0, 1});
  planner.commit_step();
  REQUIRE(planner.step() == 5);
  REQUIRE(planner.begin_step({}).rows == RowActions{A, V, V});  // step 5
  planner.commit_step();
  REQUIRE(planner.begin_step({}).rows == RowActions{R, R, R});  // step 6
}

TEST_CASE("StepPlanner: marked stale, the next step is a full one", "[step_planner]") {
  StepPlanner planner = started(keeping_all([](const StepContext&, StepPlan& plan) {
    plan.reuse({0, 6});
  }));
  planner.mark_stale();
  REQUIRE(planner.begin_step({}).rows == RowActions(6, R));
}

TEST_CASE("StepPlanner: reset begins a new sequence with the same policy", "[step_planner]") {
  StepPlanner planner(DllmCachePolicy{}, {.prompt = 1, .response = 2}, 1);
  for (int step = 0; step < 2; ++step) {
    planner.begin_step({});
    planner.commit_step();
  }
  planner.reset({.prompt = 2, .response = 3});
  REQUIRE(planner.stale());
  REQUIRE(planner.step() == 0);
  REQUIRE(planner.traits().stored_deltas == Range{2, 5});
  REQUIRE(planner.begin_step({}).rows == RowActions(5, R));
}

TEST_CASE("StepPlanner: a refused reset changes nothing", "[step_planner][refusal]") {
  StepPlanner planner = started({});
  REQUIRE_THAT(refused_argument([&] { planner.reset({.prompt = -1}); }), Contains("prompt"));
  REQUIRE(planner.step() == 1);
  REQUIRE_FALSE(planner.stale());
  REQUIRE(planner.shape().rows() == 6);
}

TEST_CASE("StepPlanner: calls out of order are refused", "[step_planner][refusal]") {
  StepPlanner planner(NoCache{}, {.response = 2}, 1);
  REQUIRE_THAT(refused_call([&] { planner.commit_step(); }),
               Contains("commit_step() without an open step"));
  planner.begin_step({});
  REQUIRE_THAT(refused_call([&] { planner.begin_step({}); }),
               Contains("begin_step() while a step is open"));
  REQUIRE_THAT(refused_call([&] { planner.reset({.response = 2}); }),
               Contains("reset() while a step is open"));
  REQUIRE_THAT(refused_call([&] { planner.mark_stale(); }),
               Contains("mark_stale() while a step is open"));
  REQUIRE(planner.step_open());
  REQUIRE_NOTHROW(planner.commit_step());
  REQUIRE(planner.step() == 1);
}

TEST_CASE("StepPlanner: a policy that throws leaves no trace", "[step_planner]") {
  bool fail = true;
  StepPlanner planner = started(keeping_all([&](const StepContext&, StepPlan& plan) {
    if (fail) throw std::runtime_error("no idea");
    plan.reuse({0, 6});
  }));
  REQUIRE_THROWS_WITH(planner.begin_step({}), Equals("no idea"));
  REQUIRE_FALSE(planner.step_open());
  REQUIRE_FALSE(planner.stale());
  REQUIRE(planner.step() == 1);
  fail = false;
  REQUIRE(planner.begin_step({}).rows == RowActions(6, U));
}

namespace {

constexpr SequenceShape four_blocks{.prompt = 3, .response = 9, .attention_block = 3};

// Marks of 12 rows, some of which changed.
std::vector<std::uint8_t> changed_rows(const std::vector<Index>& rows) {
  std::vector<std::uint8_t> flags(12);
  for (const Index row : rows) flags[static_cast<std::size_t>(row)] = 1;
  return flags;
}

Index settled_after(StepPlanner& planner, const StepInput& input) {
  planner.begin_step(input);
  planner.commit_step();
  return planner.progress().settled;
}

}  // namespace

TEST_CASE("StepPlanner: a block is settled once it was recomputed with its last tokens",
          "[step_planner][settled]") {
  StepPlanner planner(BlockCachePolicy{}, four_blocks, 2);
  const auto nothing = changed_rows({});
  CHECK(settled_after(planner, {.block = {3, 6}, .changed = nothing}) == 6);
  // A token of the block changed: the block is not settled, the one before it is.
  const auto changed = changed_rows({4});
  const StepPlan& plan = planner.begin_step({.block = {3, 6}, .changed = changed});
  CHECK(plan.rows[2] == RowAction::Absent);
  CHECK(plan.rows[3] == RowAction::Recompute);
  planner.commit_step();
  // The next block begins: the last change of the finished one is stored with it.
  planner.begin_step({.block = {6, 9}, .changed = changed});
  CHECK(plan.rows[2] == RowAction::Absent);
  for (Index row = 3; row < 9; ++row)
    CHECK(plan.rows[static_cast<std::size_t>(row)] == RowAction::Recompute);
  CHECK(plan.rows[9] == RowAction::Absent);
  planner.commit_step();
  planner.begin_step({.block = {9, 12}, .changed = nothing});
  CHECK(plan.rows[8] == RowAction::Absent);  // nothing changed since
  planner.commit_step();
  CHECK(planner.progress().settled == 12);
}

TEST_CASE("StepPlanner: a caller that does not say what changed may have changed what was open",
          "[step_planner][settled]") {
  StepPlanner planner(BlockCachePolicy{}, four_blocks, 2);
  settled_after(planner, {.block = {3, 6}});
  const StepPlan& plan = planner.begin_step({.block = {6, 9}});
  CHECK(plan.rows[2] == RowAction::Absent);
  CHECK(plan.rows[3] == RowAction::Recompute);
}

TEST_CASE("StepPlanner: cancelled and dropped steps settle nothing", "[step_planner][settled]") {
  StepPlanner planner(BlockCachePolicy{}, four_blocks, 2);
  const auto nothing = changed_rows({}), changed = changed_rows({0});
  CHECK(settled_after(planner, {.block = {3, 6}, .changed = nothing}) == 6);
  planner.begin_step({.block = {6, 9}, .changed = changed});
  planner.cancel_step();
  CHECK(planner.progress().settled == 6);
  const StepPlan& plan = planner.begin_step({.block = {6, 9}, .changed = nothing});
  CHECK(plan.rows[5] == RowAction::Absent);
  planner.drop_step();
  planner.begin_step({.block = {6, 9}, .changed = nothing});
  CHECK(plan.rows[0] == RowAction::Recompute);
}

TEST_CASE("StepPlanner: another shape keeps whole blocks of the rows that are kept",
          "[step_planner][settled]") {
  const auto settled_with = [](SequenceShape shape, Index keep) {
    StepPlanner planner(BlockCachePolicy{}, four_blocks, 2);
    CHECK(settled_after(planner, {.block = {9, 12}, .changed = changed_rows({})}) == 12);
    planner.reshape(shape, keep);
    CHECK(planner.step() == 1);
    return planner.stale() ? Index{-1} : planner.progress().settled;
  };
  SequenceShape longer = four_blocks;
  longer.response = 14;
  CHECK(settled_with(longer, 12) == 12);
  CHECK(settled_with(longer, 8) == 6);
  CHECK(settled_with(longer, 0) == 0);
  SequenceShape shorter = four_blocks;
  shorter.response = 5;
  CHECK(settled_with(shorter, 8) == 8);  // its last block is short
  longer.attention_phase = 3;            // the same blocks
  CHECK(settled_with(longer, 12) == 12);
  longer.attention_phase = 1;
  CHECK(settled_with(longer, 12) == -1);
  longer.attention_phase = 0;
  longer.causal_commit = true;
  CHECK(settled_with(longer, 12) == -1);
  longer.causal_commit = false;
  longer.attention_block = 0;
  CHECK(settled_with(longer, 12) == -1);
}

TEST_CASE("StepPlanner: shapes that kept rows do not fit are refused, and nothing changes",
          "[step_planner][refusal]") {
  StepPlanner planner(BlockCachePolicy{}, four_blocks, 2);
  settled_after(planner, {.block = {9, 12}});
  CHECK_THAT(refused_argument([&] { planner.reshape(four_blocks, 13); }),
             Contains("keep must be in [0, 12], got 13"));
  const std::vector<std::int32_t> positions(12, 5);
  SequenceShape moved = four_blocks;
  moved.positions = positions;
  CHECK_THAT(refused_argument([&] { planner.reshape(moved, 2); }),
             Contains("positions of kept rows must stay, row 0 had 0, got 5"));
  SequenceShape causal{.prompt = 3, .response = 9, .causal_commit = true};
  CHECK_THAT(refused_argument([&] { planner.reshape(causal, 0); }),
             Contains("causal_commit needs an attention_block"));
  planner.begin_step({.block = {9, 12}});
  CHECK_THAT(refused_call([&] { planner.reshape(four_blocks, 3); }),
             Contains("while a step is open"));
  planner.commit_step();
  CHECK(planner.progress().settled == 12);
}

TEST_CASE("StepPlanner: with causal commits rows are settled one by one, before the block",
          "[step_planner][settled]") {
  SequenceShape shape = four_blocks;
  shape.causal_commit = true;
  StepPlanner planner(BlockCachePolicy{}, shape, 2);
  CHECK(settled_after(planner, {.block = {6, 9}, .changed = changed_rows({})}) == 6);
  CHECK(planner.key_end(4) == 5);
  CHECK(planner.key_end(7) == 9);
  const StepPlan& plan = planner.begin_step({.block = {6, 9}, .changed = changed_rows({4})});
  CHECK(plan.rows[3] == RowAction::Absent);
  CHECK(plan.rows[4] == RowAction::Recompute);
  planner.commit_step();
  CHECK(settled_after(planner,
                      {.block = {6, 9}, .changed = changed_rows({}), .block_done = true}) == 9);
  CHECK(planner.key_end(7) == 8);
}
