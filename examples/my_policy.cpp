// SPDX-License-Identifier: Apache-2.0
// Write a policy of your own and compare it with the published ones on the same model.
// usage: my_policy MODEL_FOLDER
#include <cstdio>
#include <exception>
#include <vector>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/dllm_cache.hpp"
#include "dllm_cache/models/load_model.hpp"
#include "inside_policies.hpp"

using namespace dllm_cache;

// [readme]
/// Full forward every `refresh_interval` steps; in between only masked rows within `reach` of the
/// active block's first masked row, and the rows that have just changed.
struct NearestMasksPolicy {
  Index refresh_interval = 8;
  Index reach = 16;

  static void visit_options(auto& self, auto&& visit) {  // name, member, range, help
    visit("refresh_interval", self.refresh_interval, steps_or_never, "steps between full forwards");
    visit("reach", self.reach, at_least(1), "rows from the first masked one that are recomputed");
  }

  PolicyTraits traits(const SequenceShape&) const {  // asked once
    return {
        .name = "nearest-masks", .needs_block = true, .needs_masked = true, .needs_changed = true};
  }

  void plan(const StepContext& context, StepPlan& plan) const {  // asked at every step
    if (context.step % refresh_interval == 0) return plan.recompute(context.live());
    const Index shift = context.shape.prediction_shift;
    Index first = context.block.begin;
    while (first < context.block.end && !context.masked[static_cast<std::size_t>(first)]) ++first;
    for (Index row = shift; row < context.live().end; ++row) {
      const auto i = static_cast<std::size_t>(row);
      const bool near = context.masked[i] && row < first + reach;
      if (near) plan.recompute({row - shift, row - shift + 1});
      if (near || context.changed[i]) plan.recompute({row, row + 1});
    }
  }
};
static_assert(CachePolicy<NearestMasksPolicy>);
// [readme]

// [verify]
/// A full forward every 16 steps; in between the active block, and of the other response rows
/// those whose values changed.
struct ChangedValuesPolicy {
  PolicyTraits traits(const SequenceShape& shape) const {
    return {.name = "changed-values",
            .stored_deltas = {shape.prompt, shape.rows()},  // may be verified
            .needs_block = true};
  }

  void plan(const StepContext& context, StepPlan& plan) const {
    if (context.step % 16 == 0) return plan.recompute(context.live());
    plan.verify(context.response(), context.shape.response - context.active_block().size(), 0.99);
    plan.recompute(context.active_block());  // more work wins
    const Index prompt = context.shape.prompt;
    plan.recompute({prompt - context.shape.prediction_shift, prompt});  // predicts the first token
  }
};
// [verify]

namespace {

struct Answer {
  std::vector<std::int32_t> tokens;
  Index rows = 0;
};

Answer generate(models::TransformerRunner& runner, const AnyPolicy& policy) {
  std::vector<std::int32_t> prompt(24);
  for (std::size_t i = 0; i < prompt.size(); ++i)
    prompt[i] = static_cast<std::int32_t>(5 + 7 * i % 50);
  DenoisingLoop<models::TransformerRunner> loop(runner);
  loop.add(prompt, {.response = 32, .block_length = 16}, policy);
  loop.run();
  const auto response = loop.sequence(0).response();
  return {{response.begin(), response.end()}, loop.counts(0).recomputed};
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2) {
    std::fprintf(stderr, "usage: my_policy MODEL_FOLDER\n");
    return 2;
  }
  // Of the value weights ProjectedPolicy's layers make the projection that they compare.
  models::TransformerRunner runner(models::load_model(argv[1], {.verify_rank = 8}),
                                   models::available_threads());
  const Answer plain = generate(runner, NoCache{});
  struct Named {
    const char* name;
    AnyPolicy policy;
  };
  const std::vector<Named> all = {{"none", NoCache{}},
                                  {"dllm-cache", DllmCachePolicy{.response_interval = 4}},
                                  {"prefix", PrefixCachePolicy{}},
                                  {"dual", DualCachePolicy{}},
                                  {"dkv", DkvDecodePolicy{.refresh_interval = 8}},
                                  {"nearest-masks", NearestMasksPolicy{}},
                                  {"changed-values", ChangedValuesPolicy{}},
                                  {"short-sight", inside::ShortSightPolicy{}},
                                  {"attended", inside::AttendedPolicy{}},
                                  {"distrust", inside::DistrustPolicy{}},
                                  {"doubt", inside::DoubtPolicy{}},
                                  {"projected", inside::ProjectedPolicy{}}};
  std::printf("%-15s %16s %15s\n", "policy", "rows recomputed", "tokens as none");
  for (const Named& one : all) {
    const Answer answer = generate(runner, one.policy);
    std::size_t equal = 0;
    for (std::size_t i = 0; i < plain.tokens.size(); ++i)
      equal += answer.tokens[i] == plain.tokens[i] ? 1U : 0U;
    std::printf("%-15s %16td %12zu/%zu\n", one.name, answer.rows, equal, plain.tokens.size());
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "my_policy: %s\n", error.what());
  return 1;
}
