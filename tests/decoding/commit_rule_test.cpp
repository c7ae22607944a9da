// SPDX-License-Identifier: Apache-2.0
#include "dllm_cache/decoding/commit_rule.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "tests/support/exact_refusal.hpp"
#include "tests/support/random_numbers.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;

namespace {

std::vector<Prediction> with_confidences(const std::vector<double>& confidences) {
  std::vector<Prediction> ordered;
  for (const double c : confidences)
    ordered.push_back({.row = static_cast<Index>(ordered.size()), .token = 1, .confidence = c});
  return ordered;
}

std::vector<Prediction> with_entropies(const std::vector<double>& entropies) {
  std::vector<Prediction> ordered = with_confidences(entropies);
  for (Prediction& one : ordered) one.entropy = one.confidence;
  return ordered;
}

Index commits(const std::vector<Prediction>& ordered, const CommitRule& rule,
              const BlockProgress& block = {}) {
  return count_commits(ordered, rule, block);
}

std::string refusal_of(const CommitRule& rule) {
  return refused_argument([&] { check_rule(rule); });
}

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
constexpr double smallest = std::numeric_limits<double>::denorm_min();

}  // namespace

TEST_CASE("CountedCommit: masked rows are spread evenly over the steps, the remainder first",
          "[commit_rule][property]") {
  for (Index masked = 0; masked <= 17; ++masked)
    for (Index steps = 1; steps <= 20; ++steps) {
      CAPTURE(masked, steps);
      // One row after the other is dealt to the steps in turn.
      std::vector<Index> dealt(static_cast<std::size_t>(steps), 0);
      for (Index row = 0; row < masked; ++row) ++dealt[static_cast<std::size_t>(row % steps)];
      const std::vector<Prediction> many = with_confidences(std::vector<double>(30, 0.5));
      for (Index step = 0; step < steps; ++step)
        REQUIRE(commits(many, CountedCommit{},
                        {.step = step, .steps = steps, .first_masked = masked}) ==
                dealt[static_cast<std::size_t>(step)]);
    }
}

TEST_CASE("TimestepCommit: a step takes its share of what is masked, rounded down",
          "[commit_rule][property]") {
  Index compared = 0;
  for (const double epsilon : {1e-5, 1e-3, 0.1, 0.9})
    for (const Index steps : {2, 3, 7, 16, 64})
      for (Index step = 0; step + 1 < steps; ++step)
        for (const Index masked : {0, 1, 5, 31, 1000}) {
          CAPTURE(epsilon, steps, step, masked);
          const auto time = [&](Index i) {
            return 1.0 + (epsilon - 1.0) * static_cast<double>(i) / static_cast<double>(steps);
          };
          const double rows = static_cast<double>(masked) * (1.0 - time(step + 1) / time(step));
          // The rule computes in float32: near a whole number the two may differ.
          if (std::abs(rows - std::round(rows)) < 1e-2 && masked > 0) continue;
          REQUIRE(commits(with_confidences(std::vector<double>(1000, 0.5)), TimestepCommit{epsilon},
                          {.step = step, .steps = steps, .masked = masked}) ==
                  static_cast<Index>(std::floor(rows)));
          ++compared;
        }
  REQUIRE(compared > 1000);
}

TEST_CASE("TimestepCommit: the last step takes everything, a share of 0 nothing", "[commit_rule]") {
  const auto all = with_confidences({0.9, 0.5, 0.1});
  CHECK(commits(all, TimestepCommit{}, {.step = 4, .steps = 5, .masked = 3}) == 3);
  CHECK(commits(all, TimestepCommit{}, {.step = 0, .steps = 1, .masked = 3}) == 3);
  CHECK(commits(all, TimestepCommit{}, {.step = 7, .steps = 5, .masked = 3}) == 3);
  CHECK(commits(all, TimestepCommit{}, {.step = 0, .steps = 8, .masked = 3}) == 0);
  // Rows that were not predicted in this step count as masked, but cannot be taken.
  CHECK(commits(all, TimestepCommit{}, {.step = 4, .steps = 5, .masked = 30}) == 3);
}

TEST_CASE("Dream's times are those of a float32 linspace from both ends", "[commit_rule]") {
  // Counted up in the first half, down from the end in the second: both ends are exact.
  for (const Index steps : {1, 2, 3, 8, 33}) {
    CAPTURE(steps);
    CHECK(detail::dream_time(0, steps, 1e-3) == 1.0F);
    CHECK(detail::dream_time(steps, steps, 1e-3) == 1e-3F);
    for (Index i = 0; i < steps; ++i) {
      CHECK(detail::dream_time(i + 1, steps, 1e-3) < detail::dream_time(i, steps, 1e-3));
      CHECK(
          detail::dream_time(i, steps, 1e-3) ==
          Approx(1.0 - 0.999 * static_cast<double>(i) / static_cast<double>(steps)).epsilon(1e-6));
    }
  }
}

