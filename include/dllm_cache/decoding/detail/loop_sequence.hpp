// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "dllm_cache/decoding/decoding_counts.hpp"
#include "dllm_cache/decoding/detail/observations.hpp"
#include "dllm_cache/decoding/guidance.hpp"
#include "dllm_cache/decoding/sequence_state.hpp"
#include "dllm_cache/plan.hpp"

// What a DenoisingLoop keeps of each of its sequences.
namespace dllm_cache::inline v0_1::detail {

/// Which rows' tokens changed, as seen by one run of a sequence (see StepInput).
struct ChangeLog {
  explicit ChangeLog(std::size_t rows) : changed(rows, 0), unchanged_steps(rows, oldest) {}
  /// The first row that changed since the last step, or how many there are.
  [[nodiscard]] Index first_changed() const {
    return std::find(changed.begin(), changed.end(), std::uint8_t{1}) - changed.begin();
  }
  /// The same of the first rows alone, for so many rows.
  [[nodiscard]] ChangeLog resized(std::size_t rows) const {
    ChangeLog copy = *this;
    copy.changed.resize(rows, 0);
    copy.unchanged_steps.resize(rows, oldest);
    return copy;
  }
  void mark(std::size_t row) {
    changed[row] = 1;
    unchanged_steps[row] = 0;
  }
  void step_done() {
    std::fill(changed.begin(), changed.end(), std::uint8_t{0});
    for (std::uint16_t& steps : unchanged_steps)
      if (steps < oldest) ++steps;
  }
  void save(SnapshotWriter& out) const {
    out.array("changed", std::span<const std::uint8_t>(changed));
    out.array("unchanged_steps", std::span<const std::uint16_t>(unchanged_steps));
  }
  void restore(SnapshotReader& in) {
    in.array("changed", std::span(changed));
    in.array("unchanged_steps", std::span(unchanged_steps));
  }
  static constexpr std::uint16_t oldest = 65535;
  std::vector<std::uint8_t> changed;
  std::vector<std::uint16_t> unchanged_steps;
};

/// Which rows were given, where that is more than the prompt says.
[[nodiscard]] inline std::span<const std::uint8_t> given_rows(const SequenceState& state) {
  return state.has_gaps() ? state.given() : std::span<const std::uint8_t>();
}

/// The active block as policies know it: within the response of the cache's shape. Of a block that
/// begins before the first gap the rest alone, since nothing changes in front of it.
[[nodiscard]] inline Range block_in_response(const SequenceState& state,
                                             const SequenceShape& shape) {
  const Range block = state.block();
  // Blocks of attention cover the prompt too.
  if (shape.attention_block > 0) return block;
  const Index begin = std::max(block.begin, shape.prompt);
  return begin < block.end ? Range{begin, block.end} : block;
}

/// The unconditional run of a guided sequence, with counters of its own.
template <class Cache>
struct UnconditionalRun {
  UnconditionalRun(Cache features, Guidance residual, std::size_t rows)
      : cache(std::move(features)), guidance(std::move(residual)), changes(rows) {}
  [[nodiscard]] UnconditionalRun clone() const { return copy_with(cache.clone()); }
  [[nodiscard]] UnconditionalRun fork() { return copy_with(cache.fork()); }
  void save(SnapshotWriter& out) const {
    out.begin("unconditional");
    changes.save(out);
    out.number("block begin", block.begin);
    out.number("block end", block.end);
    out.number("block step", block_step);
    out.array("residual", guidance.residual());
    out.finish();
    cache.save(out);
  }
  void restore(SnapshotReader& in) {
    in.begin("unconditional");
    changes.restore(in);
    const auto rows = static_cast<Index>(changes.changed.size());
    block.begin = in.number<Index>("block begin", 0, rows);
    block.end = in.number<Index>("block end", block.begin, rows);
    block_step = in.number<Index>("block step", 0, most_counted);
    in.array("residual", guidance.residual());
    in.finish();
    cache.restore(in);
  }

  /// What its policy is told before a step: of predictions what the conditional run's is.
  [[nodiscard]] StepInput input(const SequenceState& state, const Observations& observed) const {
    StepInput input{.block = block_in_response(state, cache.shape()),
                    .block_step = block == state.block() ? block_step : 0,
                    .masked = state.masked(),
                    .changed = changes.changed,
                    .unchanged_steps = changes.unchanged_steps,
                    .given = given_rows(state)};
    observed.tell(input);
    return input;
  }
  /// It ran in a step on the block `now`.
  void forward_done(const Range& now) {
    changes.step_done();
    if (block != now) block_step = 0;
    block = now;
    ++block_step;
  }

  Cache cache;
  Guidance guidance;
  ChangeLog changes;
  Range block = {};      ///< That it saw last, and
  Index block_step = 0;  ///< in how many steps.

 private:
  [[nodiscard]] UnconditionalRun copy_with(Cache features) const {
    UnconditionalRun copy(std::move(features), guidance, changes.changed.size());
    copy.changes = changes;
    copy.block = block;
    copy.block_step = block_step;
    return copy;
  }
};

/// A sequence with its caches; what it cost outlives them.
template <class Cache>
struct LoopSequence {
  LoopSequence(Index number, SequenceState sequence, Cache features)
      : id(number),
        state(std::move(sequence)),
        cache(std::move(features)),
        changes(state.tokens().size()) {}

