// SPDX-License-Identifier: Apache-2.0
// What loops of attention-aware caches do besides: windows, confidences weighed by what is decoded,
// thresholds that fall, rows dropped behind an end token.
#include <algorithm>
#include <catch2/catch.hpp>
#include <map>
#include <numeric>
#include <vector>

#include "dllm_cache/base/decoded_density.hpp"
#include "dllm_cache/decoding/decoding_keys.hpp"
#include "tests/support/exact_refusal.hpp"
#include "tests/support/fake_model.hpp"
#include "tests/support/loop_runs.hpp"
#include "tests/support/scripted_policy.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;

namespace {

using Model = FakeModel<float>;
using Loop = DenoisingLoop<Model>;
using Rows = std::vector<Index>;
using Bytes = std::vector<std::byte>;

constexpr std::int32_t mask = 99, end = 7;
const SpecialTokens special{.mask = mask, .end_of_text = end};

SequenceState state_of(const DecodingOptions& options, const Tokens& prompt = {1, 2, 3}) {
  return {prompt, options, special};
}

Tokens tokens_of(const SequenceState& state) {
  return {state.tokens().begin(), state.tokens().end()};
}

Rows candidates_of(const SequenceState& state) {
  Rows rows;
  for (Index row = 0; row < static_cast<Index>(state.tokens().size()); ++row)
    if (state.is_candidate(row)) rows.push_back(row);
  return rows;
}

// One step with these confidences, by row; a row with none is surer the further left it is. Tokens
// are 5 where `tokens` says nothing. Returns the rows committed, in order.
Rows step(SequenceState& state, const std::map<Index, double>& confidences = {},
          const std::map<Index, std::int32_t>& tokens = {},
          std::span<const std::uint8_t> hidden = {}) {
  std::vector<Prediction> predictions;
  for (const Index row : candidates_of(state)) {
    const auto sure = confidences.find(row);
    const auto token = tokens.find(row);
    predictions.push_back({.row = row,
                           .token = token == tokens.end() ? 5 : token->second,
                           .confidence = sure == confidences.end()
                                             ? 0.5 - static_cast<double>(row) / 1000.0
                                             : sure->second});
  }
  const Index count = state.commit(predictions, hidden);
  Rows rows;
  for (Index i = 0; i < count; ++i) rows.push_back(predictions[static_cast<std::size_t>(i)].row);
  return rows;
}

std::string refusal_of(const DecodingOptions& options) {
  return refused_argument([&] { static_cast<void>(state_of(options)); });
}

SequenceState saved_and_restored(const SequenceState& state) {
  Bytes bytes;
  SnapshotWriter out(bytes);
  state.save(out);
  SnapshotReader in(bytes);
  return SequenceState::restored(in, special);
}

}  // namespace

TEST_CASE("Window: only the first so many masked rows may be committed", "[loop_rules]") {
  SequenceState state =
      state_of({.response = 8, .block_length = 4, .commit = FixedCommit{2}, .window = 3});
  CHECK(candidates_of(state) == Rows{3, 4, 5});
  CHECK(step(state, {{3, 0.1}, {4, 0.2}, {5, 0.9}}) == Rows{5, 4});
  CHECK(candidates_of(state) == Rows{3, 6});
  CHECK(candidates_of(saved_and_restored(state)) == Rows{3, 6});
  CHECK(step(state) == Rows{3, 6});
  CHECK(candidates_of(state) == Rows{7, 8, 9});
  while (!state.finished()) step(state);
  CHECK(state.masks_left() == 0);
  state.extend(4);
  CHECK(candidates_of(state) == Rows{11, 12, 13});
  CHECK(candidates_of(saved_and_restored(state)) == Rows{11, 12, 13});
}

