// SPDX-License-Identifier: Apache-2.0
#include "dllm_cache/decoding/sequence_state.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "tests/support/exact_refusal.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;

namespace {

using Tokens = std::vector<std::int32_t>;

const SpecialTokens special{.mask = 99, .end_of_text = 7};
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

SequenceState state_of(const DecodingOptions& options, const Tokens& prompt = {1, 2, 3}) {
  return {prompt, options, special};
}

Tokens tokens_of(const SequenceState& state) {
  return {state.tokens().begin(), state.tokens().end()};
}
Tokens response_of(const SequenceState& state) {
  return {state.response().begin(), state.response().end()};
}

// Every candidate is predicted, with a confidence that depends on the row.
template <class Confidence>
std::vector<Prediction> predict(const SequenceState& state, std::int32_t token,
                                Confidence confidence) {
  std::vector<Prediction> predictions;
  for (Index row = 0; row < static_cast<Index>(state.tokens().size()); ++row)
    if (state.is_candidate(row))
      predictions.push_back({.row = row, .token = token, .confidence = confidence(row)});
  return predictions;
}

// One step as the loop takes it, with a confidence that grows with the row unless told otherwise.
// Returns the rows committed.
template <class Confidence>
std::vector<Index> step(SequenceState& state, std::int32_t token, Confidence confidence) {
  std::vector<Prediction> predictions = predict(state, token, confidence);
  const Index count = state.commit(predictions);
  std::vector<Index> rows;
  for (Index i = 0; i < count; ++i) rows.push_back(predictions[static_cast<std::size_t>(i)].row);
  return rows;
}
std::vector<Index> step(SequenceState& state, std::int32_t token = 5) {
  return step(state, token, [](Index row) { return static_cast<double>(row); });
}

std::string refusal_of(const DecodingOptions& options) {
  return refused_argument([&] { static_cast<void>(state_of(options)); });
}

}  // namespace

TEST_CASE("SequenceState: begins with the prompt and masks", "[sequence_state]") {
  const SequenceState state = state_of({.response = 4, .block_length = 2, .steps = 4});
  CHECK(tokens_of(state) == Tokens{1, 2, 3, 99, 99, 99, 99});
  CHECK(response_of(state) == Tokens{99, 99, 99, 99});
  CHECK(std::vector<int>(state.masked().begin(), state.masked().end()) ==
        std::vector<int>{0, 0, 0, 1, 1, 1, 1});
  CHECK(state.prompt_rows() == 3);
  CHECK(state.step() == 0);
  CHECK(state.block() == Range{3, 5});
  CHECK(state.block_progress().steps == 2);
  CHECK(state.block_progress().first_masked == 2);
  CHECK_FALSE(state.finished());
}

TEST_CASE("SequenceState: an empty prompt is a prompt", "[sequence_state]") {
  SequenceState state = state_of({.response = 2}, {});
  CHECK(state.block() == Range{0, 2});
  CHECK(step(state) == std::vector<Index>{1});
  CHECK(step(state) == std::vector<Index>{0});
  CHECK(state.finished());
}

TEST_CASE("SequenceState: commits the surest rows, of equally sure ones the lower",
          "[sequence_state]") {
  SequenceState state = state_of({.response = 5, .steps = 2});
  const double sure[] = {0, 0, 0, 0.2, 0.7, 0.7, 0.9, 0.7};
  std::vector<Prediction> first = predict(state, 5, [&](Index row) { return sure[row]; });
  CHECK(state.commit(first) == 3);
  CHECK(tokens_of(state) == Tokens{1, 2, 3, 99, 5, 5, 5, 99});
  // What was not committed stands behind what was.
  std::vector<Index> order;
  for (const Prediction& one : first) order.push_back(one.row);
  CHECK(order == std::vector<Index>{6, 4, 5, 7, 3});
  CHECK(step(state, 6, [&](Index row) { return sure[row]; }) == std::vector<Index>{7, 3});
  CHECK(tokens_of(state) == Tokens{1, 2, 3, 6, 5, 5, 5, 6});
  CHECK(state.finished());
}

TEST_CASE("SequenceState: seven rows in three steps are three, two and two", "[sequence_state]") {
  SequenceState state = state_of({.response = 7, .steps = 3});
  std::vector<std::size_t> counts;
  while (!state.finished()) counts.push_back(step(state).size());
  CHECK(counts == std::vector<std::size_t>{3, 2, 2});
}

