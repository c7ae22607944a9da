// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "dllm_cache/base/scalar.hpp"
#include "dllm_cache/snapshot.hpp"
#include "dllm_cache/step_planner.hpp"

// What a snapshot of features says about them before any are read.
namespace dllm_cache::inline v0_1::detail {

/// Name of a scalar type.
template <class T>
[[nodiscard]] constexpr std::string_view scalar_name() {
  if constexpr (std::is_same_v<T, float>) return "float32";
  if constexpr (std::is_same_v<T, double>) return "float64";
  if constexpr (std::is_same_v<T, Eigen::bfloat16>) return "bfloat16";
  if constexpr (std::is_same_v<T, Eigen::half>) return "float16";
}

/// Options of a policy; std::logic_error where it does not tell them.
[[nodiscard]] inline std::string named_options(const StepPlanner& planner) {
  const std::optional<std::string> options = planner.policy().options();
  if (!options)
    base::refuse_call("policy ", planner.traits().name,
                      " has members and no `visit_options`: snapshots need it");
  return *options;
}

/// Writes what a planner must have in common with the one that reads it.
inline void write_identity(SnapshotWriter& out, const StepPlanner& planner) {
  const SequenceShape shape = planner.shape();
  out.text("policy", planner.traits().name);
  out.text("policy options", named_options(planner));
  out.number("layers", planner.layers());
  out.number("prompt", shape.prompt);
  out.number("response", shape.response);
  out.number("prediction_shift", shape.prediction_shift);
  out.number("attention_block", shape.attention_block);
  out.number("attention_phase", shape.attention_phase);
  out.number("causal_commit", shape.causal_commit);
  out.array("positions", shape.positions);
}

/// Refuses a snapshot of another policy, options or shape.
inline void check_identity(SnapshotReader& in, const StepPlanner& planner) {
  const SequenceShape shape = planner.shape();
  in.expect_text("policy", planner.traits().name);
  in.expect_text("policy options", named_options(planner));
  in.expect("layers", planner.layers());
  in.expect("prompt", shape.prompt);
  in.expect("response", shape.response);
  in.expect("prediction_shift", shape.prediction_shift);
  in.expect("attention_block", shape.attention_block);
  in.expect("attention_phase", shape.attention_phase);
  if (in.flag("causal_commit") != shape.causal_commit)
    SnapshotReader::refuse("causal_commit must be ", shape.causal_commit);
  const auto positions = in.elements<std::int32_t>(shape.positions.size());
  if (!std::equal(positions.begin(), positions.end(), shape.positions.begin()))
    SnapshotReader::refuse("positions must be those of the cache");
}

/// Calls `part(begin, end)` for each run of rows whose flag is set.
template <class Part>
void for_each_run(std::span<const std::uint8_t> flags, const Part& part) {
  const auto rows = static_cast<Index>(flags.size());
  for (Index begin = 0; begin < rows;) {
    Index end = begin;
    while (end < rows && flags[static_cast<std::size_t>(end)] != 0) ++end;
    if (end > begin) part(begin, end);
    begin = end + 1;
  }
}

}  // namespace dllm_cache::inline v0_1::detail
