// SPDX-License-Identifier: Apache-2.0
// The published caches on small LLaDA and Dream checkpoints against plain programs of the same
// methods; decoding/policies_test.cpp has the same bit for bit on a model without products.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <string>
#include <vector>

#include "dllm_cache/models/load_model.hpp"
#include "dllm_cache/policies/dllm_cache.hpp"
#include "tests/support/golden_case.hpp"
#include "tests/support/published_caches.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;
using Runner = models::TransformerRunner;

namespace {

constexpr std::uint64_t seed = 22618;
constexpr float logit_tolerance = 2e-4F;  // float32 sums in another order, logits of size 10

std::vector<std::int32_t> random_prompt(Index rows, std::uint64_t number) {
  RandomNumbers random(seed + number);
  std::vector<std::int32_t> prompt;
  for (Index row = 0; row < rows; ++row)
    prompt.push_back(static_cast<std::int32_t>(random.below(90)));
  return prompt;
}

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  float largest = 0.0F;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const float difference = std::abs(a[i] - b[i]);
    largest = std::isnan(difference) ? difference : std::max(largest, difference);
  }
  return largest;
}

}  // namespace

TEST_CASE("Policies: on LLaDA and Dream each published cache gives what its definition gives",
          "[policies][property]") {
  float worst = 0.0F;
  double margin = 1.0;
  for (const std::string name : {"llada-tiny", "dream-tiny"}) {
    Runner runner(models::load_model(golden::folder() / "models" / name), 1);
    const PlainTask tasks[] = {{random_prompt(7, 0), 12, 4, 4},
                               {random_prompt(11, 1), 12, 6, 1, 0.15}};
    for (const PlainTask& task : tasks)
      for (CachePair& pair : published_caches(runner.prediction_shift())) {
        INFO("seed " << seed << ", " << name << ", threshold " << task.threshold << ", "
                     << pair.what);
        const PlainRun expected = run_plainly(runner, *pair.plain, task);
        margin = std::min(margin, expected.margin);
        const PlainRun got = run_in_loop(runner, pair.policy, task);
        REQUIRE(got.in_pass == expected.in_pass);
        REQUIRE(got.tokens == expected.tokens);
        REQUIRE(got.logits.size() == expected.logits.size());
        for (const auto& [place, logits] : expected.logits)
          worst = std::max(worst, largest_difference(got.logits.at(place), logits));
        REQUIRE(worst <= logit_tolerance);
      }
  }
  // No decision depends on rounding: with logits as close as that no probability moves by more than
  // 1e-4, so none overtakes another that is twice as far.
  INFO("worst difference " << worst);
  CHECK(margin > 2e-4);
}

TEST_CASE("Policies: on LLaDA and Dream a batch of all policies ends in the single runs' tokens",
          "[policies][property]") {
  for (const std::string name : {"llada-tiny", "dream-tiny"}) {
    Runner runner(models::load_model(golden::folder() / "models" / name), 1);
    std::vector<AnyPolicy> policies{NoCache{}, DllmCachePolicy{5, 3, 0.25}};
    for (const CachePair& pair : published_caches(runner.prediction_shift()))
      policies.push_back(pair.policy);
    DenoisingLoop<Runner> together(runner);
    const auto job = [](std::size_t i) {
      DecodingOptions options{.response = 12, .block_length = 4};
      if (i % 3 == 1) options.commit = ThresholdCommit{0.15};
      if (i % 5 == 2) {
        options.guidance_scale = 0.5;
        options.guidance_interval = 2;
      }
      return options;
    };
    const auto prompt = [](std::size_t i) {
      return random_prompt(3 + static_cast<Index>(i % 4), i);
    };
    for (std::size_t i = 0; i < policies.size(); ++i) together.add(prompt(i), job(i), policies[i]);
    together.run();
    for (std::size_t i = 0; i < policies.size(); ++i) {
      INFO("seed " << seed << ", " << name << ", sequence " << i);
      DenoisingLoop<Runner> alone(runner);
      alone.add(prompt(i), job(i), policies[i]);
      alone.run();
      const auto id = static_cast<Index>(i);
      CHECK(std::ranges::equal(together.sequence(id).tokens(), alone.sequence(0).tokens()));
      CHECK(together.counts(id) == alone.counts(0));
    }
  }
}
