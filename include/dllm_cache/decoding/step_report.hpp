// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <type_traits>

#include "dllm_cache/decoding/sampler.hpp"
#include "dllm_cache/plan.hpp"

namespace dllm_cache::inline v0_1 {

/// What one step did to one sequence; the spans are valid during the callback only.
struct StepReport {
  Index id = 0;                                  ///< The sequence, as add() numbered it.
  Index step = 0;                                ///< The step just done, from 0.
  Range block = {};                              ///< The block it worked on.
  Index committed = 0;                           ///< How many of `predictions` were committed.
  std::span<const Prediction> predictions = {};  ///< Surest first; the rest are provisional.
  std::span<const std::int32_t> tokens = {};     ///< Prompt and response after the step.
  Index prompt_rows = 0;                         ///< How many of `tokens` are the prompt,
  Index response_rows = 0;  ///< and how many behind them the response; others fill its last block.
  bool stores = false;      ///< A forward that only stored a finished block, see
                            ///< SequenceState::storing; it has no step of its own.
  bool finished = false;    ///< Nothing more will happen to this sequence.
};

/// A function that may be told of steps: `void(const StepReport&)`, or bool, false to cancel.
template <class F>
concept TakesReports = std::is_invocable_v<F&, const StepReport&> &&
    (std::is_void_v<std::invoke_result_t<F&, const StepReport&>> ||
     std::is_convertible_v<std::invoke_result_t<F&, const StepReport&>, bool>);

namespace detail {

/// Tells a callback of a step; false when it says so.
template <TakesReports F>
bool tell(F& on_step, const StepReport& report) {
  if constexpr (std::is_void_v<std::invoke_result_t<F&, const StepReport&>>) {
    on_step(report);
    return true;
  } else {
    return static_cast<bool>(on_step(report));
  }
}

}  // namespace detail
}  // namespace dllm_cache::inline v0_1
