// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "dllm_cache/detail/plan_check.hpp"
#include "dllm_cache/detail/settled_rows.hpp"
#include "dllm_cache/policy.hpp"

namespace dllm_cache::inline v0_1 {

/// Plans the steps of one sequence: policy, step counter, staleness and validity checks, without
/// any features. FeatureCache is built on it; a runtime that keeps its features elsewhere (on a
/// GPU, in a graph) uses it alone.
///
/// A step is begun, then committed, cancelled (as if never begun) or dropped (stale: the next step
/// recomputes every live row that is not hidden and asks a policy only where it has a memory, later
/// ones keep their phase). Not synchronised; copyable; allocates nothing once it has seen its
/// largest step.
class StepPlanner {
 public:
  /// Takes the policy for a sequence of this shape in a model of `layers >= 1` layers; throws
  /// std::invalid_argument naming the shape's, the policy's or this class's field.
  StepPlanner(AnyPolicy policy, const SequenceShape& shape, Index layers)
      : m_policy(std::move(policy)),
        m_fresh_memory(m_policy.make_memory()),
        m_memory(m_fresh_memory),
        m_step_memory(m_fresh_memory) {
    if (layers < 1) base::refuse_argument("StepPlanner: layers must be at least 1, got ", layers);
    m_context.layers = layers;
    reset(shape);
  }

  /// Begins a new sequence with the same policy; keeps memory. Throws std::logic_error while a step
  /// is open, std::invalid_argument and std::bad_alloc; then nothing has changed.
  void reset(const SequenceShape& shape) {
    const PolicyTraits traits = prepare_reset(shape);
    const auto rows = static_cast<std::size_t>(shape.rows());
    m_positions.resize(rows);
    for (std::size_t row = 0; row < rows; ++row)
      m_positions[row] =
          shape.positions.empty() ? static_cast<std::int32_t>(row) : shape.positions[row];
    m_computed.assign(rows, 0);
    m_plan.clear(shape.rows(), m_context.layers, traits.name);
    m_shape = shape;
    m_shape.positions = {};  // the caller's span may be gone later: positions() serves the copy
    m_traits = traits;
    m_context.step = 0;
    m_final = {};
    m_stale = true;
    m_memory = m_fresh_memory;
  }

  /// Goes on with another shape of the same policy: rows `[0, keep)` keep what is stored of them,
  /// later ones have nothing; the step counter runs on. Where attention is bidirectional or its
  /// blocks lie elsewhere, nothing stays final, and a policy's memory begins anew: the planner is
  /// stale then. So it is where deltas of kept rows are to be stored that were not before.
  ///
  /// Throws std::logic_error while a step is open, std::invalid_argument for a shape that reset()
  /// refuses, for `keep` outside [0, the rows of either shape] and for kept rows at other
  /// positions, and std::bad_alloc; then nothing has changed.
  void reshape(const SequenceShape& shape, Index keep) {
    const PolicyTraits traits = prepare_reshape(shape, keep);
    const auto rows = static_cast<std::size_t>(shape.rows());
    const auto kept = static_cast<std::size_t>(keep);
    const bool same_blocks =
        shape.attention_block == m_shape.attention_block &&
        shape.causal_commit == m_shape.causal_commit && shape.attention_block > 0 &&
        (shape.attention_phase - m_shape.attention_phase) % shape.attention_block == 0;
    const Range stored{traits.stored_deltas.begin, std::min(keep, traits.stored_deltas.end)};
    const bool same_deltas = stored.empty() || (m_traits.stored_deltas.begin <= stored.begin &&
                                                stored.end <= m_traits.stored_deltas.end);
    m_positions.resize(rows);
    for (std::size_t row = kept; row < rows; ++row)
      m_positions[row] =
          shape.positions.empty() ? static_cast<std::int32_t>(row) : shape.positions[row];
    m_computed.resize(rows);
    std::fill(m_computed.begin() + keep, m_computed.end(), std::uint8_t{0});
    m_plan.clear(shape.rows(), m_context.layers, traits.name);
    m_shape = shape;
    m_shape.positions = {};
    m_traits = traits;
    m_final.keep(m_shape, keep);
    m_memory = m_fresh_memory;
    if (!same_blocks || !same_deltas || !m_memory.empty()) m_stale = true;
  }