TEST_CASE("SequenceState: more steps than rows commit one each, and no more are taken",
          "[sequence_state]") {
  SequenceState state = state_of({.response = 2, .steps = 5});
  std::vector<std::size_t> counts;
  while (!state.finished()) counts.push_back(step(state).size());
  CHECK(counts == std::vector<std::size_t>{1, 1});
  CHECK(state.step() == 2);
}

TEST_CASE("SequenceState: blocks are decoded one after the other, each with its remainder first",
          "[sequence_state]") {
  SequenceState state = state_of({.response = 9, .block_length = 3, .steps = 6}, {1});
  std::vector<std::vector<Index>> committed;
  std::vector<Range> blocks;
  while (!state.finished()) {
    blocks.push_back(state.block());
    CHECK(state.block_progress().step == static_cast<Index>(committed.size() % 2));
    committed.push_back(step(state));
  }
  CHECK(blocks == std::vector<Range>{{1, 4}, {1, 4}, {4, 7}, {4, 7}, {7, 10}, {7, 10}});
  CHECK(committed == std::vector<std::vector<Index>>{{3, 2}, {1}, {6, 5}, {4}, {9, 8}, {7}});
  CHECK(state.block() == Range{7, 10});  // stays at the last
}

TEST_CASE("SequenceState: one block as long as the response equals none named",
          "[sequence_state]") {
  SequenceState named = state_of({.response = 5, .block_length = 5, .steps = 2}),
                unnamed = state_of({.response = 5, .steps = 2});
  while (!named.finished()) {
    CHECK(named.block() == unnamed.block());
    CHECK(step(named) == step(unnamed));
  }
  CHECK(unnamed.finished());
}

TEST_CASE("SequenceState: without steps every step commits one row", "[sequence_state]") {
  SequenceState state = state_of({.response = 6, .block_length = 2});
  for (Index i = 0; i < 6; ++i) {
    CHECK_FALSE(state.finished());
    CHECK(step(state).size() == 1);
  }
  CHECK(state.finished());
}

TEST_CASE("SequenceState: only masked rows before the end of the block are candidates",
          "[sequence_state]") {
  SequenceState state = state_of({.response = 4, .block_length = 2});
  const auto candidates = [&] {
    std::vector<Index> rows;
    for (Index row = 0; row < 7; ++row)
      if (state.is_candidate(row)) rows.push_back(row);
    return rows;
  };
  CHECK(candidates() == std::vector<Index>{3, 4});
  step(state);
  CHECK(candidates() == std::vector<Index>{3});
  step(state);
  CHECK(candidates() == std::vector<Index>{5, 6});
}

TEST_CASE("SequenceState: rows that an earlier counted block left masked stay candidates",
          "[sequence_state]") {
  SequenceState state = state_of({.response = 4, .block_length = 2});
  // The model predicts the mask for row 4, so it stays masked though it was committed.
  CHECK(step(state, special.mask) == std::vector<Index>{4});
  CHECK(state.masked()[4] == 1);
  CHECK(state.block() == Range{3, 5});
  step(state, 5);
  CHECK(state.block() == Range{5, 7});
  CHECK(state.block_progress().first_masked == 2);
  CHECK((state.is_candidate(3) != state.is_candidate(4)));
  // The schedule of the second block counts its own rows, but may spend them on the old one.
  CHECK(step(state).size() == 1);
  CHECK(step(state).size() == 1);
  CHECK(state.finished());
  CHECK(std::count(state.masked().begin(), state.masked().end(), 1) == 1);
}

TEST_CASE("SequenceState: Dream's schedule counts all that may still be committed",
          "[sequence_state]") {
  // Two steps with epsilon 1/2: s/t = 0.75 in the first, so a quarter of the masked rows.
  SequenceState state =
      state_of({.response = 16, .block_length = 8, .steps = 4, .commit = TimestepCommit{0.5}});
  CHECK(step(state).size() == 2);
  CHECK(step(state).size() == 6);
  CHECK(state.block() == Range{11, 19});
  CHECK(step(state).size() == 2);
  CHECK(step(state).size() == 6);
  CHECK(state.finished());
}

