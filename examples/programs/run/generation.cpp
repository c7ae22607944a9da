// SPDX-License-Identifier: Apache-2.0
#include "programs/run/generation.hpp"

#include <algorithm>
#include <chrono>
#include <optional>

#include "programs/options/policies.hpp"
#include "programs/text/errors.hpp"

namespace programs {

using dllm_cache::models::TransformerRunner;

namespace {

void check_tokens(const std::vector<std::vector<std::int32_t>>& prompts,
                  const TransformerRunner& runner) {
  for (const auto& prompt : prompts)
    for (const std::int32_t token : prompt)
      if (token < 0 || token >= runner.vocabulary())
        throw BadRequest("prompt_ids must be in [0, " + std::to_string(runner.vocabulary()) +
                         "), got " + std::to_string(token));
}

template <class Loop>
void watch(Loop& loop, Trace& trace) {
  loop.observer.on_layer = [&, forwards = std::vector<Index>()](const typename Loop::PassType& pass,
                                                                Index layer) mutable {
    const auto batch = loop.batch();
    forwards.resize(static_cast<std::size_t>(loop.sequences()));
    for (Index i = 0; i < pass.sequences(); ++i) {
      const auto& entry = batch[static_cast<std::size_t>(i)];
      const dllm_cache::SequenceState& state = loop.sequence(entry.id);
      Index& before = forwards[static_cast<std::size_t>(entry.id)];
      if (layer == 0) {
        // Where the first layer is the last one too, this step's forwards are counted already.
        before = loop.forwards(entry.id);
        if (!pass.open())
          before -= std::count_if(batch.begin(), batch.end(),
                                  [&](const auto& other) { return other.id == entry.id; });
        trace.forward(entry.id, before + (entry.unconditional ? 1 : 0), state);
      }
      trace.layer(pass, i, entry.id, state.prompt_rows(), static_cast<Index>(state.tokens().size()),
                  before + (entry.unconditional ? 1 : 0), layer);
    }
  };
}

template <class Stored>
GenerationResult run(TransformerRunner& runner,
                     const std::vector<std::vector<std::int32_t>>& prompts, const Plan& plan,
                     const Watchers& watchers, const OnStep& on_step) {
  check_tokens(prompts, runner);
  dllm_cache::DecodingOptions options = plan.decoding;
  if (watchers.auditor != nullptr && options.guidance_scale > 0.0)
    throw BadRequest("cfg_scale must be 0 with --audit, which knows no guidance, got " +
                     nlohmann::json(options.guidance_scale).dump());
  dllm_cache::DenoisingLoop<TransformerRunner, Stored> loop(runner);
  for (const auto& prompt : prompts) {
    loop.add(prompt, options, plan.policy);
    ++options.sequence;
  }
  if (watchers.trace != nullptr) watch(loop, *watchers.trace);
  std::optional<Audit<Stored>> audit;
  if (watchers.auditor != nullptr) audit.emplace(*watchers.auditor, loop);

  const double operations_before = runner.operations();
  const auto start = std::chrono::steady_clock::now();
  GenerationResult result;
  result.cancelled = !loop.run([&](const dllm_cache::StepReport& report) {
    if (audit) audit->end_step(report);
    return !on_step || on_step(report);
  });
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (audit) {
    result.seconds -= audit->seconds();
    result.audit = audit->steps();
  }
  result.operations = runner.operations() - operations_before;
  for (Index id = 0; id < loop.sequences(); ++id) {
    const dllm_cache::SequenceState& state = loop.sequence(id);
    result.tokens.emplace_back(state.response().begin(), state.response().end());
    result.steps = std::max(result.steps, state.step());
    result.forwards += loop.forwards(id);
    result.rows += loop.counts(id);
    result.cache_bytes += loop.cache_bytes(id);
    if (watchers.trace != nullptr) watchers.trace->finish(id, state.response());
  }
  return result;
}

}  // namespace

Plan resolve(const Settings& settings, bool dream) {
  return {.decoding = dllm_cache::decoding_options(settings.decoding, dream),
          .policy = make_policy(settings.policy)};
}

Index planned_steps(const dllm_cache::DecodingOptions& options) {
  return options.steps == 0 || !dllm_cache::is_counted(options.commit) ? options.response
                                                                       : options.steps;
}

GenerationResult generate(TransformerRunner& runner,
                          const std::vector<std::vector<std::int32_t>>& prompts, const Plan& plan,
                          const Watchers& watchers, const OnStep& on_step, FeatureType features) {
  return features == FeatureType::Float32
             ? run<float>(runner, prompts, plan, watchers, on_step)
             : run<Eigen::bfloat16>(runner, prompts, plan, watchers, on_step);
}

}  // namespace programs