  [[nodiscard]] bool runs() const { return !stopped && !state.finished(); }
  /// What the policy of the conditional run is told before a step.
  [[nodiscard]] StepInput input() const {
    StepInput input{.block = block_in_response(state, cache->shape()),
                    .block_step = state.block_steps(),
                    .masked = state.masked(),
                    .changed = changes.changed,
                    .unchanged_steps = changes.unchanged_steps,
                    .given = given_rows(state),
                    .block_done = state.storing()};
    observed.tell(input);
    return input;
  }
  /// Makes the next forward one that computes what lies before the block alone; false where there
  /// is nothing to compute.
  bool begin_prefill() {
    if (cache->shape().attention_block == 0 && !cache->stale()) return false;
    state.begin_prefill();
    return state.storing();
  }
  /// Whether the unconditional run is part of the next step: where the guidance residual is due,
  /// and for the first step of a block whose rows have none yet.
  [[nodiscard]] bool wants_unconditional() const {
    if (!guided || state.storing()) return false;
    return guided->guidance.due(state.step()) ||
           (state.options().attention_block > 0 && state.block_steps() == 0);
  }
  /// One of its runs has gone through all layers.
  void forward_done(bool unconditional) {
    if (unconditional)
      guided->forward_done(state.block());
    else
      changes.step_done();
  }
  /// The token of a row is another one from now on.
  void mark_changed(std::size_t row) {
    changes.mark(row);
    if (guided) guided->changes.mark(row);
  }
  [[nodiscard]] DecodingCounts counts() const {
    DecodingCounts counts{cache ? cache->counts() : m_counts, logits_rows};
    if (guided) counts.RowCounts::operator+=(guided->cache.counts());
    return counts;
  }
  [[nodiscard]] Index forwards() const {
    return (cache ? cache->step() : m_forwards) + (guided ? guided->cache.step() : 0);
  }
  [[nodiscard]] Index cache_bytes() const {
    return (cache ? cache->own_bytes() : 0) + (guided ? guided->cache.own_bytes() : 0);
  }
  /// Begins anew; the features have been reset.
  void begin(SequenceState sequence, ChangeLog log, Observations nothing_yet,
             std::optional<UnconditionalRun<Cache>> run) {
    state = std::move(sequence);
    changes = std::move(log);
    observed = std::move(nothing_yet);
    guided = std::move(run);
    logits_rows = 0;
    stopped = false;
  }
  /// Goes on as another state with more rows, in which all have the tokens that they had. Throws
  /// like FeatureCache::reshape; then nothing has changed.
  void go_on(SequenceState next, const SequenceShape& shape) {
    Observations more =
        observed.extended(cache->planner().policy().traits(shape), next.tokens().size());
    go_on(std::move(next), shape, std::move(more), {});
  }
  /// The same where the first `keep` rows have the tokens that they had, or all, and of predictions
  /// this has been seen.
  void go_on(SequenceState next, const SequenceShape& shape, Observations seen,
             std::optional<Index> keep) {
    const std::size_t rows = next.tokens().size();
    ChangeLog log = keep ? ChangeLog(rows) : changes.resized(rows);
    // A new log does not know what has changed since the last step: that is not kept. Where
    // attention is bidirectional nothing would be read of what is.
    Index same = keep ? std::min(*keep, changes.first_changed()) : cache->shape().rows();
    if (shape.attention_block == 0) same = 0;
    cache->reshape(shape, std::min(same, shape.rows()));
    state = std::move(next);
    changes = std::move(log);
    observed = std::move(seen);
    stopped = false;
  }
  /// A copy with features of its own.
  [[nodiscard]] LoopSequence clone(Index number) const {
    return copy_with(number, cache->clone(),
                     guided ? std::optional(guided->clone()) : std::nullopt);
  }
  /// A copy that shares features until they change.
  [[nodiscard]] LoopSequence fork(Index number) {
    return copy_with(number, cache->fork(), guided ? std::optional(guided->fork()) : std::nullopt);
  }
  /// Writes everything but state and policy; the state has gone before.
  void save(SnapshotWriter& out) const {
    out.begin("run");
    changes.save(out);
    out.number("logits_rows", logits_rows);
    out.number("stopped", stopped);
    out.finish();
    cache->save(out);
    observed.save(out);  // behind the cache, which tells another policy
    if (guided) guided->save(out);
  }
  void restore(SnapshotReader& in) {
    in.begin("run");
    changes.restore(in);
    logits_rows = in.number<Index>("logits_rows", 0, most_counted);
    stopped = in.flag("stopped");
    in.finish();
    cache->restore(in);
    observed.restore(in);
    if (guided) guided->restore(in);
  }

  /// Gives the features back.
  void release() {
    const RowCounts all_counts = counts();
    const Index all_forwards = forwards();
    cache.reset();
    guided.reset();
    m_counts = all_counts;
    m_forwards = all_forwards;
  }

  Index id;
  SequenceState state;
  std::optional<Cache> cache;  ///< None once released.
  ChangeLog changes;
  Observations observed;
  std::optional<UnconditionalRun<Cache>> guided;
  Index logits_rows = 0;
  bool stopped = false;

 private:
  [[nodiscard]] LoopSequence copy_with(Index number, Cache features,
                                       std::optional<UnconditionalRun<Cache>> run) const {
    LoopSequence copy(number, state, std::move(features));
    copy.changes = changes;
    copy.observed = observed;
    copy.guided = std::move(run);
    copy.logits_rows = logits_rows;
    copy.stopped = stopped;
    return copy;
  }

  RowCounts m_counts = {};  // of a released sequence
  Index m_forwards = 0;
};

}  // namespace dllm_cache::inline v0_1::detail