TEST_CASE("SequenceState: an open-ended rule ends a block when nothing in it is masked",
          "[sequence_state]") {
  SequenceState state =
      state_of({.response = 6, .block_length = 3, .commit = ThresholdCommit{0.9}});
  CHECK(step(state, 5, [](Index row) { return row == 4 ? 0.5 : 0.95; }).size() == 2);
  CHECK(state.block() == Range{3, 6});
  CHECK(step(state, 5, [](Index) { return 0.1; }).size() == 1);
  CHECK(state.block() == Range{6, 9});
  CHECK(step(state, 5, [](Index) { return 1.0; }).size() == 3);
  CHECK(state.finished());
  CHECK(state.step() == 3);
}

TEST_CASE("SequenceState: an open-ended rule reads no steps", "[sequence_state]") {
  SequenceState state =
      state_of({.response = 5, .block_length = 5, .steps = 3, .commit = FixedCommit{2}});
  for (const std::size_t rows : {2U, 2U, 1U}) CHECK(step(state).size() == rows);
  CHECK(state.finished());
  CHECK_NOTHROW(state_of({.response = 6, .block_length = 2, .steps = 4, .commit = FixedCommit{2}}));
}

TEST_CASE("SequenceState: a counted schedule keeps a predicted mask and ends in time",
          "[sequence_state]") {
  for (const CommitRule& rule : {CommitRule(CountedCommit{}), CommitRule(TimestepCommit{})}) {
    SequenceState state = state_of({.response = 4, .block_length = 2, .commit = rule});
    Index steps = 0;
    for (; !state.finished(); ++steps) {
      CHECK(state.sampling_rule().excluded_token == no_token);
      step(state, special.mask);
    }
    CHECK(steps == 4);
    CHECK(response_of(state) == Tokens{99, 99, 99, 99});
    CHECK(std::count(state.masked().begin(), state.masked().end(), 1) == 4);
  }
}

TEST_CASE("SequenceState: an open-ended rule excludes the mask after a step that found nothing",
          "[sequence_state]") {
  SequenceState state = state_of({.response = 3, .commit = FixedCommit{2}});
  CHECK(state.sampling_rule().excluded_token == no_token);
  CHECK(step(state, special.mask).size() == 2);
  CHECK(state.sampling_rule().excluded_token == special.mask);
  CHECK(step(state, 5).size() == 2);
  CHECK(state.sampling_rule().excluded_token == no_token);  // allowed again
  CHECK(step(state, special.mask).size() == 1);
  CHECK(state.sampling_rule().excluded_token == special.mask);
  CHECK_FALSE(state.finished());
  CHECK(step(state, 5).size() == 1);
  CHECK(state.finished());
  CHECK(response_of(state) == Tokens{5, 5, 5});
}

TEST_CASE("SequenceState: one token found among masks keeps the mask allowed", "[sequence_state]") {
  SequenceState state = state_of({.response = 3, .commit = FixedCommit{2}});
  std::vector<Prediction> both = {{.row = 3, .token = special.mask, .confidence = 0.9},
                                  {.row = 4, .token = 5, .confidence = 0.8}};
  CHECK(state.commit(both) == 2);
  CHECK(state.sampling_rule().excluded_token == no_token);
}

TEST_CASE("SequenceState: a confidence that is no number comes last, in the order of rows",
          "[sequence_state]") {
  for (const double order_temperature : {0.0, 0.5}) {
    SequenceState state = state_of(
        {.response = 40, .order_temperature = order_temperature, .seed = 3});  // sorts by parts
    std::vector<Prediction> ordered =
        predict(state, 5, [](Index row) { return row % 3 == 0 ? 0.1 : not_a_number; });
    state.commit(ordered);
    REQUIRE(ordered.size() == 40);
    for (std::size_t i = 0; i < ordered.size(); ++i)
      CHECK(std::isnan(ordered[i].confidence) == (i >= 14));  // rows 3, 6, ..., 42
    CHECK(std::is_sorted(ordered.begin() + 14, ordered.end(),
                         [](const auto& a, const auto& b) { return a.row < b.row; }));
  }
}

