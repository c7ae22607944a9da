// SPDX-License-Identifier: Apache-2.0
// The published caches against plain programs of the same methods, bit for bit on the fake model.
#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "dllm_cache/policies/block_verify.hpp"
#include "dllm_cache/policies/dllm_cache.hpp"
#include "tests/support/exact_refusal.hpp"
#include "tests/support/fake_model.hpp"
#include "tests/support/published_caches.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;

namespace {

constexpr std::uint64_t seed = 15781;
using Model = FakeModel<float>;

std::vector<PlainTask> tasks(Index shift) {
  std::vector<PlainTask> all{
      {{1, 2, 3, 4, 5}, 12, 4, 4},  // one token a step
      {{9, 3}, 12, 4, 3},           // the remainder first
      {{7, 8, 7}, 10, 5, 2},        // several a step
      {{2, 6, 2, 6}, 6, 2, 4},      // more steps than rows: some are not taken
      {{5}, 9, 9, 9},               // one block
      {{1, 4}, 7, 1, 1},            // blocks of one row
      {{3, 10, 3}, 1, 1, 1},        // one row
      {{8, 9, 8}, 12, 6, 1, 0.5},   // as many as are sure
      {{4, 3, 2, 1}, 15, 5, 1, 0.3},
      {{10, 10}, 8, 4, 1, 1.0},
  };
  if (shift == 0) all.push_back({{}, 6, 3, 3});
  return all;
}

PolicyTraits traits_of(const AnyPolicy& policy, const SequenceShape& shape) {
  return policy.traits(shape);
}

std::string refusal_of(const AnyPolicy& policy) {
  return refused_argument([&] { static_cast<void>(policy.traits({.prompt = 1, .response = 1})); });
}

}  // namespace

TEST_CASE("Policies: each published cache gives what its definition gives, bit for bit",
          "[policies][property]") {
  for (const Index shift : {0, 1}) {
    const std::vector<PlainTask> all = tasks(shift);
    for (std::size_t i = 0; i < all.size(); ++i)
      for (CachePair& pair : published_caches(shift)) {
        INFO("seed " << seed << ", shift " << shift << ", task " << i << ", " << pair.what);
        Model model(seed, 2, shift);
        const PlainRun expected = run_plainly(model, *pair.plain, all[i]);
        model.log.broken_rule.clear();  // the plain run keeps its features where it likes
        const PlainRun got = run_in_loop(model, pair.policy, all[i]);
        REQUIRE(got.in_pass == expected.in_pass);
        REQUIRE(got.tokens == expected.tokens);
        REQUIRE(got.logits == expected.logits);
        REQUIRE(model.log.broken_rule.empty());
      }
  }
}

TEST_CASE("Policies: the caches differ from each other and from no cache at all", "[policies]") {
  // Else the test above would say little.
  for (const Index shift : {0, 1}) {
    Model model(seed, 2, shift);
    const PlainTask task{{1, 2, 3, 4, 5}, 12, 4, 4};
    std::vector<PlainRun> runs{run_in_loop(model, NoCache{}, task)};
    for (const AnyPolicy& policy :
         {AnyPolicy(PrefixCachePolicy{}), AnyPolicy(DualCachePolicy{}),
          AnyPolicy(FreeCachePolicy{}), AnyPolicy(VicinityPolicy{1, 2, 1}),
          AnyPolicy(DkvDecodePolicy{3}), AnyPolicy(ChangedRowsPolicy{})})
      runs.push_back(run_in_loop(model, policy, task));
    for (std::size_t i = 0; i < runs.size(); ++i)
      for (std::size_t j = 0; j < i; ++j) {
        CAPTURE(shift, i, j);
        CHECK(runs[i].in_pass != runs[j].in_pass);
        CHECK(runs[i].logits != runs[j].logits);
      }
  }
}

TEST_CASE("Policies: a cache that is always due is no cache", "[policies]") {
  for (const Index shift : {0, 1}) {
    Model model(seed, 3, shift);
    for (const PlainTask& task : tasks(shift)) {
      const PlainRun plain = run_in_loop(model, NoCache{}, task);
      const auto check = [&](const AnyPolicy& policy) {
        const PlainRun run = run_in_loop(model, policy, task);
        CAPTURE(shift, task.prompt.size(), task.response,
                std::string(policy.traits({.prompt = 1, .response = 1}).name));
        CHECK(run.in_pass == plain.in_pass);
        CHECK(run.tokens == plain.tokens);
        CHECK(run.logits == plain.logits);
      };
      check(DllmCachePolicy{.prompt_interval = 1, .response_interval = 1});
      check(DllmCachePolicy{.prompt_interval = 1,
                            .response_interval = 1,
                            .ratio = 0.0,
                            .refresh_first_layer = false});
      if (task.block_length == task.response) check(BlockVerifyPolicy{.prompt_interval = 1});
      check(DkvDecodePolicy{1});
      check(ChangedRowsPolicy{.refresh_interval = 1});
      check(VicinityPolicy{.warmup_steps = 1000});
      if (task.block_length == task.response) check(VicinityPolicy{never, never, 0, never});
      if (task.steps_per_block == 1 && task.threshold < 0.0) {
        check(PrefixCachePolicy{});
        check(DualCachePolicy{});
      }
    }
  }
}