TEST_CASE("BernoulliCommit: each row is taken with the step's probability, all in the last step",
          "[commit_rule][property]") {
  constexpr std::uint64_t seed = 41;
  CAPTURE(seed);
  RandomNumbers random(seed);
  constexpr Index rows = 20000;
  std::vector<double> confidences;
  for (Index i = 0; i < rows; ++i) confidences.push_back(0.5 + 0.5 * random.signed_unit());
  std::sort(confidences.rbegin(), confidences.rend());
  const auto ordered = with_confidences(confidences);
  for (const Index step : {0, 3, 6}) {
    CAPTURE(step);
    const BlockProgress block{.step = step, .steps = 8, .masked = rows};
    const double share = 1.0 - (1.0 - 0.999 * static_cast<double>(step + 1) / 8) /
                                   (1.0 - 0.999 * static_cast<double>(step) / 8);
    const Index taken = commits(ordered, BernoulliCommit{1e-3}, block);
    CHECK(static_cast<double>(taken) / rows == Approx(share).margin(0.018));
    // Exactly those whose number is above 1 - share: what is taken comes first.
    CHECK(confidences[static_cast<std::size_t>(taken - 1)] > 1.0 - share - 1e-6);
    CHECK(confidences[static_cast<std::size_t>(taken)] < 1.0 - share + 1e-6);
  }
  CHECK(commits(ordered, BernoulliCommit{}, {.step = 7, .steps = 8, .masked = rows}) == rows);
  CHECK(commits(with_confidences({smallest}), BernoulliCommit{}, {.step = 0, .steps = 1}) == 1);
}

TEST_CASE("ThresholdCommit: the best is always taken, the others unless below the threshold",
          "[commit_rule]") {
  const auto at = [](const std::vector<double>& confidences, double threshold) {
    return commits(with_confidences(confidences), ThresholdCommit{threshold});
  };
  CHECK(at({0.1}, 0.9) == 1);
  CHECK(at({0.1, 0.05}, 0.9) == 1);
  CHECK(at({0.95, 0.9, 0.89, 0.2}, 0.9) == 2);  // equal is not below
  CHECK(at({0.95, 0.93, 0.91}, 0.9) == 3);
  CHECK(at({0.2, 0.1, 0.0}, 0.0) == 3);
  CHECK(at({1.0, 1.0, std::nextafter(1.0, 0.0)}, 1.0) == 2);
  CHECK(at({-0.5, -0.7}, 0.0) == 1);  // entropies are negative
}

TEST_CASE("FactorCommit: the largest n with (n + 1) (1 - c_n) below the factor, one at least",
          "[commit_rule][property]") {
  constexpr std::uint64_t seed = 43;
  RandomNumbers random(seed);
  bool one = false, some = false, all = false;
  for (int repeat = 0; repeat < 400; ++repeat) {
    std::vector<double> confidences;
    const Index count = 1 + random.below(9);
    for (Index i = 0; i < count; ++i)
      confidences.push_back(1.0 - std::pow(0.5 + 0.5 * random.signed_unit(), 3.0));
    std::sort(confidences.rbegin(), confidences.rend());
    const double factor = 0.2 + 0.25 * static_cast<double>(random.below(8));
    Index largest = 1;
    for (Index n = 1; n <= count; ++n)
      if (static_cast<double>(n + 1) * (1.0 - confidences[static_cast<std::size_t>(n - 1)]) <
          factor)
        largest = n;
    INFO("seed " << seed << ", repeat " << repeat << ", factor " << factor);
    REQUIRE(commits(with_confidences(confidences), FactorCommit{factor}) == largest);
    (largest == count ? all : largest == 1 ? one : some) = true;
  }
  REQUIRE((one && some && all));
  // Equal to the factor is not below it.
  CHECK(commits(with_confidences({0.5, 0.5}), FactorCommit{1.0}) == 1);
  CHECK(commits(with_confidences({0.75, 0.75}), FactorCommit{0.75}) == 1);
  CHECK(commits(with_confidences({0.75, 0.75}), FactorCommit{0.7500001}) == 2);
}

