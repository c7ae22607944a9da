// SPDX-License-Identifier: Apache-2.0
// Masks inside the prompt: gaps to be filled.
#include <algorithm>
#include <catch2/catch.hpp>
#include <vector>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/decoding/sequence_state.hpp"
#include "dllm_cache/policies/block_verify.hpp"
#include "tests/support/exact_refusal.hpp"
#include "tests/support/fake_model.hpp"
#include "tests/support/loop_runs.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;

namespace {

using Model = FakeModel<float>;
constexpr std::uint64_t seed = 1307;
constexpr std::int32_t gap = 99;
const SpecialTokens special{.mask = gap, .end_of_text = {7, 8}};

SequenceState state_of(const Tokens& prompt, const DecodingOptions& options) {
  return {prompt, options, special};
}

// One step in which every candidate is predicted as `token`, the higher row the surer. Returns the
// rows committed, in rising order.
std::vector<Index> step(SequenceState& state, std::int32_t token = 5) {
  std::vector<Prediction> predictions;
  for (Index row = 0; row < static_cast<Index>(state.tokens().size()); ++row)
    if (state.is_candidate(row))
      predictions.push_back({.row = row, .token = token, .confidence = static_cast<double>(row)});
  const Index count = state.commit(predictions);
  std::vector<Index> rows;
  for (Index i = 0; i < count; ++i) rows.push_back(predictions[static_cast<std::size_t>(i)].row);
  std::sort(rows.begin(), rows.end());
  return rows;
}
std::vector<std::vector<Index>> all_steps(SequenceState state) {
  std::vector<std::vector<Index>> steps;
  while (!state.finished()) steps.push_back(step(state));
  return steps;
}
Tokens tokens_of(const SequenceState& state) {
  return {state.tokens().begin(), state.tokens().end()};
}

// Which rows are recomputed in a step, by a policy, in the last layer.
std::vector<std::vector<Index>> recomputed_rows(Model& model, const Job& job) {
  DenoisingLoop<Model> loop(model);
  std::vector<std::vector<Index>> steps;
  loop.observer.on_layer = [&](const auto& pass, Index layer) {
    if (layer + 1 != model.shape().layers) return;
    steps.emplace_back(pass.recomputed().begin(), pass.recomputed().end());
  };
  loop.add(job.prompt, job.options, job.policy);
  loop.run();
  return steps;
}

}  // namespace

TEST_CASE("Gaps: only masks change, and nothing need follow the prompt", "[gaps]") {
  SequenceState state = state_of({1, gap, gap, 4, gap}, {.response = 0});
  CHECK(state.has_gaps());
  CHECK(state.first_to_fill() == 1);
  CHECK(std::vector<int>(state.given().begin(), state.given().end()) ==
        std::vector<int>{1, 0, 0, 1, 0});
  CHECK(state.masks_left() == 3);
  CHECK(all_steps(state) == std::vector<std::vector<Index>>{{4}, {2}, {1}});
  while (!state.finished()) step(state);
  CHECK(tokens_of(state) == Tokens{1, 5, 5, 4, 5});
  CHECK(state.response().empty());
  CHECK(state.masks_left() == 0);
}

TEST_CASE("Gaps: blocks are a grid over the whole sequence, those without a mask take no step",
          "[gaps]") {
  // Rows 0-2, 3-5, 6-8 and 9-10; the second holds no mask, the last is short.
  const SequenceState state =
      state_of({1, gap, gap, 4, 5, 6, gap, 8, 9}, {.response = 2, .block_length = 3});
  CHECK(state.block() == Range{0, 3});
  CHECK(all_steps(state) == std::vector<std::vector<Index>>{{2}, {1}, {6}, {10}, {9}});
}

TEST_CASE("Gaps: the first block with a mask is the first block", "[gaps]") {
  const SequenceState state = state_of({1, 2, 3, 4, gap, 6}, {.response = 0, .block_length = 2});
  CHECK(state.block() == Range{4, 6});
  CHECK(all_steps(state).size() == 1);
}

TEST_CASE("Gaps: steps are shared by all blocks of the grid, rounded up", "[gaps]") {
  // Seven steps over three blocks are three a block; 8 masks in 3 steps are 3, 2 and 3.
  Tokens prompt(8, gap);
  prompt.insert(prompt.end(), {1, 1, 1, gap});
  const SequenceState state = state_of(prompt, {.response = 0, .block_length = 8, .steps = 5});
  CHECK(state.block_progress().steps == 3);
  const auto steps = all_steps(state);
  REQUIRE(steps.size() == 4);
  CHECK(steps[0].size() == 3);
  CHECK(steps[1].size() == 2);
  CHECK(steps[2].size() == 3);
  CHECK(steps[3] == std::vector<Index>{11});
}