TEST_CASE("Window: it ends with the block, counts rows of gaps, and may be wider than all",
          "[loop_rules]") {
  SequenceState blocks =
      state_of({.response = 6, .block_length = 2, .commit = FixedCommit{1}, .window = 3});
  CHECK(candidates_of(blocks) == Rows{3, 4});
  SequenceState wide = state_of({.response = 6, .commit = FixedCommit{1}, .window = 6});
  CHECK(candidates_of(wide) == Rows{3, 4, 5, 6, 7, 8});
  SequenceState gaps =
      state_of({.response = 2, .commit = FixedCommit{1}, .window = 2}, {1, mask, 3, mask, 5});
  CHECK(candidates_of(gaps) == Rows{1, 3});
  CHECK(step(gaps) == Rows{1});
  CHECK(candidates_of(gaps) == Rows{3, 5});
  SequenceState causal = state_of(
      {.response = 5, .attention_block = 4, .commit = EvenCommit{1.0}, .window = 1}, {1, 2, 3});
  Rows order;
  while (!causal.finished()) {
    REQUIRE(candidates_of(causal).size() == 1);
    for (const Index row : step(causal)) order.push_back(row);
  }
  CHECK(order == Rows{3, 4, 5, 6, 7});
}

TEST_CASE("Certainty prior: confidences are weighed by what was decoded before the step",
          "[loop_rules]") {
  DecodingOptions options{.response = 4, .commit = FixedCommit{1}, .certainty_sigma = 1.0};
  SequenceState state = state_of(options);
  std::vector<Prediction> predictions;
  for (Index row = 3; row < 7; ++row)
    predictions.push_back({.row = row, .token = 5, .confidence = row == 6 ? 0.9 : 0.5});
  CHECK(state.commit(predictions) == 1);
  // Row 6 is surer, but far from all that is known.
  std::vector<double> density(4);
  base::decoded_density(std::vector<std::uint8_t>{1, 1, 1, 1}, 1.0, density);
  CHECK(predictions[0].row == 3);
  CHECK(predictions[0].confidence == 0.5 * density[0]);
  CHECK(predictions[0].confidence == Approx(0.5 * 0.3005).epsilon(1e-3));
  CHECK(predictions[1].row == 4);
  CHECK(predictions[1].confidence == 0.5 * density[1]);
  for (const Prediction& one : predictions)
    if (one.row == 6) CHECK(one.confidence == 0.9 * density[3]);
}

TEST_CASE("Certainty prior: thresholds compare the product; gaps count what is given",
          "[loop_rules]") {
  SequenceState state =
      state_of({.response = 4, .commit = ThresholdCommit{0.25}, .certainty_sigma = 1.0});
  // Densities are about 0.30, 0.06, 0.01 and 0.00.
  CHECK(step(state, {{3, 0.9}, {4, 0.9}, {5, 0.9}, {6, 0.9}}) == Rows{3});
  SequenceState surer =
      state_of({.response = 4, .commit = ThresholdCommit{0.05}, .certainty_sigma = 1.0});
  CHECK(step(surer, {{3, 0.9}, {4, 0.9}, {5, 0.9}, {6, 0.9}}) == Rows{3, 4});
  // Row 4 lies between given rows, row 2 beside one.
  SequenceState gaps = state_of({.response = 0, .commit = FixedCommit{1}, .certainty_sigma = 0.6},
                                {1, 2, mask, mask, 5, mask, 6, 8});
  CHECK(step(gaps, {{2, 0.5}, {3, 0.5}, {5, 0.5}}) == Rows{5});
}

TEST_CASE("Falling threshold: by the masked share of what exists from the block on",
          "[loop_rules]") {
  // Two blocks of four rows. tau 0.8, alpha 0.5.
  const DecodingOptions options{
      .response = 8, .block_length = 4, .commit = ThresholdCommit{0.8}, .threshold_alpha = 0.5};
  const std::map<Index, double> all{{3, 0.79}, {4, 0.78}, {5, 0.749}, {6, 0.701}};
  SequenceState state = state_of(options);
  CHECK(step(state, all) == Rows{3});  // the first step: 0.8
  // 7 of 8 rows are masked: 0.8 * (1 - 0.5 / 8) = 0.75.
  SequenceState same = saved_and_restored(state);
  CHECK(step(same, all) == Rows{4});
  SequenceState pruned = state;
  // 4 rows exist, 3 are masked: 0.8 * (1 - 0.5 / 4) = 0.7.
  const std::vector<std::uint8_t> hidden{0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1};
  CHECK(step(pruned, all, {}, hidden) == Rows{4, 5, 6});
  CHECK(pruned.block() == Range{7, 11});
  // A new block begins with the whole threshold.
  CHECK(step(pruned, {{7, 0.79}, {8, 0.79}, {9, 0.1}, {10, 0.1}}) == Rows{7});
  CHECK(step(pruned, {{8, 0.71}, {9, 0.701}, {10, 0.69}}) == Rows{8, 9});
}

