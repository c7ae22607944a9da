// SPDX-License-Identifier: Apache-2.0
// Policies that look inside, in the loop: with every rule of it, guidance, gaps and batches.
#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "dllm_cache/dllm_cache.hpp"
#include "tests/support/fake_model.hpp"
#include "tests/support/loop_runs.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;

namespace {

using Model = FakeModel<float>;
constexpr std::uint64_t seed = 4711;

struct Named {
  std::string name;
  AnyPolicy policy;
  bool block_causal = false;  // whether it goes with block-causal attention
};

std::vector<Named> policies() {
  return {{"elastic", ElasticPolicy{.gamma = 0.995, .track_num = 2}, true},
          {"elastic, all masked rows", ElasticPolicy{.gamma = 0.9, .block_caching = false}},
          {"d2cache", D2CachePolicy{.rollout_p = 0.3, .current_k = 3, .density_sigma = 2.0}},
          {"sparse", SparseDllmPolicy{.keep_ratio = 0.4}, true},
          {"dpad", DPadPolicy{.host_cache = 2, .suffix_window = 6}, true},
          {"streaming", StreamingDllmPolicy{.suffix_window = 3}, true},
          {"window", WindowDiffusionPolicy{.refresh_cycle = 4, .window_tokens = 6}},
          {"spa", SpaCachePolicy{.prompt_interval = 6, .response_interval = 3, .proxy_rank = 0}},
          {"dynamic", DynamicDllmPolicy{.layer_budget = 3, .window_size = 4}},
          {"entropy", EntropyCachePolicy{.entropy_threshold = 1.0, .recent_tokens = 2}}};
}

std::vector<Job> jobs_of(const Named& named, Index shift) {
  std::vector<Job> jobs;
  for (Job& job : motley(shift)) {
    if (job.options.attention_block > 0 && !named.block_causal) continue;
    job.policy = named.policy;
    jobs.push_back(std::move(job));
  }
  return jobs;
}

}  // namespace

TEST_CASE("Inside the loop: a batch gives every sequence what it gets alone, bit for bit",
          "[inside]") {
  const Index shift = GENERATE(0, 1);
  for (const Named& named : policies()) {
    CAPTURE(named.name, shift);
    const std::vector<Job> jobs = jobs_of(named, shift);
    Model model(seed, 2, shift);
    DenoisingLoop<Model> loop(model);
    Recorder recorder(loop);
    for (const Job& job : jobs) loop.add(job.prompt, job.options, job.policy);
    loop.run([&](const StepReport& report) { recorder(report); });
    CHECK(model.log.broken_rule.empty());
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      CAPTURE(i);
      const Record alone = run_alone(Model(seed, 2, shift), jobs[i]);
      CHECK(recorder.of(static_cast<Index>(i)) == alone);
      CHECK_FALSE(alone.tokens.empty());
    }
  }
}

TEST_CASE("Inside the loop: a policy that always computes all that exists is no cache",
          "[inside]") {
  const Index shift = GENERATE(0, 1);
  const std::vector<Named> always{
      {"d2cache", D2CachePolicy{.rollout_p = 1.0}},
      {"dpad",
       DPadPolicy{
           .host_cache = 0, .suffix_window = 1000, .suffix_sigma = 0.0, .suffix_scale = 10.0},
       true},
      {"window", WindowDiffusionPolicy{.refresh_cycle = 1}},
      {"spa", SpaCachePolicy{.prompt_interval = 1, .proxy_rank = 0}},
  };
  for (const Named& named : always) {
    // With a shifted head d2Cache leaves the row before the response out, whatever it is told.
    if (named.name == "d2cache" && shift > 0) continue;
    for (Job job : jobs_of(named, shift)) {
      CAPTURE(named.name, shift, job.prompt, job.options.response);
      const Record cached = run_alone(Model(seed, 2, shift), job);
      job.policy = NoCache{};
      const Record plain = run_alone(Model(seed, 2, shift), job);
      CHECK(cached.tokens == plain.tokens);
      CHECK(cached.sureness == plain.sureness);
    }
  }
}

TEST_CASE("Inside the loop: Streaming-dLLM that keeps all rows is Fast-dLLM's prefix cache",
          "[inside]") {
  const Index shift = GENERATE(0, 1);
  for (Job job : jobs_of({"", StreamingDllmPolicy{.suffix_window = 1000}, true}, shift)) {
    CAPTURE(shift, job.prompt, job.options.response, job.options.attention_block);
    const Record streaming = run_alone(Model(seed, 2, shift), job);
    job.policy = PrefixCachePolicy{};
    CHECK(streaming == run_alone(Model(seed, 2, shift), job));
  }
}

TEST_CASE(
    "Inside the loop: Elastic-Cache that never drifts recomputes what flows, and one that "
    "always does all layers but the first",
    "[inside]") {
  const Job job{{1, 2, 3, 4, 5}, {.response = 8, .commit = FixedCommit{1}, .window = 4}, NoCache{}};
  const auto counts = [&](double gamma) {
    Job one = job;
    one.policy = ElasticPolicy{.gamma = gamma};
    return run_alone(Model(seed, 3, 0), one).counts;
  };
  const DecodingCounts never = counts(0.0), always = counts(2.0);
  CHECK(never.recomputed < always.recomputed);
  CHECK(never.rows == always.rows);  // all are in the pass
  // 13 rows in all layers of the first step, then in layers 1 and 2 of seven.
  CHECK(always.recomputed >= 13 * 3 + 7 * 13 * 2);
  CHECK(always.recomputed < 13 * 3 * 8);
}