TEST_CASE(
    "Policies: whoever keeps nothing but keys and values recomputes every row that is in the pass",
    "[policies]") {
  for (const Index shift : {0, 1})
    for (CachePair& pair : published_caches(shift)) {
      CAPTURE(shift, pair.what);
      Model model(seed, 3, shift);
      DenoisingLoop<Model> loop(model);
      loop.add(std::vector<std::int32_t>{1, 2, 3}, {.response = 8, .block_length = 4}, pair.policy);
      loop.run();
      const DecodingCounts counts = loop.counts(0);
      CHECK(counts.values == 3 * counts.rows);
      CHECK(counts.recomputed == 3 * counts.rows);
      const Index bytes = 11 * model.shape().kv_width * 4;  // of keys, in lines of 64 bytes
      CHECK(loop.cache_bytes(0) == 3 * 2 * ((bytes + 63) / 64 * 64));
    }
}

TEST_CASE("Policies: each names itself and what it needs to be told", "[policies]") {
  struct Expected {
    AnyPolicy policy;
    const char* name;
    bool block, masked, changed, unchanged_steps;
  };
  const Expected all[] = {
      {PrefixCachePolicy{}, "prefix", true, false, false, false},
      {DualCachePolicy{}, "dual", true, false, false, false},
      {FreeCachePolicy{}, "freecache", true, false, false, false},
      {VicinityPolicy{}, "vicinity", true, false, false, false},
      {DkvDecodePolicy{}, "dkv", true, true, true, false},
      {ChangedRowsPolicy{}, "changed-rows", false, true, true, false},
      {ChangedRowsPolicy{.keep_active = 1}, "changed-rows", false, true, true, true},
      {DllmCachePolicy{}, "dllm-cache", false, false, false, false},
      {BlockVerifyPolicy{}, "block-verify", true, false, false, false},
      {BlockVerifyPolicy{.recompute_block = false}, "block-verify", false, false, false, false},
      {NoCache{}, "none", false, false, false, false},
  };
  for (const Expected& one : all) {
    CAPTURE(one.name);
    const PolicyTraits traits = traits_of(one.policy, {.prompt = 5, .response = 4});
    CHECK(traits.name == one.name);
    CHECK(traits.needs_block == one.block);
    CHECK(traits.needs_masked == one.masked);
    CHECK(traits.needs_changed == one.changed);
    CHECK(traits.needs_unchanged_steps == one.unchanged_steps);
    CHECK_FALSE(traits.needs_confidence);
    // With a shifted head dKV counts steps of the sequence, not of the block.
    const bool shifted_block = one.block && traits.name != "dkv";
    CHECK(traits_of(one.policy, {.prompt = 5, .response = 4, .prediction_shift = 1}).needs_block ==
          shifted_block);
    CHECK(traits.keeps_features == (traits.name != "none"));
    const bool verifies = traits.name == "dllm-cache" || traits.name == "block-verify";
    CHECK(traits.stored_deltas.empty() != verifies);
  }
}

TEST_CASE("Policies: dLLM-Cache stores the deltas that it may reuse, and no others", "[policies]") {
  const auto stored = [](const DllmCachePolicy& policy, Index shift) {
    return traits_of(policy, {.prompt = 5, .response = 4, .prediction_shift = shift}).stored_deltas;
  };
  CHECK(stored({}, 0) == Range{5, 9});
  CHECK(stored({}, 1) == Range{4, 9});  // the last prompt row is in the pass at every step
  CHECK(stored({.prompt_interval = 1}, 1) == Range{5, 9});
  CHECK(stored({.response_interval = 1}, 1) == Range{4, 5});
  CHECK(stored({.response_interval = 1}, 0).empty());
  CHECK(stored({.prompt_interval = 1, .response_interval = 1}, 1).empty());
}

