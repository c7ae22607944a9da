// SPDX-License-Identifier: Apache-2.0
// Block-causal decoding: blocks, what is final, and what is computed.
#include <algorithm>
#include <catch2/catch.hpp>
#include <map>
#include <string>

#include "tests/support/cached_run.hpp"
#include "tests/support/exact_refusal.hpp"
#include "tests/support/fake_model.hpp"
#include "tests/support/loop_runs.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;
using Catch::Matchers::Contains;
using Loop = DenoisingLoop<FakeModel<>>;

namespace {

constexpr std::uint64_t seed = 1818;

Tokens response_of(const Loop& loop, Index id) {
  const auto response = loop.sequence(id).response();
  return {response.begin(), response.end()};
}

// Tokens before each denoising step, and all logits of candidates.
struct Run {
  std::vector<Tokens> tokens;
  std::map<Record::Row, std::vector<float>> logits;
  RowCounts counts;
  Index forwards = 0;
  Tokens response;
};

Run run(FakeModel<> model, const Job& job) {
  Loop loop(model);
  Run run;
  loop.observer.on_logits = [&](Index id, Index row, std::span<const float> logits) {
    run.logits[{loop.sequence(id).step(), row}].assign(logits.begin(), logits.end());
  };
  loop.add(job.prompt, job.options, job.policy);
  loop.run([&](const StepReport& report) {
    if (!report.stores) run.tokens.emplace_back(report.tokens.begin(), report.tokens.end());
  });
  REQUIRE(model.log.broken_rule.empty());
  run.counts = loop.counts(0);
  run.forwards = loop.forwards(0);
  run.response = response_of(loop, 0);
  return run;
}

// A policy that keeps finished blocks as their last step left them.
struct ForgetsToStore {
  [[nodiscard]] PolicyTraits traits(const SequenceShape&) const {
    return {.name = "forgets", .needs_block = true};
  }
  void plan(const StepContext& context, StepPlan& plan) const {
    plan.recompute({context.open(), context.live().end});
  }
};

bool approximate(const Job& job) {
  return job.policy.traits({.prompt = 2, .response = 4}).name != "block" ||
         job.policy.options() == AnyPolicy(BlockCachePolicy{true}).options();
}

}  // namespace

TEST_CASE("Blocks: the exact cache gives every logit of the uncached run, bit by bit",
          "[blocks][loop]") {
  for (const Index shift : {0, 1}) {
    const FakeModel<> model(seed, 3, shift);
    Index compared = 0;
    for (Job job : block_causal_jobs(shift)) {
      if (approximate(job)) continue;
      INFO("seed " << seed << ", shift " << shift << ", job " << compared);
      const Run cached = run(model, job);
      job.policy = NoCache{};
      const Run plain = run(model, job);
      CHECK(cached.tokens == plain.tokens);
      // A guided run keeps residuals of rows that it cannot compute anew; tokens are the same.
      if (job.options.guidance_interval == 1) CHECK(cached.logits == plain.logits);
      CHECK(cached.counts.recomputed < plain.counts.recomputed);
      ++compared;
    }
    CHECK(compared >= 4);
  }
}

TEST_CASE("Blocks: an uncached step is the plain forward of the block-causal mask", "[blocks]") {
  for (const bool prompt_end : {false, true}) {
    FakeModel<> model(seed);
    Loop loop(model);
    const Tokens prompt{1, 2, 3, 4, 5, 6};
    loop.add(prompt,
             {.response = 7,
              .attention_block = 4,
              .prompt_end_grid = prompt_end,
              .commit = EvenCommit{}},
             BlockCachePolicy{});
    Index compared = 0;
    loop.observer.on_logits = [&](Index, Index row, std::span<const float> logits) {
      const SequenceState& state = loop.sequence(0);
      SequenceShape live = state.layout().shape();
      live.prompt = 0;
      live.response = state.block().end;
      std::vector<Index> tokens(state.tokens().begin(), state.tokens().begin() + live.rows());
      const Matrix<float> hidden = plain_forward(model.tiny, live, model.tiny.embed(tokens));
      std::vector<float> wanted(logits.size());
      model.logits({hidden.row(row), 1, hidden.cols, hidden.cols},
                   dense_view(wanted.data(), 1, static_cast<Index>(wanted.size())));
      CHECK(std::equal(logits.begin(), logits.end(), wanted.begin()));
      ++compared;
    };
    loop.run();
    CHECK(compared > 10);
  }
}