TEST_CASE("SequenceState: predictions of rows that may not be committed are refused",
          "[sequence_state][refusal]") {
  SequenceState state = state_of({.response = 4, .block_length = 2});
  const Tokens before = tokens_of(state);
  for (const Index row : {-1, 2, 5, 7}) {  // before the rows, prompt, next block, behind the rows
    std::vector<Prediction> bad = {{.row = 3, .token = 5, .confidence = 0.5},
                                   {.row = row, .token = 5, .confidence = 0.9}};
    CHECK(refused_call([&] { state.commit(bad); }) ==
          "SequenceState: predictions must be of rows that may be committed, got row " +
              std::to_string(row));
  }
  CHECK(tokens_of(state) == before);
  CHECK(state.step() == 0);
  while (!state.finished()) step(state);
  CHECK(refused_call([&] { state.commit({}); }) == "SequenceState: commit() after the end");
}

TEST_CASE("SequenceState: end of text ends nothing unless asked", "[sequence_state]") {
  SequenceState state = state_of({.response = 4, .block_length = 2});
  while (!state.finished()) step(state, special.end_of_text.first());
  CHECK(state.step() == 4);
}

TEST_CASE("SequenceState: asked to stop early, a finished block with end of text ends all",
          "[sequence_state]") {
  SequenceState state = state_of({.response = 6, .block_length = 2, .early_stop = true});
  step(state, 5);
  step(state, 5);
  CHECK(state.block() == Range{5, 7});
  step(state, special.end_of_text.first());
  CHECK_FALSE(state.finished());  // the block goes on
  step(state, 5);
  CHECK(state.finished());
  CHECK(state.step() == 4);
  CHECK(response_of(state) == Tokens{5, 5, 5, 7, 7, 7});
  CHECK(std::count(state.masked().begin(), state.masked().end(), 1) == 0);
}

TEST_CASE("SequenceState: end of text in the prompt stops nothing", "[sequence_state]") {
  SequenceState state = state_of({.response = 4, .block_length = 2, .early_stop = true}, {7, 7, 7});
  while (!state.finished()) step(state, 5);
  CHECK(state.step() == 4);
}

TEST_CASE("SequenceState: a drawn order prefers sure rows as its softmax says",
          "[sequence_state][property]") {
  constexpr int draws = 8000;
  for (const double temperature : {0.5, 2.0}) {
    CAPTURE(temperature);
    int first_taken = 0;
    for (std::uint64_t seed = 0; seed < draws; ++seed) {
      SequenceState state =
          state_of({.response = 2, .order_temperature = temperature, .seed = seed});
      const auto rows = step(state, 5, [](Index row) { return row == 3 ? 0.9 : 0.4; });
      first_taken += rows == std::vector<Index>{3} ? 1 : 0;
    }
    CHECK(static_cast<double>(first_taken) / draws ==
          Approx(1.0 / (1.0 + std::exp(-0.5 / temperature))).margin(0.028));
  }
}

TEST_CASE("SequenceState: a drawn order depends on seed, sequence, step and row alone",
          "[sequence_state]") {
  const auto orders = [](std::uint64_t seed, std::uint64_t sequence) {
    SequenceState state =
        state_of({.response = 9, .order_temperature = 5.0, .seed = seed, .sequence = sequence});
    std::vector<Index> order;
    while (!state.finished()) order.push_back(step(state).front());
    return order;
  };
  CHECK(orders(1, 2) == orders(1, 2));
  CHECK(orders(1, 2) != orders(2, 2));
  CHECK(orders(1, 2) != orders(1, 3));
}

TEST_CASE("SequenceState: random numbers are named by seed, sequence, step and response row",
          "[sequence_state]") {
  SequenceState state = state_of({.response = 4, .seed = 21, .sequence = 34});
  step(state);
  const RandomKey key = state.random_key(5);
  CHECK(key.seed == 21);
  CHECK(key.sequence == 34);
  CHECK(key.step == 1);
  CHECK(key.row == 2);
}

TEST_CASE("SequenceState: predictions are made as the options say", "[sequence_state]") {
  const SequenceState state = state_of({.temperature = 0.5,
                                        .sampling = Sampling::Categorical,
                                        .top_p = 0.75,
                                        .top_k = 3,
                                        .confidence = Confidence::Margin});
  const SamplingRule rule = state.sampling_rule();
  CHECK(rule.sampling == Sampling::Categorical);
  CHECK(rule.confidence == Confidence::Margin);
  CHECK(rule.temperature == 0.5);
  CHECK(rule.top_p == 0.75);
  CHECK(rule.top_k == 3);
  CHECK(rule.excluded_token == no_token);
}