  /// Checks a reshape() and makes room for it, so that it cannot throw; throws what it would.
  /// Nothing that can be seen changes.
  PolicyTraits prepare_reshape(const SequenceShape& shape, Index keep) {
    const PolicyTraits traits = prepare_reset(shape);
    const Index most = std::min(shape.rows(), m_shape.rows());
    if (keep < 0 || keep > most)
      base::refuse_argument("StepPlanner: keep must be in [0, ", most, "], got ", keep);
    for (Index row = 0; row < keep; ++row) {
      const auto at = static_cast<std::size_t>(row);
      const std::int32_t position =
          shape.positions.empty() ? static_cast<std::int32_t>(row) : shape.positions[at];
      if (position != m_positions[at])
        base::refuse_argument("StepPlanner: positions of kept rows must stay, row ", row, " had ",
                              m_positions[at], ", got ", position);
    }
    return traits;
  }

  /// Checks a reset() and makes room for it, so that it cannot throw; throws what it would. Nothing
  /// that can be seen changes.
  PolicyTraits prepare_reset(const SequenceShape& shape) {
    if (m_open) base::refuse_call("StepPlanner: reset() while a step is open");
    const PolicyTraits traits = checked_traits(m_policy, shape);
    const auto rows = static_cast<std::size_t>(shape.rows());
    m_positions.reserve(rows);
    m_computed.reserve(rows);
    m_plan.rows.reserve(rows);
    return traits;
  }

  /// Begins a step and returns its plan, valid until the next begin.
  ///
  /// Throws std::invalid_argument for an input that is malformed or lacks what the policy needs and
  /// std::logic_error, naming policy and row, for a plan that cannot be carried out, or when a step
  /// is open; in each case nothing has changed but plan().
  const StepPlan& begin_step(const StepInput& input) {
    if (m_open) base::refuse_call("StepPlanner: begin_step() while a step is open");
    check_input(input);
    const InputDuringCall during(m_context, input);
    m_context.shape = shape();
    m_context.stale = m_stale;
    m_context.settled = m_stale ? m_final.begin_stale(m_context) : m_final.begin_step(m_context);
    m_plan.clear(m_shape.rows(), m_context.layers, m_traits.name);
    m_step_memory = m_memory;
    if (!m_stale || !m_memory.empty()) m_policy.plan(m_context, m_step_memory, m_plan);
    if (m_stale) recompute_all();
    check_plan();
    m_open = true;
    return m_plan;
  }

  /// A layer of the open step is done: asks the policy what is to change from the next one on, and
  /// changes plan() so. `facts` holds what the plan asks for. Returns whether anything changed.
  /// Throws std::logic_error when no step is open, and for a change that cannot be: then the step
  /// must be dropped.
  bool layer_done(const LayerFacts& facts) {
    if (!m_open) base::refuse_call("StepPlanner: layer_done() without an open step");
    if (!m_policy.watches_layers()) return false;
    m_change.clear();
    m_policy.after_layer(m_context, facts, m_step_memory, m_change);
    const detail::PlanChange change{m_plan, m_traits, m_computed, m_stale, m_context.layers};
    return change.apply(m_change, facts.layer);
  }

  /// The open step was carried out: it counts. Throws std::logic_error when no step is open.
  void commit_step() {
    if (!m_open) base::refuse_call("StepPlanner: commit_step() without an open step");
    if (m_stale) std::fill(m_computed.begin(), m_computed.end(), std::uint8_t{0});
    m_final.end_step(m_shape, m_plan, m_context.layers);
    if (m_traits.keeps_features)
      for (std::size_t row = 0; row < m_computed.size(); ++row)
        if (m_plan.rows[row] == RowAction::Recompute) m_computed[row] = 1;
    std::swap(m_memory, m_step_memory);
    m_open = m_stale = false;
    ++m_context.step;
  }