TEST_CASE("Blocks: fused and unfused runs decode the same, in fewer forwards", "[blocks][loop]") {
  for (const Index shift : {0, 1}) {
    const FakeModel<> model(seed, 2, shift);
    for (Job job : block_causal_jobs(shift)) {
      if (approximate(job) || job.options.commit_next) continue;
      job.options.fuse_blocks = true;
      const Run fused = run(model, job);
      job.options.fuse_blocks = false;
      const Run apart = run(model, job);
      INFO("seed " << seed << ", shift " << shift);
      CHECK(fused.tokens == apart.tokens);
      if (job.options.guidance_interval == 1) {
        CHECK(fused.logits == apart.logits);
        // With a shifted head the row before a block flows in its first step, in both or alone.
        if (shift == 0) CHECK(fused.counts.rows == apart.counts.rows);
      }
      CHECK(fused.forwards < apart.forwards);
    }
  }
}

TEST_CASE("Blocks: a finished block is computed once more, and nothing before it", "[blocks]") {
  const FakeModel<> model(seed);
  // Two full blocks of the prompt, then 4 blocks of 4 rows, one token a step; the first of them has
  // two rows of the prompt.
  Job job{{1, 2, 3, 4, 5, 6, 7, 8, 9, 10},
          {.response = 13, .attention_block = 4, .commit = EvenCommit{}},
          BlockCachePolicy{}};
  const Run one = run(model, job);
  CHECK(one.tokens.size() == 2 + 4 + 4 + 4);
  CHECK(one.forwards == 14);
  CHECK(one.counts.rows == 8 + 14 * 4 + 3 * 4);
  CHECK(one.counts.recomputed == 2 * one.counts.rows);
  CHECK(one.response.size() == 13);
  CHECK(one.tokens.back().size() == 24);  // one row fills the last block
  job.options.fuse_blocks = false;
  const Run apart = run(model, job);
  CHECK(apart.forwards == 1 + 14 + 3);
  CHECK(apart.counts.rows == one.counts.rows);
}

TEST_CASE("Blocks: a plan that forgets to store a finished block is refused by its row",
          "[blocks][refusal]") {
  FakeModel<> model(seed);
  Loop loop(model);
  loop.add(Tokens{1, 2, 3, 4}, {.response = 8, .attention_block = 4, .commit = EvenCommit{}},
           ForgetsToStore{});
  CHECK_THAT(refused_call([&] { loop.run(); }),
             Contains("forgets: row 4 is not recomputed, but its key would be read and is not "
                      "settled"));
  CHECK(loop.sequence(0).step() == 4);  // the whole first block, whose own features may be stale
  CHECK(loop.sequence(0).block() == Range{8, 12});
}

TEST_CASE("Blocks: within a block the approximate policies compose, finished ones stay exact",
          "[blocks]") {
  for (const AnyPolicy& policy :
       {AnyPolicy(DualCachePolicy{}), AnyPolicy(PrefixCachePolicy{}), AnyPolicy(FreeCachePolicy{}),
        AnyPolicy(DkvDecodePolicy{never}), AnyPolicy(ChangedRowsPolicy{}),
        AnyPolicy(VicinityPolicy{.prefix_look = 0, .after_look = 0, .warmup_steps = 0})}) {
    FakeModel<> model(seed);
    Loop loop(model);
    loop.add(Tokens{1, 2, 3, 4, 5}, {.response = 15, .attention_block = 5, .commit = EvenCommit{}},
             policy);
    loop.observer.on_layer = [&](const Loop::PassType&, Index layer) {
      // Keys of what lies before the block are those of a plain forward.
      const SequenceState& state = loop.sequence(0);
      SequenceShape live = state.layout().shape();
      live.prompt = 0;
      live.response = state.block().begin;
      if (live.rows() == 0) return;
      std::vector<Index> tokens(state.tokens().begin(), state.tokens().begin() + live.rows());
      FeatureCache<float> kept(model.shape(), live, BlockCachePolicy{});
      Workspace<float> workspace;
      run_step(workspace, kept, model.tiny, model.tiny.embed(tokens),
               {.block = {0, live.rows()}, .block_done = true});
      for (Index row = 0; row < live.rows(); ++row)
        CHECK(std::equal(kept.keys(layer).row(row),
                         kept.keys(layer).row(row) + kept.keys(layer).cols,
                         loop.cache(0).keys(layer).row(row)));
    };
    INFO(policy.traits({.prompt = 1, .response = 1}).name);
    CHECK_NOTHROW(loop.run());
    CHECK(loop.sequence(0).masks_left() == 0);
  }
}