TEST_CASE("SequenceState: a bad option is refused by field, range and value",
          "[sequence_state][refusal]") {
  const std::string who = "DecodingOptions: ";
  const auto refused = [&](const DecodingOptions& options, const std::string& rest) {
    CHECK(refusal_of(options) == who + rest);
  };
  refused({.response = 0}, "response must be at least 1 where the prompt holds no mask, got 0");
  refused({.response = -4}, "response must be in [0, 2147483648], got -4");
  refused({.response = never}, "response must be in [0, 2147483648], got 9223372036854775807");
  refused({.response = 6, .block_length = 4}, "block_length must divide response = 6, got 4");
  refused({.response = 6, .block_length = -2}, "block_length must be at least 1, got -2");
  refused({.response = 6, .block_length = 12}, "block_length must divide response = 6, got 12");
  refused({.response = 6, .block_length = 2, .steps = 4},
          "steps must be a positive multiple of the number of blocks = 3 (response / "
          "block_length), got "
          "4");
  refused({.response = 6, .steps = -1}, "steps must be at least 1, got -1");
  refused({.temperature = -0.5}, "temperature must be finite and at least 0, got -0.5");
  refused({.temperature = infinity}, "temperature must be finite and at least 0, got inf");
  refused({.temperature = not_a_number}, "temperature must be finite and at least 0, got nan");
  refused({.sampling = Sampling::Categorical, .top_p = 0.0}, "top_p must be in (0, 1], got 0");
  refused({.sampling = Sampling::Categorical, .top_p = 1.5}, "top_p must be in (0, 1], got 1.5");
  refused({.sampling = Sampling::Categorical, .top_p = not_a_number},
          "top_p must be in (0, 1], got nan");
  refused({.sampling = Sampling::Categorical, .top_k = -1}, "top_k must be at least 0, got -1");
  refused({.top_p = 0.5}, "top_p and top_k need Sampling::Categorical, got top_p 0.5 and top_k 0");
  refused({.top_k = 2}, "top_p and top_k need Sampling::Categorical, got top_p 1 and top_k 2");
  refused({.sampling = Sampling::Categorical, .top_p = 1.0000000000000002},
          "top_p must be in (0, 1], got 1.0000000000000002");
  refused({.commit = BernoulliCommit{}}, "commit BernoulliCommit needs Confidence::Random");
  refused({.order_temperature = -1.0}, "order_temperature must be finite and at least 0, got -1");
  refused({.order_temperature = infinity},
          "order_temperature must be finite and at least 0, got inf");
  refused({.order_temperature = not_a_number},
          "order_temperature must be finite and at least 0, got nan");
  refused({.commit = ThresholdCommit{}, .order_temperature = 0.5},
          "order_temperature needs a counted commit rule");
  refused({.guidance_scale = -2.0}, "guidance_scale must be finite and at least 0, got -2");
  refused({.guidance_scale = 1e300}, "guidance_scale must be finite and at least 0, got 1e+300");
  refused({.guidance_scale = not_a_number},
          "guidance_scale must be finite and at least 0, got nan");
  refused({.guidance_interval = 0}, "guidance_interval must be at least 1, got 0");
  CHECK(refusal_of({.commit = FixedCommit{0}}) == "FixedCommit: rows must be at least 1, got 0");
}

TEST_CASE("SequenceState: special tokens that the options need must be there",
          "[sequence_state][refusal]") {
  const Tokens prompt{1};
  CHECK(refused_argument([&] {
          static_cast<void>(SequenceState(prompt, {.response = 1}, {.end_of_text = 7}));
        }) == "SpecialTokens: mask must be a token, got -1");
  CHECK(refused_argument([&] {
          static_cast<void>(
              SequenceState(prompt, {.response = 1, .early_stop = true}, {.mask = 9}));
        }) == "DecodingOptions: early_stop needs a model with an end-of-text token");
  CHECK_NOTHROW(SequenceState(prompt, {.response = 1}, {.mask = 9}));
}