TEST_CASE("Gaps: a row of an earlier block that kept its mask is left alone, and counted",
          "[gaps]") {
  SequenceState state = state_of({gap, 2, gap, 4}, {.response = 0, .block_length = 2});
  CHECK(step(state, gap) == std::vector<Index>{0});  // the model predicts the mask itself
  CHECK(step(state) == std::vector<Index>{2});
  CHECK(state.finished());
  CHECK(tokens_of(state) == Tokens{gap, 2, 5, 4});
  CHECK(state.masks_left() == 1);
}

TEST_CASE("Gaps: rules that count no steps end a block when its masks are gone", "[gaps]") {
  const SequenceState state =
      state_of({1, gap, gap, gap, 5}, {.response = 3, .block_length = 4, .commit = FixedCommit{2}});
  CHECK(all_steps(state) == std::vector<std::vector<Index>>{{2, 3}, {1}, {6, 7}, {5}});
}

TEST_CASE("Gaps: an end token ends the response early, not the text around a gap", "[gaps]") {
  SequenceState state =
      state_of({8, gap, 7, 1}, {.response = 6, .block_length = 2, .early_stop = true});
  step(state, 8);  // in the prompt: the given text goes on
  CHECK_FALSE(state.finished());
  step(state, 5);
  step(state, 5);
  step(state, 8);
  step(state, 5);
  CHECK(state.finished());
  CHECK(tokens_of(state) == Tokens{8, 8, 7, 1, 5, 5, 5, 8, 7, 7});  // filled with the first end
}

TEST_CASE("Gaps: a prompt without masks needs a response", "[gaps][refusal]") {
  CHECK(refused_argument([] {
          static_cast<void>(state_of({1, 2}, {.response = 0}));
        }) == "DecodingOptions: response must be at least 1 where the prompt holds no mask, got 0");
}

TEST_CASE("Gaps: without a cache or with one that is always due they are filled alike",
          "[gaps][property]") {
  for (const Index shift : {0, 1})
    for (const double scale : {0.0, 1.5}) {
      INFO("seed " << seed << ", shift " << shift << ", guidance " << scale);
      Model model(seed, 3, shift);
      const std::int32_t mask = Model::mask;
      const Tokens prompt{3, mask, mask, 1, 4, mask, 2, 2, mask, mask, 9};
      DecodingOptions options{.response = 4, .block_length = 6};
      options.guidance_scale = scale;
      const Record expected = run_alone<Model>(model, {prompt, options, NoCache{}});
      CHECK(expected.tokens.back().size() == 15);
      for (const AnyPolicy& policy :
           {AnyPolicy(DllmCachePolicy{1, 1, 0.25}),
            AnyPolicy(BlockVerifyPolicy{.prompt_interval = 1, .response_interval = 1}),
            AnyPolicy(DkvDecodePolicy{1}), AnyPolicy(ChangedRowsPolicy{.refresh_interval = 1}),
            AnyPolicy(VicinityPolicy{100, 100, 0})}) {
        const Record got = run_alone<Model>(model, {prompt, options, policy});
        CHECK(got.tokens == expected.tokens);
        CHECK(got.logits == expected.logits);
      }
    }
}

TEST_CASE("Gaps: guidance masks what was given, not what was filled", "[gaps]") {
  // With all masks but one, the unconditional run sees masks alone until the first commit.
  Model model(seed);
  const std::int32_t mask = Model::mask;
  const Tokens prompt{mask, 4, mask, mask};
  const Record record =
      run_alone<Model>(model, {prompt, {.response = 0, .guidance_scale = 1.0}, NoCache{}});
  const auto logits = [&](const Tokens& tokens, Index row) {
    const std::vector<Index> ids(tokens.begin(), tokens.end());
    const Matrix<float> hidden = plain_forward(
        model.tiny, {.prompt = static_cast<Index>(tokens.size())}, model.tiny.embed(ids));
    std::vector<float> all(static_cast<std::size_t>(model.vocabulary()));
    model.logits({hidden.row(row), 1, hidden.cols, hidden.cols},
                 dense_view(all.data(), 1, model.vocabulary()));
    return all;
  };
  const Tokens& first = record.tokens[0];
  Tokens hidden = first;
  hidden[1] = mask;
  for (Index row = 0; row < 4; ++row) {
    if (first[static_cast<std::size_t>(row)] != mask) continue;
    const std::vector<float> with = logits(first, row), without = logits(hidden, row);
    const std::vector<float>& got = record.logits.at({1, row});
    for (std::size_t i = 0; i < got.size(); ++i)
      CHECK(got[i] == with[i] + 1.0F * (with[i] - without[i]));
  }
}

