// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dllm_cache/base/matrix_view.hpp"
#include "programs/run/timed_model.hpp"

namespace programs {

using dllm_cache::Index;

/// One answer and what it cost.
struct RunRecord {
  std::vector<std::int32_t> tokens;
  Index steps = 0;
  Index rows = 0;  ///< Recomputed, summed over steps and layers.
  double operations = 0.0;
  Index cache_bytes = 0;
  double seconds = 0.0;
  LayerSeconds layers;            ///< Part of `seconds`.
  double decoding_seconds = 0.0;  ///< Part of `seconds`: logits, predictions, commits.
};

/// The lines that compare a run without a cache with one that has it: costs and their ratios, where
/// the time went, and whether the answers are equal; at most 79 characters each.
[[nodiscard]] std::vector<std::string> compare_runs(const RunRecord& off, const RunRecord& on);

}  // namespace programs