  /// The open step is taken back before anything was computed: no trace is left.
  void cancel_step() noexcept { m_open = false; }

  /// The open step broke in the middle: features are a mixture, so the next step is a plain
  /// forward.
  void drop_step() noexcept {
    m_open = false;
    m_stale = true;
  }

  /// Features may not be read: the next step recomputes every live row. Throws std::logic_error
  /// while a step is open.
  void mark_stale() {
    if (m_open) base::refuse_call("StepPlanner: mark_stale() while a step is open");
    m_stale = true;
  }

  /// Counter and marks of a sequence between two steps: what restores a planner of the same policy,
  /// shape and layers.
  struct Progress {
    Index step = 0;                               ///< Committed steps.
    bool stale = true;                            ///< See stale().
    std::span<const std::uint8_t> computed = {};  ///< One flag a row: its features are stored
                                                  ///< since the last stale step.
    Index settled = 0;  ///< Rows `[0, settled)` were final when the last step was committed,
    Index open = 0;     ///< which had this StepContext::open().
  };
  /// Where the sequence stands; the span is valid until the next step or reset.
  [[nodiscard]] Progress progress() const {
    return {m_context.step, m_stale, m_computed, m_final.settled(), m_final.open()};
  }
  /// Goes on from there. Throws std::logic_error while a step is open, std::invalid_argument for a
  /// step outside [0, most_counted], another number of rows, or `settled` and `open` outside
  /// [0, rows]; then nothing has changed.
  void resume(const Progress& progress) {
    if (m_open) base::refuse_call("StepPlanner: resume() while a step is open");
    if (progress.step < 0 || progress.step > most_counted)
      base::refuse_argument("StepPlanner: step must be in [0, ", most_counted, "], got ",
                            progress.step);
    if (progress.computed.size() != m_computed.size())
      base::refuse_argument("StepPlanner: computed must have one entry a row (", m_computed.size(),
                            "), got ", progress.computed.size());
    for (const Index row : {progress.settled, progress.open})
      if (row < 0 || row > m_shape.rows())
        base::refuse_argument("StepPlanner: settled and open must be in [0, ", m_shape.rows(),
                              "], got ", row);
    std::copy(progress.computed.begin(), progress.computed.end(), m_computed.begin());
    m_context.step = progress.step;
    m_stale = progress.stale;
    m_final = detail::SettledRows(progress.settled, progress.open);
  }

  /// What the policy remembers of the committed steps; for snapshots.
  [[nodiscard]] const detail::AnyMemory& memory() const { return m_memory; }
  /// An empty one, to read into.
  [[nodiscard]] detail::AnyMemory fresh_memory() const { return m_fresh_memory; }
  /// Goes on with this memory of the same policy. Throws std::logic_error while a step is open.
  void resume_memory(detail::AnyMemory memory) {
    if (m_open) base::refuse_call("StepPlanner: resume_memory() while a step is open");
    m_memory = std::move(memory);
  }

  [[nodiscard]] bool stale() const { return m_stale; }
  [[nodiscard]] bool step_open() const { return m_open; }
  /// Committed steps of this sequence.
  [[nodiscard]] Index step() const { return m_context.step; }
  [[nodiscard]] Index layers() const { return m_context.layers; }
  [[nodiscard]] const PolicyTraits& traits() const { return m_traits; }
  [[nodiscard]] const AnyPolicy& policy() const { return m_policy; }
  /// The plan of the open step, or of the last one; after a refused begin_step() arbitrary.
  [[nodiscard]] const StepPlan& plan() const { return m_plan; }
  /// Rotary position of every row, one a row.
  [[nodiscard]] std::span<const std::int32_t> positions() const { return m_positions; }
  /// One past the last row whose key row `row` sees in the open step, or saw in the last one.
  [[nodiscard]] Index key_end(Index row) const {
    return m_shape.key_end(row, m_final.open_in_step());
  }
  /// The shape, with the planner's own copy of the positions.
  [[nodiscard]] SequenceShape shape() const {
    SequenceShape shape = m_shape;
    shape.positions = m_positions;
    return shape;
  }