TEST_CASE("Falling threshold: with block-causal attention nothing exists behind the block",
          "[loop_rules]") {
  SequenceState state = state_of({.response = 12,
                                  .attention_block = 4,
                                  .commit = ThresholdCommit{0.8},
                                  .threshold_alpha = 0.5},
                                 {1, 2, 3, 4});
  CHECK(step(state, {{4, 0.7}, {5, 0.7}, {6, 0.7}, {7, 0.69}}) == Rows{4});
  CHECK(step(state, {{5, 0.71}, {6, 0.701}, {7, 0.69}}) == Rows{5, 6});  // 0.8 * (1 - 0.5 / 4)
}

TEST_CASE("Dropped rows: the first end token leaves what is masked behind it masked for good",
          "[loop_rules]") {
  const DecodingOptions options{.response = 6, .commit = FixedCommit{2}, .end_drops_rows = true};
  SequenceState state = state_of(options);
  CHECK(step(state, {{5, 0.9}, {8, 0.8}}, {{5, end}, {8, end}}) == Rows{5, 8});
  CHECK(tokens_of(state) == Tokens{1, 2, 3, mask, mask, end, mask, mask, end});
  CHECK(candidates_of(state) == Rows{3, 4});
  CHECK(std::vector<std::uint8_t>(state.masked().begin(), state.masked().end()) ==
        std::vector<std::uint8_t>{0, 0, 0, 1, 1, 0, 0, 0, 0});
  CHECK(state.masks_left() == 2);
  CHECK(refused_call([&] { SequenceState(state).extend(2); }) ==
        "SequenceState: extend() after an end token");
  for (SequenceState one : {state, saved_and_restored(state)}) {
    CHECK(candidates_of(one) == Rows{3, 4});
    CHECK(step(one, {}, {{3, end}}) == Rows{3, 4});  // this one drops nothing
    CHECK(one.finished());
    CHECK(one.step() == 2);
    CHECK(one.masks_left() == 0);
    CHECK(tokens_of(one) == Tokens{1, 2, 3, end, 5, end, mask, mask, end});
    CHECK(one.answer_end() == 4);
  }
}

TEST_CASE("Dropped rows: once, from the lowest end token of the first step that has one",
          "[loop_rules]") {
  SequenceState state = state_of({.response = 6, .commit = FixedCommit{1}, .end_drops_rows = true});
  step(state, {{7, 0.9}}, {{7, end}});
  CHECK(candidates_of(state) == Rows{3, 4, 5, 6});
  step(state, {{4, 0.9}}, {{4, end}});
  CHECK(candidates_of(state) == Rows{3, 5, 6});
  while (!state.finished()) step(state);
  CHECK(tokens_of(state) == Tokens{1, 2, 3, 5, end, 5, 5, end, mask});
  CHECK(state.step() == 5);
  // A prediction that was not committed drops nothing.
  SequenceState other = state_of({.response = 4, .commit = FixedCommit{1}, .end_drops_rows = true});
  step(other, {{3, 0.9}}, {{4, end}, {5, end}});
  CHECK(candidates_of(other) == Rows{4, 5, 6});
}

TEST_CASE("Dropped rows: later blocks, schedules, gaps and blocks of attention end with them",
          "[loop_rules]") {
  SequenceState blocks =
      state_of({.response = 6, .block_length = 2, .steps = 6, .end_drops_rows = true});
  step(blocks, {}, {{3, end}});
  CHECK(blocks.finished());
  CHECK(tokens_of(blocks) == Tokens{1, 2, 3, end, mask, mask, mask, mask, mask});
  // Text around a gap goes on behind an end token; one of the response drops what follows.
  SequenceState gaps = state_of({.response = 4, .commit = FixedCommit{1}, .end_drops_rows = true},
                                {1, mask, 3, mask});
  step(gaps, {}, {{1, end}});
  CHECK(candidates_of(gaps) == Rows{3, 4, 5, 6, 7});
  step(gaps, {{5, 0.9}}, {{5, end}});
  CHECK(candidates_of(gaps) == Rows{3, 4});
  // Fast-dLLM v2 commits a token in the forward that stores.
  SequenceState causal = state_of({.response = 8,
                                   .attention_block = 4,
                                   .commit_next = true,
                                   .commit = EvenCommit{1.0},
                                   .end_drops_rows = true},
                                  {1, 2, 3, 4});
  CHECK(causal.storing());
  step(causal, {}, {{4, end}});
  CHECK(causal.finished());
  CHECK(causal.masks_left() == 0);
}