TEST_CASE("Blocks: any end token ends a sequence, the first of them fills it", "[blocks]") {
  FakeModel<> model(seed);
  model.special.end_of_text = {11, 5};
  model.bias[5] = 20.0F;  // what the model says to everything
  DecodingOptions options{
      .response = 14, .attention_block = 4, .commit = EvenCommit{}, .early_stop = true};
  Loop loop(model);
  loop.add(Tokens{1, 2}, options, BlockCachePolicy{});
  loop.run();
  CHECK(response_of(loop, 0) == Tokens{5, 5, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11});
  options.stop_within_block = true;
  options.confidence = Confidence::LeftToRight;
  loop.add(Tokens{1, 2}, options, BlockCachePolicy{});
  loop.run();
  CHECK(loop.sequence(1).step() == 1);
  CHECK(response_of(loop, 1) == Tokens{5, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11});
  options.early_stop = false;
  options.trim_after_end = true;
  loop.add(Tokens{1, 2}, options, BlockCachePolicy{});
  loop.run();
  CHECK(loop.sequence(2).step() == 14);
  CHECK(response_of(loop, 2) == response_of(loop, 1));
  CHECK_THAT(refused_call([&] { loop.extend(2, 4); }), Contains("after an end token"));
}

TEST_CASE("Blocks: a sequence that is extended is the one that was longer from the start",
          "[blocks][extend]") {
  for (const Index shift : {0, 1}) {
    FakeModel<> model(seed, 2, shift);
    for (const Index steps_before : {0, 1, 5, 100}) {
      Job job{{3, 1, 4, 1, 5, 9},
              {.response = 17, .attention_block = 4, .commit = EvenCommit{}},
              BlockCachePolicy{}};
      if (shift == 1) job.options.commit_next = true;
      const Run whole = run(model, job);
      job.options.response = 5;
      Loop loop(model);
      loop.add(job.prompt, job.options, job.policy);
      for (Index step = 0; step < steps_before && loop.step(); ++step) {
      }
      loop.extend(0, 7);
      loop.step();
      loop.extend(0, 5);
      loop.run();
      INFO("seed " << seed << ", shift " << shift << ", after " << steps_before << " steps");
      CHECK(response_of(loop, 0) == whole.response);
      CHECK(loop.counts(0).rows == whole.counts.rows);
      CHECK(loop.forwards(0) == whole.forwards);
    }
  }
}

TEST_CASE("Blocks: a response that is extended goes on where attention is bidirectional",
          "[blocks][extend]") {
  FakeModel<> model(seed);
  Loop loop(model);
  loop.add(Tokens{1, 2, 3}, {.response = 4, .steps = 2}, DllmCachePolicy{4, 2, 0.5});
  loop.run();
  const Tokens before = response_of(loop, 0);
  loop.extend(0, 4);
  CHECK(loop.cache(0).stale());
  loop.run();
  const Tokens after = response_of(loop, 0);
  CHECK(std::equal(before.begin(), before.end(), after.begin()));
  CHECK(loop.sequence(0).step() == 4);  // two more for the second block
  CHECK(loop.sequence(0).masks_left() == 0);
  CHECK_THAT(refused_argument([&] { loop.extend(0, 3); }), Contains("block_length must divide"));
  CHECK_THAT(refused_argument([&] { loop.extend(0, 0); }), Contains("rows must be in [1, "));
  CHECK(loop.sequence(0).finished());
}

