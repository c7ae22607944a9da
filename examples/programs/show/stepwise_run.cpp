// SPDX-License-Identifier: Apache-2.0
#include "programs/show/stepwise_run.hpp"

#include <algorithm>

#include "programs/text/errors.hpp"

namespace programs {

using Clock = std::chrono::steady_clock;

namespace {

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

StepwiseRun::StepwiseRun(dllm_cache::models::TransformerRunner& runner,
                         std::span<const std::int32_t> prompt, const Plan& plan)
    : m_runner(&runner), m_model(runner), m_loop(m_model) {
  m_loop.add(prompt, plan.decoding, plan.policy);
  const auto response = static_cast<std::size_t>(plan.decoding.response);
  m_recomputed.resize(prompt.size() + response);
  m_tokens.resize(response);
  m_states.resize(response, TokenState::Masked);
  m_committed_in.resize(response);
  m_loop.observer.on_layer = [this](const Loop::PassType& pass, Index) { watch_layer(pass); };
}

double StepwiseRun::step() {
  std::fill(m_recomputed.begin(), m_recomputed.end(), 0.0F);
  const double operations = m_runner->operations();
  const Clock::time_point start = Clock::now();
  double seconds = 0.0;
  m_loop.step([&](const dllm_cache::StepReport& report) {
    seconds = since(start);
    m_decoding_seconds += since(m_layers_done);
    watch_step(report);
  });
  m_seconds += seconds;
  m_operations += m_runner->operations() - operations;
  return seconds;
}

void StepwiseRun::watch_layer(const Loop::PassType& pass) {
  for (const Index row : pass.recomputed()) m_recomputed[static_cast<std::size_t>(row)] += 1.0F;
  if (!pass.open()) m_layers_done = Clock::now();
}

void StepwiseRun::watch_step(const dllm_cache::StepReport& report) {
  for (TokenState& state : m_states)
    if (state == TokenState::Provisional) state = TokenState::Masked;
  for (std::size_t i = 0; i < report.predictions.size(); ++i) {
    const dllm_cache::Prediction& one = report.predictions[i];
    if (one.row >= report.prompt_rows + report.response_rows) continue;  // fills the last block
    const auto place = static_cast<std::size_t>(one.row - report.prompt_rows);
    const bool committed = i < static_cast<std::size_t>(report.committed) &&
                           one.token != m_model.special_tokens().mask;
    m_tokens[place] = one.token;
    m_states[place] = committed ? TokenState::Committed : TokenState::Provisional;
    m_committed_in[place] = report.step;
  }
}

SideView StepwiseRun::view(const std::string& title, Index planned_steps,
                           const Vocabulary& vocabulary, const dllm_cache::EndTokens& ends) const {
  constexpr Index fresh_steps = 3;
  SideView view{.title = title,
                .recomputed = m_recomputed,
                .prompt = m_loop.sequence(0).prompt_rows(),
                .step = steps(),
                .steps = planned_steps,
                .seconds = m_seconds,
                .finished = finished()};
  const Index layers = m_model.shape().layers;
  const Index all = view.step * layers * static_cast<Index>(m_recomputed.size());
  if (all > 0)
    view.work = static_cast<double>(m_loop.counts(0).recomputed) / static_cast<double>(all);
  for (float& share : view.recomputed) share /= static_cast<float>(layers);
  for (std::size_t i = 0; i < m_tokens.size(); ++i) {
    TokenView token{.state = m_states[i], .end = ends.contains(m_tokens[i])};
    if (token.state != TokenState::Masked) token.text = vocabulary.symbol(m_tokens[i]);
    if (token.state == TokenState::Committed && !view.finished &&
        m_committed_in[i] + fresh_steps >= view.step)
      token.state = TokenState::Fresh;
    view.tokens.push_back(std::move(token));
  }
  return view;
}

RunRecord StepwiseRun::record() const {
  const auto response = m_loop.sequence(0).response();
  const LayerSeconds& layers = m_model.spent();
  return {.tokens = {response.begin(), response.end()},
          .steps = steps(),
          .rows = m_loop.counts(0).recomputed,
          .operations = m_operations,
          .cache_bytes = m_loop.cache_bytes(0),
          .seconds = m_seconds,
          .layers = layers,
          .decoding_seconds = m_decoding_seconds};
}

}  // namespace programs