TEST_CASE("Dropped rows: a trimmed answer holds end tokens there after all", "[loop_rules]") {
  SequenceState state = state_of(
      {.response = 4, .commit = FixedCommit{1}, .trim_after_end = true, .end_drops_rows = true});
  step(state, {{4, 0.9}}, {{4, end}});
  step(state);
  CHECK(state.finished());
  CHECK(tokens_of(state) == Tokens{1, 2, 3, 5, end, end, end});
}

TEST_CASE("Dropped rows: to policies they are not masked, and clones and snapshots know it",
          "[loop_rules][loop]") {
  constexpr std::uint64_t seed = 2510;
  Model model(seed, 2);
  model.bias[Model::end_of_text] = 9.0F;  // some rows become one, sooner or later
  std::vector<std::vector<std::uint8_t>> seen;
  const ScriptedPolicy policy{.held = {.name = "scripted", .needs_masked = true},
                              .script = [&](const StepContext& context, StepPlan& plan) {
                                seen.emplace_back(context.masked.begin(), context.masked.end());
                                plan.recompute(context.live());
                              }};
  const DecodingOptions options{.response = 12, .commit = FixedCommit{1}, .end_drops_rows = true};
  Loop loop(model);
  const Index id = loop.add(Tokens{1, 2}, options, policy);
  Index dropped = 0;
  while (dropped == 0 && loop.step()) {
    const auto tokens = loop.sequence(id).tokens();
    dropped =
        std::count(tokens.begin(), tokens.end(), Model::mask) - loop.sequence(id).masks_left();
  }
  CAPTURE(seed);
  REQUIRE(dropped > 0);
  REQUIRE_FALSE(loop.finished());
  const Index copy = loop.clone(id, 0);
  loop.run();
  const auto tokens = loop.sequence(id).tokens();
  CHECK(std::count(tokens.begin(), tokens.end(), Model::mask) == dropped);
  CHECK(std::equal(tokens.begin(), tokens.end(), loop.sequence(copy).tokens().begin()));
  CHECK(loop.sequence(id).masks_left() == 0);
  const auto masks = std::accumulate(seen.back().begin(), seen.back().end(), Index{0});
  CHECK(masks == 1);  // the last step had one row to find
  // The next turn follows the first end token.
  loop.append(id, Tokens{3}, {.response = 3, .commit = FixedCommit{1}});
  CHECK(std::count(loop.sequence(id).tokens().begin(), loop.sequence(id).tokens().end(),
                   Model::mask) == 3);
}

TEST_CASE("Falling threshold: the loop tells which rows the plan of the step hid",
          "[loop_rules][loop]") {
  constexpr std::uint64_t seed = 2601;
  constexpr Index prompt = 3, block = 4, rows = 11;
  Index told_apart = 0;
  for (int percent = 10; percent < 100; percent += 2) {
    const double tau = percent / 100.0;
    CAPTURE(seed, tau);
    Model model(seed, 2);
    // Of the rows behind the first block all but the last are hidden, in every step but the first.
    const ScriptedPolicy policy{.held = {.name = "scripted", .hides_rows = true},
                                .script = [](const StepContext& context, StepPlan& plan) {
                                  plan.recompute({0, prompt + block});
                                  plan.recompute(rows - 1);
                                  if (!context.stale) plan.hide({prompt + block, rows - 1});
                                }};
    Loop loop(model);
    const Index id = loop.add(Tokens{1, 2, 3},
                              {.response = 8,
                               .block_length = block,
                               .commit = ThresholdCommit{tau},
                               .threshold_alpha = 1.0},
                              policy);
    loop.step();
    while (loop.sequence(id).block().begin == prompt) {
      const auto masked = loop.sequence(id).masked();
      const Index masks =
          std::count(masked.begin() + prompt, masked.begin() + prompt + block, std::uint8_t{1});
      loop.step([&](const StepReport& report) {
        const auto surer_than = [&](double share) {
          const Index surer =
              std::count_if(report.predictions.begin(), report.predictions.end(),
                            [&](const auto& one) { return one.confidence >= tau * share; });
          return std::max<Index>(surer, 1);
        };
        const double share = static_cast<double>(masks + 1) / (block + 1);
        const double share_of_all = static_cast<double>(masks + 4) / (block + 4);
        CHECK(report.committed == surer_than(share));
        if (surer_than(share) != surer_than(share_of_all)) ++told_apart;
      });
    }
  }
  CHECK(told_apart > 0);
}