TEST_CASE("Policies: a bad option is refused by policy, option, range and value",
          "[policies][refusal]") {
  CHECK(refusal_of(VicinityPolicy{.prefix_look = -1}) ==
        "policy vicinity: prefix_look must be at least 0, got -1");
  CHECK(refusal_of(VicinityPolicy{.after_look = -2}) ==
        "policy vicinity: after_look must be at least 0, got -2");
  CHECK(refusal_of(VicinityPolicy{.warmup_steps = -3}) ==
        "policy vicinity: warmup_steps must be at least 0, got -3");
  CHECK(refusal_of(VicinityPolicy{.refresh_interval = 0}) ==
        "policy vicinity: refresh_interval must be at least 1 or never, got 0");
  CHECK(refusal_of(DkvDecodePolicy{0}) ==
        "policy dkv: refresh_interval must be at least 1 or never, got 0");
  CHECK(refusal_of(ChangedRowsPolicy{.keep_active = -1}) ==
        "policy changed-rows: keep_active must be in [0, 65534], got -1");
  CHECK(refusal_of(ChangedRowsPolicy{.keep_active = 65535}) ==
        "policy changed-rows: keep_active must be in [0, 65534], got 65535");
  CHECK(refusal_of(ChangedRowsPolicy{.refresh_interval = 0}) ==
        "policy changed-rows: refresh_interval must be at least 1 or never, got 0");
  CHECK(refusal_of(DllmCachePolicy{.prompt_interval = 0}) ==
        "policy dllm-cache: prompt_interval must be at least 1 or never, got 0");
  CHECK(refusal_of(DllmCachePolicy{.response_interval = -1}) ==
        "policy dllm-cache: response_interval must be at least 1 or never, got -1");
  CHECK(refusal_of(DllmCachePolicy{.ratio = 1.5}) ==
        "policy dllm-cache: ratio must be in [0, 1], got 1.5");
  CHECK(refusal_of(DllmCachePolicy{.ratio = std::nan("")}) ==
        "policy dllm-cache: ratio must be in [0, 1], got nan");
  for (const auto& [threshold, got] :
       {std::pair(1.5, "1.5"), std::pair(-1.5, "-1.5"), std::pair(std::nan(""), "nan"),
        std::pair(-no_similarity_threshold, "-inf")})
    CHECK(refusal_of(BlockVerifyPolicy{.similarity_threshold = threshold}) ==
          std::string("policy block-verify: similarity_threshold must be in [-1, 1] or none, "
                      "got ") +
              got);
  for (const AnyPolicy& legal :
       {AnyPolicy(VicinityPolicy{0, 0, 0, 1}),
        AnyPolicy(VicinityPolicy{never, never, never, never}), AnyPolicy(DkvDecodePolicy{1}),
        AnyPolicy(DkvDecodePolicy{never}), AnyPolicy(ChangedRowsPolicy{65534, 1}),
        AnyPolicy(DllmCachePolicy{never, never, 1.0}), AnyPolicy(DllmCachePolicy{1, 1, 0.0})})
    CHECK(refusal_of(legal) == "nothing was thrown");
}

TEST_CASE("Policies: a step without what the policy needs is refused by name",
          "[policies][refusal]") {
  const SequenceShape shape{.prompt = 2, .response = 3};
  const std::vector<std::uint8_t> flags(5, 1);
  const auto message = [&](const AnyPolicy& policy, const StepInput& input) {
    StepPlanner planner(policy, shape, 1);
    return refused_argument([&] { planner.begin_step(input); });
  };
  for (const AnyPolicy& policy : {AnyPolicy(PrefixCachePolicy{}), AnyPolicy(DualCachePolicy{}),
                                  AnyPolicy(FreeCachePolicy{}), AnyPolicy(VicinityPolicy{})})
    CHECK(message(policy, {}) == "StepInput: block must be given, policy " +
                                     std::string(policy.traits(shape).name) + " needs it");
  const Range block{2, 5};
  CHECK(message(DkvDecodePolicy{}, {}) == "StepInput: block must be given, policy dkv needs it");
  CHECK(message(DkvDecodePolicy{}, {.block = block}) ==
        "StepInput: masked must be given, policy dkv needs it");
  CHECK(message(DkvDecodePolicy{}, {.block = block, .masked = flags}) ==
        "StepInput: changed must be given, policy dkv needs it");
  CHECK(message(ChangedRowsPolicy{}, {.masked = flags}) ==
        "StepInput: changed must be given, policy changed-rows needs it");
  CHECK(message(ChangedRowsPolicy{.keep_active = 1}, {.masked = flags, .changed = flags}) ==
        "StepInput: unchanged_steps must be given, policy changed-rows needs it");
}