 private:
  // The caller's spans end with the call, however it ends.
  struct InputDuringCall {
    InputDuringCall(StepContext& context, const StepInput& input) : held(context) { held = input; }
    ~InputDuringCall() {
      held = StepInput{
          .block = held.block, .block_step = held.block_step, .block_done = held.block_done};
    }
    InputDuringCall(const InputDuringCall&) = delete;
    InputDuringCall& operator=(const InputDuringCall&) = delete;
    StepInput& held;
  };

  void check_input(const StepInput& input) const {
    const Index rows = m_shape.rows();
    if (input.block.begin < 0 || input.block.end > rows || input.block.begin > input.block.end)
      base::refuse_argument("StepInput: block must lie in [0, ", rows, "), got [",
                            input.block.begin, ", ", input.block.end, ")");
    if (input.block_step < 0)
      base::refuse_argument("StepInput: block_step must be at least 0, got ", input.block_step);
    if (m_traits.needs_block && input.block.empty())
      base::refuse_argument("StepInput: block must be given, policy ", m_traits.name, " needs it");
    check_span("masked", input.masked.size(), m_traits.needs_masked);
    check_span("given", input.given.size(), false);
    check_span("changed", input.changed.size(), m_traits.needs_changed);
    check_span("confidence", input.confidence.size(), m_traits.needs_confidence);
    check_span("unchanged_steps", input.unchanged_steps.size(), m_traits.needs_unchanged_steps);
    check_span("candidates", input.candidates.size(), m_traits.needs_candidates);
    check_span("entropy", input.entropy.size(), m_traits.needs_entropy);
    check_span("gap", input.gap.size(), m_traits.needs_gap);
    check_span("change", input.change.size(), m_traits.needs_change);
  }

  void check_span(const char* field, std::size_t size, bool needed) const {
    if (size == m_positions.size() || (size == 0 && !needed)) return;
    if (size == 0)
      base::refuse_argument("StepInput: ", field, " must be given, policy ", m_traits.name,
                            " needs it");
    base::refuse_argument("StepInput: ", field, " must be empty or have one entry a row (",
                          m_shape.rows(), "), got ", size);
  }

  // A plain forward of what the plan does not hide.
  void recompute_all() {
    const Range live = m_context.live();
    for (Index row = 0; row < m_shape.rows(); ++row)
      m_plan.rows[static_cast<std::size_t>(row)] =
          live.contains(row) && !m_plan.hides(row) ? RowAction::Recompute : RowAction::Absent;
    m_plan.verify_count = 0;
    m_plan.similarity_threshold = no_similarity_threshold;
    m_plan.layer_counts.clear();
    m_plan.cached_layers = {0, m_context.layers};
    m_plan.probes.clear();
  }

  void check_plan() const {
    detail::PlanCheck{m_plan, m_traits, m_context, m_computed, m_stale, m_final.open_in_step()}
        .run();
  }

  AnyPolicy m_policy;
  detail::AnyMemory m_fresh_memory;
  detail::AnyMemory m_memory;       // as the last committed step left it
  detail::AnyMemory m_step_memory;  // of the step that was begun last
  LayerChange m_change;
  PolicyTraits m_traits;
  SequenceShape m_shape;
  StepContext m_context;
  StepPlan m_plan;
  std::vector<std::int32_t> m_positions;
  std::vector<std::uint8_t> m_computed;  // rows whose features are stored since the last stale step
  detail::SettledRows m_final;
  bool m_stale = true;
  bool m_open = false;
};

}  // namespace dllm_cache::inline v0_1