TEST_CASE("EntropyBoundCommit: entropies but the largest add up to the bound at most",
          "[commit_rule][property]") {
  constexpr std::uint64_t seed = 47;
  RandomNumbers random(seed);
  for (int repeat = 0; repeat < 400; ++repeat) {
    std::vector<double> entropies;  // in any order: another confidence may rank the rows
    const Index count = 1 + random.below(9);
    for (Index i = 0; i < count; ++i) entropies.push_back(0.5 + 0.5 * random.signed_unit());
    const double bound = 0.3 * static_cast<double>(random.below(8));
    Index longest = 1;
    for (Index n = 1; n <= count; ++n) {
      double sum = 0.0, most = 0.0;
      for (Index i = 0; i < n; ++i) {
        sum += entropies[static_cast<std::size_t>(i)];
        most = std::max(most, entropies[static_cast<std::size_t>(i)]);
      }
      if (sum - most > bound) break;
      longest = n;
    }
    INFO("seed " << seed << ", repeat " << repeat << ", bound " << bound);
    REQUIRE(commits(with_entropies(entropies), EntropyBoundCommit{bound}) == longest);
  }
  // One row costs nothing; with a bound of 0 rows without entropy cost nothing either.
  CHECK(commits(with_entropies({3.0}), EntropyBoundCommit{0.0}) == 1);
  CHECK(commits(with_entropies({0.0, 0.0, 2.0, 1.0}), EntropyBoundCommit{0.0}) == 3);
  CHECK(commits(with_entropies({0.25, 0.5}), EntropyBoundCommit{0.25}) == 2);
}

TEST_CASE("FixedCommit: the same number in each step, as far as there are rows", "[commit_rule]") {
  CHECK(commits(with_confidences({0.3, 0.2, 0.1}), FixedCommit{2}) == 2);
  CHECK(commits(with_confidences({0.3}), FixedCommit{2}) == 1);
  CHECK(commits(with_confidences({0.3}), FixedCommit{std::numeric_limits<Index>::max()}) == 1);
}

TEST_CASE("count_commits: nothing predicted, nothing committed; never more than predicted",
          "[commit_rule]") {
  for (const CommitRule& rule :
       {CommitRule(CountedCommit{}), CommitRule(TimestepCommit{}), CommitRule(BernoulliCommit{}),
        CommitRule(ThresholdCommit{}), CommitRule(FactorCommit{}), CommitRule(EntropyBoundCommit{}),
        CommitRule(FixedCommit{5})}) {
    CAPTURE(rule.index());
    const BlockProgress last{.step = 0, .steps = 1, .first_masked = 9, .masked = 9};
    CHECK(commits({}, rule, last) == 0);
    const Index taken = commits(with_confidences({1.0, 1.0}), rule, last);
    CHECK(taken == 2);
    CHECK(is_counted(rule) == (rule.index() < 3));
  }
}

TEST_CASE("check_rule: a number outside its range is refused by rule, range and value",
          "[commit_rule][refusal]") {
  struct Bad {
    CommitRule rule;
    const char* message;
  };
  const Bad all[] = {
      {TimestepCommit{0.0}, "TimestepCommit: epsilon must be in (0, 1), got 0"},
      {TimestepCommit{1.0}, "TimestepCommit: epsilon must be in (0, 1), got 1"},
      {TimestepCommit{not_a_number}, "TimestepCommit: epsilon must be in (0, 1), got nan"},
      {BernoulliCommit{-0.5}, "BernoulliCommit: epsilon must be in (0, 1), got -0.5"},
      {BernoulliCommit{1.0}, "BernoulliCommit: epsilon must be in (0, 1), got 1"},
      {BernoulliCommit{not_a_number}, "BernoulliCommit: epsilon must be in (0, 1), got nan"},
      {ThresholdCommit{-0.1}, "ThresholdCommit: threshold must be in [0, 1], got -0.1"},
      {ThresholdCommit{1.5}, "ThresholdCommit: threshold must be in [0, 1], got 1.5"},
      {ThresholdCommit{not_a_number}, "ThresholdCommit: threshold must be in [0, 1], got nan"},
      {FactorCommit{0.0}, "FactorCommit: factor must be above 0, got 0"},
      {FactorCommit{-1.0}, "FactorCommit: factor must be above 0, got -1"},
      {FactorCommit{not_a_number}, "FactorCommit: factor must be above 0, got nan"},
      {EntropyBoundCommit{-0.25}, "EntropyBoundCommit: bound must be at least 0, got -0.25"},
      {EntropyBoundCommit{not_a_number}, "EntropyBoundCommit: bound must be at least 0, got nan"},
      {FixedCommit{0}, "FixedCommit: rows must be at least 1, got 0"},
      {FixedCommit{-3}, "FixedCommit: rows must be at least 1, got -3"},
  };
  for (const Bad& bad : all) CHECK(refusal_of(bad.rule) == bad.message);
}

TEST_CASE("check_rule: the ends of the ranges are legal", "[commit_rule]") {
  for (const CommitRule& rule :
       {CommitRule(CountedCommit{}), CommitRule(TimestepCommit{smallest}),
        CommitRule(TimestepCommit{std::nextafter(1.0, 0.0)}), CommitRule(BernoulliCommit{smallest}),
        CommitRule(ThresholdCommit{0.0}), CommitRule(ThresholdCommit{1.0}),
        CommitRule(FactorCommit{smallest}), CommitRule(EntropyBoundCommit{0.0}),
        CommitRule(FixedCommit{1})}) {
    CAPTURE(rule.index());
    CHECK(refusal_of(rule) == "nothing was thrown");
  }
}
