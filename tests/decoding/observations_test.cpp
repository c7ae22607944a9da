// SPDX-License-Identifier: Apache-2.0
// What policies are told of candidates and of the last predictions of rows.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <stdexcept>
#include <vector>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/policies/prefix_cache.hpp"
#include "tests/support/exact_refusal.hpp"
#include "tests/support/fake_model.hpp"
#include "tests/support/loop_runs.hpp"
#include "tests/support/scripted_policy.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;

namespace {

using Model = FakeModel<float>;
using Loop = DenoisingLoop<Model>;
using Bytes = std::vector<std::byte>;

constexpr std::uint64_t seed = 2512;
constexpr float infinity = std::numeric_limits<float>::infinity();

// What one plan() was told.
struct Told {
  Index step = 0;
  std::vector<std::uint8_t> candidates;
  std::vector<float> confidence, entropy, gap, change;
  friend bool operator==(const Told&, const Told&) = default;
};

// A policy without a cache that asks for everything, and keeps what it is told.
template <bool PredictsAll = false>
struct ListeningPolicy {
  static inline std::vector<Told> told;

  [[nodiscard]] PolicyTraits traits(const SequenceShape&) const {
    return {.name = "listening",
            .needs_confidence = true,
            .needs_candidates = true,
            .needs_entropy = true,
            .needs_gap = true,
            .needs_change = true,
            .predicts_all = PredictsAll};
  }
  void plan(const StepContext& context, StepPlan& plan) const {
    told.push_back({context.step,
                    {context.candidates.begin(), context.candidates.end()},
                    {context.confidence.begin(), context.confidence.end()},
                    {context.entropy.begin(), context.entropy.end()},
                    {context.gap.begin(), context.gap.end()},
                    {context.change.begin(), context.change.end()}});
    plan.recompute(context.live());
  }
};

// Probabilities of a row of logits, without some tokens.
std::vector<double> softmax(std::vector<float> logits, const Tokens& never) {
  for (const std::int32_t token : never) logits[static_cast<std::size_t>(token)] = -infinity;
  std::vector<double> p;
  double sum = 0.0;
  for (const float logit : logits) sum += p.emplace_back(std::exp(static_cast<double>(logit)));
  for (double& one : p) one /= sum;
  return p;
}

// Checks what is told of one row by its two last distributions; either may be missing.
void check_row(const Told& told, std::size_t row, const std::vector<double>& before,
               const std::vector<double>& last) {
  CAPTURE(told.step, row);
  if (last.empty()) {
    CHECK(told.confidence[row] == 0.0F);
    CHECK(told.entropy[row] == 0.0F);
    CHECK(told.gap[row] == 0.0F);
    CHECK(told.change[row] == infinity);
    return;
  }
  std::vector<double> sorted = last;
  std::sort(sorted.rbegin(), sorted.rend());
  double entropy = 0.0, change = 0.0;
  for (std::size_t i = 0; i < last.size(); ++i) {
    if (last[i] > 0.0) entropy -= last[i] * std::log(last[i]);
    if (!before.empty() && last[i] > 0.0) change += last[i] * std::log(last[i] / before[i]);
  }
  CHECK(told.confidence[row] == Approx(sorted[0]).epsilon(1e-5));
  CHECK(told.gap[row] == Approx(sorted[0] - sorted[1]).margin(1e-6));
  CHECK(told.entropy[row] == Approx(entropy).margin(1e-5));
  if (before.empty())
    CHECK(told.change[row] == infinity);
  else
    CHECK(told.change[row] == Approx(change).margin(1e-5));
}

// Runs a job and checks everything that its policy is told against the logits that the loop shows.
// Returns how many plans were looked at.
std::size_t check_run(Model model, const Job& job, const Tokens& never = {}) {
  using Policy = ListeningPolicy<>;
  Policy::told.clear();
  Loop loop(model);
  const Index id = loop.add(job.prompt, job.options, Policy{});
  struct Seen {
    std::vector<double> before, last;
  };
  std::map<Index, std::vector<double>> step;
  std::map<std::size_t, Seen> rows;
  std::vector<std::uint8_t> candidates;
  loop.observer.on_logits = [&](Index, Index row, std::span<const float> logits) {
    if (loop.sequence(id).is_candidate(row))
      step[row] = softmax({logits.begin(), logits.end()}, never);
  };
  std::size_t plans = 0;
  while (!loop.finished()) {
    candidates.clear();
    for (Index row = 0; row < static_cast<Index>(loop.sequence(id).tokens().size()); ++row)
      candidates.push_back(loop.sequence(id).is_candidate(row) ? 1 : 0);
    const std::size_t begin = Policy::told.size();
    loop.step();
    for (std::size_t i = begin; i < Policy::told.size(); ++i, ++plans) {
      CHECK(Policy::told[i].candidates == candidates);
      for (std::size_t row = 0; row < candidates.size(); ++row)
        check_row(Policy::told[i], row, rows[row].before, rows[row].last);
    }
    for (auto& [row, p] : step) {
      Seen& seen = rows[static_cast<std::size_t>(row)];
      seen.before = std::move(seen.last);
      seen.last = std::move(p);
    }
    step.clear();
  }
  return plans;
}

// All that a run tells its policy, from the second step on.
template <bool PredictsAll = false>
std::vector<Told> told_in_run(const Job& job, const std::function<void(Loop&)>& run) {
  ListeningPolicy<PredictsAll>::told.clear();
  Model model(seed, 2);
  Loop loop(model);
  loop.add(job.prompt, job.options, ListeningPolicy<PredictsAll>{});
  run(loop);
  return ListeningPolicy<PredictsAll>::told;
}

const Job two_blocks{{4, 1, 9}, {.response = 8, .block_length = 4, .commit = FixedCommit{1}}};

}  // namespace