TEST_CASE("Blocks: the next turn of a chat computes nothing that is final", "[blocks][append]") {
  FakeModel<> model(seed);
  const DecodingOptions options{.response = 10, .attention_block = 4, .commit = EvenCommit{}};
  const Tokens prompt{1, 2, 3, 4, 5}, question{7, 7, 8, 9, 6, 3};
  Loop loop(model);
  loop.add(prompt, options, BlockCachePolicy{});
  loop.run();
  Tokens all = prompt;
  for (const std::int32_t token : response_of(loop, 0)) all.push_back(token);
  all.insert(all.end(), question.begin(), question.end());
  const Index rows_before = loop.counts(0).rows;
  loop.append(0, question, options);
  loop.run();
  const Run fresh = run(model, {all, options, BlockCachePolicy{}});
  CHECK(response_of(loop, 0) == fresh.response);
  // 16 rows were decoded; the last block's 4 were not stored, one of them is another token now.
  CHECK(loop.counts(0).rows - rows_before == fresh.counts.rows - 12);
  // Where attention is bidirectional the turn begins anew.
  Loop other(model);
  other.add(prompt, {.response = 10}, NoCache{});
  other.run();
  other.append(0, question, {.response = 6});
  other.run();
  CHECK(other.sequence(0).masks_left() == 0);
  CHECK_THAT(refused_argument([&] { loop.append(0, Tokens{99}, options); }),
             Contains("prompt must hold tokens"));
}

TEST_CASE("Blocks: an answer that ended is followed by the next turn", "[blocks][append]") {
  FakeModel<> model(seed);
  model.bias[11] = 20.0F;
  const DecodingOptions options{
      .response = 10, .attention_block = 4, .commit = EvenCommit{}, .early_stop = true};
  Loop loop(model);
  loop.add(Tokens{1, 2, 3, 4, 5}, options, BlockCachePolicy{});
  loop.run();
  loop.append(0, Tokens{8, 9}, options);
  const auto tokens = loop.sequence(0).tokens().first(8);
  CHECK(Tokens(tokens.begin(), tokens.end()) == Tokens{1, 2, 3, 4, 5, 11, 8, 9});
  model.bias[11] = 0.0F;
  loop.run();
  const Run fresh = run(model, {{1, 2, 3, 4, 5, 11, 8, 9}, options, BlockCachePolicy{}});
  CHECK(response_of(loop, 0) == fresh.response);
}