TEST_CASE("Gaps: dLLM-Cache lets given text rest between prompt refreshes, wherever it stands",
          "[gaps]") {
  Model model(seed, 3);
  const std::int32_t mask = Model::mask;
  const Tokens prompt{3, 3, mask, mask, 1, 4, 4, 1, mask, mask, 9};
  const auto steps = recomputed_rows(model, {prompt, {.response = 2}, DllmCachePolicy{4, 2, 0.5}});
  REQUIRE(steps.size() == 6);
  std::vector<Index> all(13);
  for (Index row = 0; row < 13; ++row) all[static_cast<std::size_t>(row)] = row;
  CHECK(steps[0] == all);
  CHECK(steps[2] == std::vector<Index>{2, 3, 8, 9, 11, 12});
  CHECK(steps[4] == all);
  CHECK(steps[1].size() == 3);  // half of the six rows to fill
  for (const Index row : steps[1]) CHECK(std::count(steps[2].begin(), steps[2].end(), row) == 1);
}

TEST_CASE("Gaps: with a shifted head the row that predicts a gap is looked after too", "[gaps]") {
  Model model(seed, 3, 1);
  const std::int32_t mask = Model::mask;
  const Tokens prompt{3, 3, mask, 1, 4, 4, mask, 1};
  const auto steps =
      recomputed_rows(model, {prompt, {.response = 0, .steps = 2}, DllmCachePolicy{9, 1, 0.5}});
  REQUIRE(steps.size() == 2);
  CHECK(steps[1] == std::vector<Index>{2, 5, 6});
}

TEST_CASE("Gaps: block-verify recomputes the gaps of its block and verifies other gaps alone",
          "[gaps]") {
  Model model(seed, 3);
  const std::int32_t mask = Model::mask;
  const Tokens prompt{3, mask, mask, 1, 4, 4, 4, 1, mask, mask, mask, mask};
  const auto steps = recomputed_rows(
      model, {prompt,
              {.response = 0, .block_length = 4},
              BlockVerifyPolicy{.ratio = 0.5, .similarity_threshold = no_similarity_threshold}});
  REQUIRE(steps.size() == 6);
  REQUIRE(steps[1].size() == 4);  // two of the block, half of the other four
  CHECK(steps[1][0] == 1);
  CHECK(steps[1][1] == 2);
  CHECK(steps[1][2] >= 8);
}

TEST_CASE("Gaps: block caches refresh at a block's first step, whichever step of the plan it is",
          "[gaps]") {
  Model model(seed, 3);
  const std::int32_t mask = Model::mask;
  const Tokens prompt{3, mask, mask, 1, 4, 4, 1, mask, mask, 9};
  // Fifty steps for two masks a block: the first worth taking come late.
  for (const AnyPolicy& policy : {AnyPolicy(DualCachePolicy{}), AnyPolicy(PrefixCachePolicy{})}) {
    const auto steps =
        recomputed_rows(model, {prompt, {.response = 0, .block_length = 5, .steps = 100}, policy});
    REQUIRE(steps.size() == 4);
    CHECK(steps[0].size() == 10);
    CHECK(steps[1].size() < 10);
    CHECK(steps[2].size() == 10);
    CHECK(steps[3].size() < 10);
  }
}

TEST_CASE("Gaps: policies are told of a block within the rows that may change", "[gaps]") {
  struct Watching {
    std::vector<Range>* blocks;
    [[nodiscard]] PolicyTraits traits(const SequenceShape&) const { return {.name = "watching"}; }
    void plan(const StepContext& context, StepPlan& plan) const {
      blocks->push_back(context.block);
      CHECK(context.is_given(0));
      CHECK_FALSE(context.is_given(2));
      CHECK(context.is_given(4));
      plan.recompute(context.live());
    }
  };
  Model model(seed);
  const std::int32_t mask = Model::mask;
  std::vector<Range> blocks;
  DenoisingLoop<Model> loop(model);
  loop.add(Tokens{3, 3, mask, mask, 1, 4, mask}, {.response = 1, .block_length = 4},
           Watching{&blocks});
  loop.run();
  // The first step is planned without the policy.
  CHECK(blocks == std::vector<Range>{{2, 4}, {4, 8}, {4, 8}});
}

TEST_CASE("Gaps: as many steps as float32 tells apart fill them, more are refused", "[gaps]") {
  DecodingOptions options{.response = 0, .steps = most_linear_steps};
  const SequenceState state = state_of({1, gap, gap, gap}, options);
  CHECK(all_steps(state).size() == 3);
  ++options.steps;
  CHECK(refused_argument([&] {
          static_cast<void>(state_of({1, gap}, options));
        }) ==
        "DecodingOptions: steps must be at most 1048576 where the prompt holds masks, got 1048577");
  // Rules with schedules of their own do not plan that way.
  options.commit = TimestepCommit{};
  CHECK_NOTHROW(state_of({1, gap}, options));
}