TEST_CASE("Observations: a policy is told what the last predictions of rows were like",
          "[observations]") {
  for (const Index shift : {0, 1}) {
    CAPTURE(seed, shift);
    const Model model(seed, 2, shift);
    CHECK(check_run(model, two_blocks) == 7);
    // Measures of confidence, temperatures, windows and priors change nothing of it.
    CHECK(check_run(model, {{4, 1, 9},
                            {.response = 7,
                             .temperature = 0.7,
                             .sampling = Sampling::Categorical,
                             .top_p = 0.8,
                             .top_k = 3,
                             .confidence = Confidence::Margin,
                             .commit = FixedCommit{1},
                             .window = 3,
                             .certainty_sigma = 2.0}}) == 6);
    CHECK(
        check_run(model,
                  {{5}, {.response = 6, .steps = 6, .suppress_tokens = {3, 4}, .commit_last = {5}}},
                  {3, 4}) == 5);
    // Gaps; block-causal attention.
    CHECK(check_run(model, {{1, Model::mask, 3, Model::mask},
                            {.response = 3, .commit = FixedCommit{1}}}) == 4);
    CHECK(check_run(model, {{1, 2, 3, 4, 5},
                            {.response = 7, .attention_block = 4, .commit = FixedCommit{1}}}) == 6);
  }
}

TEST_CASE("Observations: both runs of a guided sequence are told of guided predictions",
          "[observations]") {
  const Model model(seed, 2);
  const Job guided{
      {10, 1, 3},
      {.response = 8, .block_length = 4, .guidance_scale = 1.5, .guidance_interval = 2}};
  // Steps 0 to 4 and 6 have an unconditional run; the first plans of both are not asked for.
  CHECK(check_run(model, guided) == 7 + 5);
}

TEST_CASE(
    "Observations: neighbours in a batch change nothing, and who asks for nothing is told "
    "nothing",
    "[observations]") {
  const std::vector<Told> alone = told_in_run(two_blocks, [](Loop& loop) { loop.run(); });
  REQUIRE(alone.size() == 7);
  std::vector<bool> empty;
  const ScriptedPolicy silent{
      .held = {.name = "silent"}, .script = [&](const StepContext& context, StepPlan& plan) {
        empty.push_back(context.candidates.empty() && context.confidence.empty() &&
                        context.entropy.empty() && context.gap.empty() && context.change.empty());
        plan.recompute(context.live());
      }};
  const std::vector<Told> together = told_in_run(two_blocks, [&](Loop& loop) {
    loop.add(Tokens{3, 3}, {.response = 5}, silent);
    loop.add(Tokens{3, 1}, {.response = 70, .commit = FixedCommit{9}}, PrefixCachePolicy{});
    loop.run();
  });
  CHECK(together == alone);
  CHECK(empty == std::vector<bool>(4, true));
}

TEST_CASE("Observations: a policy is told as much as it asks for", "[observations]") {
  std::vector<std::size_t> sizes;
  const ScriptedPolicy policy{.held = {.name = "scripted", .needs_gap = true},
                              .script = [&](const StepContext& context, StepPlan& plan) {
                                sizes = {context.candidates.size(), context.confidence.size(),
                                         context.entropy.size(), context.gap.size(),
                                         context.change.size()};
                                plan.recompute(context.live());
                              }};
  Model model(seed, 2);
  Loop loop(model);
  loop.add(Tokens{4, 1, 9}, {.response = 2}, policy);
  loop.run();
  CHECK(sizes == std::vector<std::size_t>{0, 0, 0, 5, 0});
}