TEST_CASE("Blocks: forks of a prompt decode as if alone and hold its features once",
          "[blocks][fork]") {
  FakeModel<> model(seed);
  DecodingOptions options{.response = 8,
                          .attention_block = 4,
                          .temperature = 1.0,
                          .sampling = Sampling::Categorical,
                          .commit = EvenCommit{},
                          .seed = 7};
  Tokens prompt(42, 3);
  for (std::size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<std::int32_t>(i % 11);
  Loop loop(model);
  loop.add(prompt, options, BlockCachePolicy{});
  loop.prefill(0);
  CHECK(loop.sequence(0).step() == 0);
  CHECK(loop.counts(0).rows == 40);
  loop.prefill(0);  // there is nothing left to compute but rows that share its last block
  for (std::uint64_t number = 1; number < 4; ++number)
    CHECK(loop.fork(0, number) == static_cast<Index>(number));
  const Index whole = loop.cache(0).bytes();
  CHECK(loop.cache_bytes(0) == whole);
  CHECK(loop.cache_bytes(1) == 0);
  CHECK(loop.fork(3, 4) == 4);  // of a fork
  loop.run();
  for (Index id = 0; id < 5; ++id) {
    options.sequence = static_cast<std::uint64_t>(id);
    INFO("seed " << seed << ", sequence " << id);
    CHECK(response_of(loop, id) == run(model, {prompt, options, BlockCachePolicy{}}).response);
    if (id > 0) CHECK(loop.cache_bytes(id) == whole / loop.cache(0).shape().rows() * 12);
  }
}

TEST_CASE("Blocks: where attention is bidirectional forks share until the policy writes",
          "[blocks][fork]") {
  FakeModel<> model(seed);
  const DecodingOptions options{.response = 6, .temperature = 1.0, .seed = 2};
  Loop loop(model);
  loop.add(Tokens{1, 2, 3, 4, 5, 6, 7, 8}, options, DllmCachePolicy{never, never, 0.0, false});
  loop.prefill(0);
  CHECK(loop.forwards(0) == 1);
  CHECK(loop.sequence(0).masks_left() == 6);
  loop.prefill(0);
  CHECK(loop.forwards(0) == 1);  // nothing was stale
  loop.fork(0, 1);
  Loop alone(model);
  alone.add(Tokens{1, 2, 3, 4, 5, 6, 7, 8}, options, DllmCachePolicy{never, never, 0.0, false});
  alone.prefill(0);
  loop.run();
  alone.run();
  CHECK(response_of(loop, 0) == response_of(alone, 0));
  CHECK(response_of(loop, 1) != response_of(loop, 0));
  CHECK(loop.cache_bytes(1) == 0);  // this policy never writes again
}

TEST_CASE("Blocks: with causal commits a finished row sees no row behind it", "[blocks]") {
  FakeModel<> model(seed, 3);
  Loop loop(model);
  const Tokens prompt{1, 2, 3, 4, 5, 6};
  loop.add(prompt,
           {.response = 10, .attention_block = 4, .causal_commit = true, .commit = EvenCommit{}},
           BlockCachePolicy{});
  Index compared = 0;
  loop.observer.on_logits = [&](Index, Index row, std::span<const float> logits) {
    // A causal forward of what is finished, then the block over its keys.
    const SequenceState& state = loop.sequence(0);
    const Range block = state.block();
    SequenceShape causal{.prompt = 0, .response = block.begin, .attention_block = 1};
    std::vector<Index> tokens(state.tokens().begin(), state.tokens().begin() + block.end);
    SequenceShape both = state.layout().shape();
    both.prompt = 0;
    both.response = block.end;
    FeatureCache<float> cache(model.shape(), both, NoCache{});
    Workspace<float> workspace;
    Matrix<float> x = model.tiny.embed(tokens);
    if (causal.rows() > 0) {  // rows in front are those of a causal model alone
      const std::vector<Index> first(tokens.begin(), tokens.begin() + block.begin);
      const Matrix<float> alone = plain_forward(model.tiny, causal, model.tiny.embed(first));
      const auto in_pass = run_step(workspace, cache, model.tiny, x, {.block = block});
      for (Index one = 0; one < block.begin; ++one)
        CHECK(std::equal(alone.row(one), alone.row(one) + alone.cols, in_pass.hidden.row(one)));
    }
    FeatureCache<float> again(model.shape(), both, NoCache{});
    const auto in_pass = run_step(workspace, again, model.tiny, x, {.block = block});
    std::vector<float> wanted(logits.size());
    model.logits({in_pass.hidden.row(row), 1, x.cols, x.cols},
                 dense_view(wanted.data(), 1, static_cast<Index>(wanted.size())));
    CHECK(std::equal(logits.begin(), logits.end(), wanted.begin()));
    ++compared;
  };
  loop.run();
  CHECK(compared > 10);
  // The prompt's full block, then the block at every step and once more causally.
  CHECK(loop.counts(0).rows == 4 + 4 * (2 + 4 + 4) + 4 * 2);
}

TEST_CASE("Blocks: options that do not go with blocks are refused by name", "[blocks][refusal]") {
  const auto refused = [](const Tokens& prompt, const DecodingOptions& options, Index shift = 0) {
    FakeModel<> model(seed, 2, shift);
    Loop loop(model);
    return refused_argument([&] { loop.add(prompt, options, BlockCachePolicy{}); });
  };
  const Tokens prompt{1, 2, 3};
  CHECK(refused(prompt, {.response = 8, .block_length = 3, .attention_block = 4}) ==
        "DecodingOptions: block_length must divide attention_block = 4, got 3");
  CHECK(refused(prompt, {.response = 8, .prompt_end_grid = true}) ==
        "DecodingOptions: prompt_end_grid needs an attention_block of at least 1, got 0");
  CHECK(refused(prompt, {.response = 8, .commit_next = true}, 1) ==
        "DecodingOptions: commit_next needs an attention_block of at least 1, got 0");
  CHECK(refused(prompt, {.response = 8, .attention_block = 4, .commit_next = true}) ==
        "DenoisingLoop: commit_next needs a model whose rows predict the next one's token");
  CHECK(refused(prompt,
                {.response = 8, .attention_block = 4, .commit_next = true, .guidance_scale = 1.0},
                1) ==
        "DecodingOptions: guidance_scale must be 0 with commit_next, whose models have no "
        "unconditional run, got 1");
  CHECK(refused({1, 12}, {.response = 8, .attention_block = 4, .prompt_end_grid = true}) ==
        "DecodingOptions: the prompt must hold no mask with prompt_end_grid");
  CHECK(refused(prompt, {.response = 8, .attention_block = 70000}) ==
        "DecodingOptions: attention_block must be in [0, 65536], got 70000");
  CHECK(
      refused(prompt, {.response = 8, .steps = 5, .attention_block = 4}) ==
      "DecodingOptions: steps must be a positive multiple of the number of blocks = 3 (response / "
      "block_length), got 5");
}
