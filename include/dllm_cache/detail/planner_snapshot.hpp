// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dllm_cache/detail/memory_snapshot.hpp"
#include "dllm_cache/snapshot.hpp"
#include "dllm_cache/stats.hpp"
#include "dllm_cache/step_planner.hpp"

// What a snapshot says of a sequence's plans: with its features, or alone.
namespace dllm_cache::inline v0_1::detail {

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

/// Writes the work done so far.
inline void write_counts(SnapshotWriter& out, const RowCounts& counts) {
  for (const Index count : {counts.rows, counts.values, counts.recomputed})
    out.number("counts", count);
}
[[nodiscard]] inline RowCounts read_counts(SnapshotReader& in) {
  RowCounts counts;
  for (Index* count : {&counts.rows, &counts.values, &counts.recomputed})
    *count = in.number<Index>("counts", 0, most_counted);
  return counts;
}

/// Writes a planner between two steps, without the features: the one that reads it goes on with a
/// plain forward.
inline void save_plans(SnapshotWriter& out, const StepPlanner& planner, const RowCounts& counts) {
  static_cast<void>(named_options(planner));  // refused before anything is written
  out.begin("plans");
  write_identity(out, planner);
  out.number("step", planner.step());
  write_counts(out, counts);
  write_memory(out, planner.memory());
  out.finish();
}
/// Reads it into a planner of the same policy, options and shape, which is stale then. Throws
/// std::runtime_error where they are not, and for a damaged snapshot; then nothing has changed.
inline void restore_plans(SnapshotReader& in, StepPlanner& planner, RowCounts& counts) {
  in.begin("plans");
  check_identity(in, planner);
  const auto step = in.number<Index>("step", 0, most_counted);
  const RowCounts done = read_counts(in);
  AnyMemory memory = read_memory(in, planner);
  in.finish();
  const std::vector<std::uint8_t> none(planner.progress().computed.size(), 0);
  planner.resume({.step = step, .stale = true, .computed = none});
  planner.resume_memory(std::move(memory));
  counts = done;
}

}  // namespace dllm_cache::inline v0_1::detail