TEST_CASE("Observations: a step that threw leaves no trace, and counts once when it is repeated",
          "[observations]") {
  const std::vector<Told> undisturbed = told_in_run(two_blocks, [](Loop& loop) { loop.run(); });
  const std::vector<Told> disturbed = told_in_run(two_blocks, [](Loop& loop) {
    Index looked = 0;
    loop.observer.on_logits = [&](Index, Index, std::span<const float>) {
      // In the middle of the rows of several steps.
      if (++looked == 3 || looked == 8 || looked == 14) throw std::runtime_error("looked away");
    };
    int thrown = 0;
    while (!loop.finished()) try {
        loop.step();
      } catch (const std::runtime_error&) {
        ++thrown;
      }
    CHECK(thrown == 3);
  });
  CHECK(disturbed == undisturbed);
}

TEST_CASE("Observations: the same distribution has changed by exactly nothing", "[observations]") {
  detail::LogitsObserver observer;
  detail::Observations seen({.name = "test", .needs_change = true}, 1, 4);
  for (const float wanted : {infinity, 0.0F, 0.0F}) {
    detail::Observation now;
    const std::vector<float> logits{0.3F, -40.0F, 1.7F, -std::numeric_limits<float>::infinity()};
    observer.observe(0, logits, {}, seen, now);
    CHECK(now.change == wanted);
    seen.accept({&now, 1}, std::vector<std::uint8_t>{1});
  }
  // What could not be is possible now; what can be no longer is no reason.
  detail::Observation now;
  observer.observe(0, std::vector<float>{0.3F, -40.0F, 1.7F, 0.0F}, {}, seen, now);
  CHECK(now.change == infinity);
  observer.observe(0, std::vector<float>{-infinity, -40.0F, 1.7F, -infinity}, {}, seen, now);
  CHECK(now.change == Approx(std::log1p(std::exp(-1.4))).epsilon(1e-5));
  CHECK(now.confidence == 1.0F);
  CHECK(now.gap == 1.0F);
  CHECK(exact_refusal<std::runtime_error>([&] {
          observer.observe(5, std::vector<float>{-infinity, -infinity}, {}, seen, now);
        }) ==
        "logits of row 5 hold no number above -infinity, so nothing can be told of its prediction");
}

TEST_CASE("Observations: the first step of a policy that asks for it predicts every masked row",
          "[observations]") {
  Index logits = 0;
  const std::vector<Told> told = told_in_run<true>(two_blocks, [&](Loop& loop) {
    loop.step([](const StepReport& report) {
      CHECK(report.committed == 1);
      CHECK(report.predictions.size() == 4);  // those of the block
    });
    CHECK(loop.counts(0).logits == 8);
    loop.step();
    CHECK(loop.counts(0).logits == 8 + 3);
    loop.run();
    logits = loop.counts(0).logits;
  });
  CHECK(logits == 8 + 3 + 2 + 1 + 4 + 3 + 2 + 1);
  REQUIRE(told.size() == 7);
  for (std::size_t row = 3; row < 11; ++row) CHECK(told[0].confidence[row] > 0.0F);
  for (std::size_t row = 7; row < 11; ++row)
    for (std::size_t step = 1; step < 4; ++step)
      CHECK(told[step].confidence[row] == told[0].confidence[row]);
  // The answers are the same.
  Model model(seed, 2);
  Loop loop(model);
  loop.add(two_blocks.prompt, two_blocks.options, ListeningPolicy<true>{});
  loop.add(two_blocks.prompt, two_blocks.options, NoCache{});
  loop.run();
  CHECK(std::equal(loop.sequence(0).tokens().begin(), loop.sequence(0).tokens().end(),
                   loop.sequence(1).tokens().begin()));
}

