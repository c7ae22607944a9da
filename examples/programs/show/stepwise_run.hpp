// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/models/transformer_runner.hpp"
#include "programs/measure/comparison.hpp"
#include "programs/run/generation.hpp"
#include "programs/run/timed_model.hpp"
#include "programs/show/side_by_side.hpp"
#include "programs/text/vocabulary.hpp"

namespace programs {

/// Generates one answer step by step, on a clock of its own that runs only during its steps.
class StepwiseRun {
 public:
  /// `runner` must outlive it and may be shared by runs that take turns. Throws
  /// std::invalid_argument for a plan or tokens that do not fit.
  StepwiseRun(dllm_cache::models::TransformerRunner& runner, std::span<const std::int32_t> prompt,
              const Plan& plan);
  StepwiseRun(const StepwiseRun&) = delete;
  StepwiseRun& operator=(const StepwiseRun&) = delete;

  /// Takes one step; returns what it took in seconds.
  double step();
  [[nodiscard]] bool finished() const { return m_loop.finished(); }
  [[nodiscard]] double seconds() const { return m_seconds; }
  [[nodiscard]] Index steps() const { return m_loop.sequence(0).step(); }

  /// What has been generated so far, as a frame shows it.
  [[nodiscard]] SideView view(const std::string& title, Index planned_steps,
                              const Vocabulary& vocabulary,
                              const dllm_cache::EndTokens& ends) const;
  /// The answer and what it cost.
  [[nodiscard]] RunRecord record() const;

 private:
  using Model = TimedModel<dllm_cache::models::TransformerRunner>;
  using Loop = dllm_cache::DenoisingLoop<Model>;

  void watch_layer(const Loop::PassType& pass);
  void watch_step(const dllm_cache::StepReport& report);

  dllm_cache::models::TransformerRunner* m_runner;
  Model m_model;
  Loop m_loop;
  double m_seconds = 0.0;
  double m_decoding_seconds = 0.0;
  double m_operations = 0.0;
  std::chrono::steady_clock::time_point m_layers_done;
  std::vector<float> m_recomputed;                // layers that recomputed each row, last step
  std::vector<std::int32_t> m_tokens;             // of the answer, provisional ones included
  std::vector<TokenState> m_states;               // Fresh is worked out by view()
  std::vector<dllm_cache::Index> m_committed_in;  // step of each committed token
};

}  // namespace programs
