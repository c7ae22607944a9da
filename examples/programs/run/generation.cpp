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

// What a finished sequence looks like to its user.
void note_oddities(const dllm_cache::SequenceState& state, Oddities& odd) {
  odd.masks_left += state.masks_left();
  const dllm_cache::DecodingOptions& options = state.options();
  if (!dllm_cache::is_counted(options.commit)) return;
  const Index to_fill = std::count(state.given().begin(), state.given().end(), std::uint8_t{0});
  if (options.steps <= to_fill) return;
  odd.too_many_steps = true;
  if (!state.has_gaps() && !options.early_stop && !options.end_drops_rows)
    odd.empty_steps += options.steps - state.step();
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
      trace.layer(pass, i, entry.id, state.first_to_fill(),
                  static_cast<Index>(state.tokens().size()), before + (entry.unconditional ? 1 : 0),
                  layer);
    }
  };
}

template <class Stored>
GenerationResult run(TransformerRunner& runner,
                     const std::vector<std::vector<std::int32_t>>& prompts, const Plan& plan,
                     const Watchers& watchers, const OnStep& on_step) {
  check_prompts(prompts, plan.decoding, runner.config());
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
    if (report.committed == 0 && !report.stores) ++result.odd.empty_steps;
    return !on_step || on_step(report);
  });
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (audit) {
    result.seconds -= audit->seconds();
    result.audit = audit->steps();
  }
  result.operations = runner.operations() - operations_before;
  bool any_gaps = false;
  for (Index id = 0; id < loop.sequences(); ++id) {
    const dllm_cache::SequenceState& state = loop.sequence(id);
    result.tokens.emplace_back(state.response().begin(), state.response().end());
    result.sequences.emplace_back(state.tokens().begin(), state.response().end());
    any_gaps = any_gaps || state.has_gaps();
    if (state.finished()) note_oddities(state, result.odd);
    result.steps = std::max(result.steps, state.step());
    result.forwards += loop.forwards(id);
    result.rows += loop.counts(id);
    result.cache_bytes += loop.cache_bytes(id);
    if (watchers.trace != nullptr) watchers.trace->finish(id, state);
  }
  if (!any_gaps) result.sequences.clear();
  return result;
}

}  // namespace

Plan resolve(Settings& settings) {
  dllm_cache::DecodingOptions options =
      dllm_cache::decoding_options(settings.decoding, settings.model);
  choose_policy(settings);
  return {.decoding = std::move(options), .policy = make_policy(settings.policy)};
}

Index planned_steps(const std::vector<std::vector<std::int32_t>>& prompts,
                    const dllm_cache::DecodingOptions& options, std::int32_t mask) {
  if (options.steps > 0 && dllm_cache::is_counted(options.commit)) return options.steps;
  Index most = 0;
  for (const auto& prompt : prompts)
    most = std::max<Index>(most, std::count(prompt.begin(), prompt.end(), mask));
  return options.response + most;
}

GenerationResult generate(TransformerRunner& runner,
                          const std::vector<std::vector<std::int32_t>>& prompts, const Plan& plan,
                          const Watchers& watchers, const OnStep& on_step, FeatureType features) {
  return features == FeatureType::Float32
             ? run<float>(runner, prompts, plan, watchers, on_step)
             : run<Eigen::bfloat16>(runner, prompts, plan, watchers, on_step);
}

}  // namespace programs