TEST_CASE("Observations: longer answers keep them, next turns and restarts begin without",
          "[observations]") {
  using Policy = ListeningPolicy<true>;
  Model model(seed, 2);
  Loop loop(model);
  const Index id = loop.add(two_blocks.prompt, two_blocks.options, Policy{});
  loop.run();
  const Told last = Policy::told.back();
  const Index before = loop.counts(id).logits;
  loop.extend(id, 8);
  Policy::told.clear();
  loop.step();
  CHECK(loop.counts(id).logits == before + 8);  // two blocks
  loop.step();
  REQUIRE(Policy::told.size() == 1);
  REQUIRE(Policy::told[0].confidence.size() == 19);
  for (std::size_t row = 0; row < 11; ++row)
    if (last.candidates[row] == 0)  // all but the last row, which was predicted once more
      CHECK(Policy::told[0].confidence[row] == last.confidence[row]);
  CHECK(Policy::told[0].confidence[18] > 0.0F);
  CHECK(Policy::told[0].change[18] == infinity);
  loop.run();
  Policy::told.clear();
  loop.append(id, Tokens{1, 2}, {.response = 3, .commit = FixedCommit{1}});
  const auto prompt = static_cast<std::size_t>(loop.sequence(id).prompt_rows());
  loop.step();
  loop.step();
  REQUIRE(Policy::told.size() == 1);
  for (std::size_t row = 0; row < prompt; ++row) CHECK(Policy::told[0].confidence[row] == 0.0F);
  CHECK(Policy::told[0].confidence[prompt] > 0.0F);
  loop.run();
  Policy::told.clear();
  loop.restart(id, Tokens{8}, {.response = 4, .block_length = 2, .commit = FixedCommit{1}});
  loop.step();
  CHECK(loop.counts(id).logits == 4);
  loop.step();
  REQUIRE(Policy::told.size() == 1);
  CHECK(Policy::told[0].confidence.size() == 5);
  CHECK(Policy::told[0].confidence[4] > 0.0F);
  CHECK(Policy::told[0].change == std::vector<float>(5, infinity));
}

TEST_CASE("Observations: clones, forks and restored sequences go on with them", "[observations]") {
  using Policy = ListeningPolicy<true>;
  const Job guided{
      {10, 1, 3},
      {.response = 8, .block_length = 4, .guidance_scale = 1.5, .guidance_interval = 2}};
  for (const Job& job : {two_blocks, guided}) {
    const std::vector<Told> whole = told_in_run<true>(job, [](Loop& loop) { loop.run(); });
    for (const Index at : {0, 1, 3, 6}) {
      CAPTURE(seed, at);
      Model model(seed, 2);
      Loop loop(model);
      Policy::told.clear();
      loop.add(job.prompt, job.options, Policy{});
      for (Index step = 0; step < at; ++step) loop.step();
      const std::size_t seen = Policy::told.size();
      const auto rest_of = [&](Loop& copy_loop, Index copy) {
        Policy::told.clear();
        for (Index other = 0; other < copy_loop.sequences(); ++other)
          if (other != copy) copy_loop.stop(other);
        copy_loop.run();
        return Policy::told;
      };
      const std::vector<Told> rest(whole.begin() + static_cast<std::ptrdiff_t>(seen), whole.end());
      Bytes bytes;
      loop.save(0, bytes);
      Model same(seed, 2);
      Loop after(same);
      CHECK(rest_of(after, after.restore(bytes, Policy{})) == rest);
      const Index copy = loop.clone(0, 0);
      const Index fork = loop.fork(copy, 0);
      CHECK(rest_of(loop, copy) == rest);
      Loop third(model);
      CHECK(rest_of(third, third.restore(bytes, Policy{})) == rest);
      static_cast<void>(fork);
    }
  }
}

TEST_CASE("Observations: a snapshot of another policy or of what cannot be is refused",
          "[observations][refusal]") {
  Model model(seed, 2);
  Loop loop(model);
  loop.add(two_blocks.prompt, two_blocks.options, ListeningPolicy<>{});
  loop.step();
  Bytes bytes;
  loop.save(0, bytes);
  CHECK(exact_refusal<std::runtime_error>([&] { loop.restore(bytes, NoCache{}); }) ==
        "snapshot: policy must be \"none\", got \"listening\"");
  const detail::Observations seen({.name = "test", .needs_confidence = true}, 2, 4);
  Bytes held;
  SnapshotWriter out(held);
  seen.save(out);
  detail::Observations other({.name = "test", .needs_confidence = true, .needs_change = true}, 2,
                             5);
  CHECK_THROWS_AS(
      [&] {
        SnapshotReader in(held);
        other.restore(in);
      }(),
      std::runtime_error);
  detail::Observations wider({.name = "test", .needs_confidence = true}, 2, 5);
  CHECK(exact_refusal<std::runtime_error>([&] {
          SnapshotReader in(held);
          wider.restore(in);
        }) == "snapshot: vocabulary must be 5, got 4");
}