TEST_CASE("Loop rules: what does not go together is refused in both vocabularies",
          "[loop_rules][refusal]") {
  CHECK(refusal_of({.response = 4, .window = -1}) ==
        "DecodingOptions: window must be at least 1, got -1");
  CHECK(refusal_of({.response = 4, .window = 2}) ==
        "DecodingOptions: window needs a commit rule that is not counted, got 2");
  CHECK(refusal_of({.response = 4, .certainty_sigma = -1.0}) ==
        "DecodingOptions: certainty_sigma must be finite and above 0, got -1");
  CHECK(refusal_of(
            {.response = 4, .confidence = Confidence::NegativeEntropy, .certainty_sigma = 2.0}) ==
        "DecodingOptions: certainty_sigma needs Confidence::Probability or Confidence::Margin, got "
        "2");
  CHECK(refusal_of({.response = 4, .threshold_alpha = 1.5}) ==
        "DecodingOptions: threshold_alpha must be in [0, 1], got 1.5");
  CHECK(refusal_of({.response = 4, .commit = FactorCommit{}, .threshold_alpha = 0.5}) ==
        "DecodingOptions: threshold_alpha needs ThresholdCommit among the rules that are not "
        "counted, got 0.5");
  CHECK_NOTHROW(state_of({.response = 4, .threshold_alpha = 0.5}));  // a schedule ignores it
  CHECK(refusal_of({.response = 4, .early_stop = true, .end_drops_rows = true}) ==
        "DecodingOptions: end_drops_rows does not go with early_stop: that fills what this leaves "
        "masked");
  CHECK(refused_argument([] {
          static_cast<void>(SequenceState(Tokens{1}, {.response = 4, .end_drops_rows = true},
                                          SpecialTokens{.mask = mask}));
        }) == "DecodingOptions: end_drops_rows needs a model with an end-of-text token");

  const auto refused_keys = [](const OptionValues& values) {
    return refused_argument([&] { check_decoding(decoding_options(values, {}), {}, key_words); });
  };
  CHECK(refused_keys({{"window_length", "0"}}) ==
        "decoding: window_length must be at least 1, got 0");
  CHECK(refused_keys({{"window_length", "4"}}) ==
        "window_length needs parallel decoding: give threshold, factor, entropy_bound or "
        "tokens_per_step, or leave out window_length, got 4");
  CHECK(refused_keys({{"certainty_sigma", "2"}, {"remasking", "random"}}) ==
        "certainty_sigma needs confidences that are probabilities: remasking \"low_confidence\", "
        "or alg \"maskgit_plus\" or \"topk_margin\", got 2");
  CHECK(refused_keys({{"confidence_alpha", "0.5"}, {"factor", "1"}}) ==
        "confidence_alpha needs threshold in place of another rule of parallel decoding, got 0.5");
  CHECK(refused_keys({{"eos_truncates", "true"}, {"early_stop", "true"}}) ==
        "eos_truncates does not go with early_stop: that fills what this leaves masked");
  const DecodingOptions all = decoding_options({{"window_length", "7"},
                                                {"certainty_sigma", "2.5"},
                                                {"confidence_alpha", "0.3"},
                                                {"eos_truncates", "true"},
                                                {"threshold", "0.25"},
                                                {"alg", "maskgit_plus"}},
                                               {.decoder = "dream"});
  CHECK(all.window == 7);
  CHECK(all.certainty_sigma == 2.5);
  CHECK(all.threshold_alpha == 0.3);
  CHECK(all.end_drops_rows);
  CHECK(all.confidence == Confidence::Probability);
}
