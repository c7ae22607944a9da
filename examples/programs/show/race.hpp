// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "programs/show/stepwise_run.hpp"
#include "programs/show/terminal.hpp"
#include "programs/text/vocabulary.hpp"

namespace programs {

/// One of the two generations that are shown, neither step of which has been taken.
struct Side {
  StepwiseRun& run;
  std::string title;
};

/// How a race is shown.
struct RaceOptions {
  Index steps = 0;     ///< Planned for either side.
  double speed = 1.0;  ///< In (0, 1]: below 1 the race pauses after each step; clocks stay true.
  bool colour = true;  ///< Where the terminal has it.
};

/// Columns that a terminal must have for a race.
inline constexpr int race_columns = 80;

/// Whether a race can be drawn on this terminal.
[[nodiscard]] bool can_race(const TerminalTraits& terminal);

/// Runs two generations to their ends and draws them side by side; false: the terminal became too
/// small, the rest ran undrawn.
///
/// They take turns: the one whose clock is behind takes the next step, so that at any moment both
/// have computed for about as long. `ends` are the tokens that end a text.
bool race(const Side& off, const Side& on, const Vocabulary& vocabulary,
          const dllm_cache::EndTokens& ends, const RaceOptions& options);

}  // namespace programs
