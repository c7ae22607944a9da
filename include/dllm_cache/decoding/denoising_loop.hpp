// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <memory_resource>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "dllm_cache/base/large_pages.hpp"
#include "dllm_cache/decoding/denoising_model.hpp"
#include "dllm_cache/decoding/detail/logits_pass.hpp"
#include "dllm_cache/decoding/detail/loop_sequence.hpp"
#include "dllm_cache/decoding/step_report.hpp"
#include "dllm_cache/workspace.hpp"

namespace dllm_cache::inline v0_1 {

/// Denoises any number of sequences together, each with its own options and cache policy.
///
/// Sequences may join at any time and leave when they are finished; a sequence's result does not
/// depend on its neighbours beyond the rounding of the model's products. With guidance a sequence
/// has a second cache, for the prompt replaced by masks. An exception from the model commits no
/// token: the next step() tries again; where a layer threw, all caches of the step are stale, so
/// that it is a plain forward. Not synchronised; starts no threads.
template <class Model, StoredScalar Stored = float, class Selector = VVerifySelector<float, Stored>>
requires DenoisingModel<Model, Stored> && RowSelector<Selector, float, Stored>
class DenoisingLoop {
 public:
  using Cache = FeatureCache<float, Stored, Selector>;
  using PassType = Pass<float, Stored, Selector>;

  /// Looks into a running step; empty functions are not called.
  struct Observer {
    /// After each layer. Sequence `i` of the pass is `batch()[i]`.
    std::function<void(const PassType& pass, Index layer)> on_layer;
    /// After each row of logits `[vocabulary]`, guided when there is guidance.
    std::function<void(Index id, Index row, std::span<const float> logits)> on_logits;
  };

  /// One sequence of the step in progress.
  struct BatchEntry {
    Index id = 0;
    bool unconditional = false;
  };

  /// Logits are computed and reduced in chunks of so many rows: there is no [rows, vocabulary]
  /// array.
  static constexpr Index chunk_rows = detail::LogitsPass<Cache>::chunk_rows;

  /// Every sequence gets a copy of `selector`. The model and the memory resource of the caches must
  /// outlive the loop.
  explicit DenoisingLoop(Model& model, std::pmr::memory_resource* resource = large_pages(),
                         Selector selector = {})
      : m_model(&model), m_resource(resource), m_selector(std::move(selector)) {}

  Observer observer;  ///< Set it before the step that it is to see.

  /// Adds a sequence and returns its number. Throws std::invalid_argument for bad options and for
  /// tokens outside [0, vocabulary).
  Index add(std::span<const std::int32_t> prompt, const DecodingOptions& options,
            const AnyPolicy& policy) {
    check_prompt(prompt);
    m_slots.push_back(make_slot(SequenceState(prompt, options, m_model->special_tokens()), policy));
    return sequences() - 1;
  }

  /// Adds a copy of a sequence as it stands between two steps, with features of its own, and
  /// returns its number. The copy draws the random numbers of sequence `random_sequence` from here
  /// on: another number, another continuation. Throws std::logic_error when its features were
  /// released or it is part of a step that threw, and like sequence().
  Index clone(Index id, std::uint64_t random_sequence) {
    const Slot& original = resting(id, "clone");
    auto copy = std::make_unique<Slot>(original.clone(sequences()));
    copy->state.set_random_sequence(random_sequence);
    m_slots.push_back(std::move(copy));
    return sequences() - 1;
  }

  /// Writes a sequence as it stands between two steps, features included, into a snapshot. Throws
  /// std::logic_error when its features were released, when it is part of a step that threw, or
  /// when its policy does not name its options, and like sequence().
  void save(Index id, SnapshotWriter& out) const {
    const Slot& held = resting(id, "save");
    static_cast<void>(detail::named_options(held.cache->planner()));  // before anything is written
    held.state.save(out);
    held.save(out);
  }
  void save(Index id, SnapshotWriter&& out) const { save(id, out); }

  /// Adds a saved sequence, which goes on token for token, and returns its number. The policy must
  /// be the one it was saved with, the model one of the same shape, vocabulary and special tokens.
  /// Throws std::runtime_error where they are not and for a damaged snapshot, and like add(); then
  /// nothing was added.
  Index restore(SnapshotReader& in, const AnyPolicy& policy) {
    SequenceState state = SequenceState::restored(in, m_model->special_tokens());
    for (const std::int32_t token : state.tokens())
      if (token < 0 || token >= m_model->vocabulary())
        in.refuse("tokens must be in [0, ", m_model->vocabulary(), "), got ", token);
    auto slot = make_slot(std::move(state), policy);
    slot->restore(in);
    m_slots.push_back(std::move(slot));
    return sequences() - 1;
  }
  Index restore(SnapshotReader&& in, const AnyPolicy& policy) { return restore(in, policy); }

  /// Begins a new sequence in place of one that takes no further steps, under the same number and
  /// policy, with a new copy of the selector; the features of its conditional run use the same
  /// memory where it suffices. Throws std::logic_error where release()
  /// does, when the features were released and while a report of the sequence is still to come (in
  /// the callback of step()), and like add(); then nothing has changed.
  void restart(Index id, std::span<const std::int32_t> prompt, const DecodingOptions& options) {
    Slot& done = slot(id);
    refuse_busy(done, "restart");
    for (std::size_t i = m_told; i < m_reports.size(); ++i)
      if (m_reports[i].id == id)
        base::refuse_call("DenoisingLoop: restart() of sequence ", id,
                          ", whose report is still to come");
    check_prompt(prompt);
    if (!done.cache) base::refuse_call("DenoisingLoop: restart() of sequence ", id, ", released");
    const AnyPolicy policy = done.cache->planner().policy();
    SequenceState state(prompt, options, m_model->special_tokens());
    const SequenceShape shape = shape_of(state);
    std::optional<detail::UnconditionalRun<Cache>> guided;
    if (options.guidance_scale > 0.0) guided.emplace(make_guided(state, policy));
    detail::ChangeLog changes(state.tokens().size());
    Selector selector = m_selector;
    done.cache->reset(shape);
    done.cache->selector() = std::move(selector);
    done.begin(std::move(state), std::move(changes), std::move(guided));
  }

  /// Takes one step of every sequence that is not finished and tells `on_step` of each (it may
  /// return false to cancel). Returns false when nothing is left to do or it was cancelled. Throws
  /// std::logic_error when called by `on_step` or an observer, and what model, observer and
  /// `on_step` throw.
  template <TakesReports OnStep>
  bool step(OnStep&& on_step) {
    if (m_stepping) base::refuse_call("DenoisingLoop: step() while a step runs");
    const Stepping stepping(m_stepping);
    if (!m_pass) forward();
    if (!m_pass) return false;
    predict_rows();
    m_reports.reserve(m_batch.size());  // nothing may fail once tokens are committed
    m_pass.reset();
    return commit(on_step);
  }
  /// The same without a callback.
  bool step() {
    return step([](const StepReport&) {});
  }

  /// Steps until every sequence is finished; returns false when `on_step` cancelled, be it in the
  /// last step.
  template <TakesReports OnStep>
  bool run(OnStep&& on_step) {
    bool cancelled = false;
    const auto watch = [&](const StepReport& report) {
      if constexpr (std::is_void_v<std::invoke_result_t<OnStep&, const StepReport&>>)
        on_step(report);
      else if (!on_step(report))
        cancelled = true;
      return !cancelled;
    };
    while (step(watch)) {
    }
    return !cancelled;
  }
  /// The same without a callback.
  void run() {
    while (step()) {
    }
  }

  /// Stops a sequence where it is: it takes no further steps (nor does one saved or cloned from
  /// it), and the step in progress, if any, commits nothing of it. Throws like sequence().
  void stop(Index id) { slot(id).stopped = true; }

  /// Gives the features of a sequence back that takes no further steps; its state and its counts
  /// stay. A loop that serves one sequence after another holds those of the running ones alone.
  /// Throws std::logic_error for a sequence that still runs or is part of the step in progress,
  /// and like sequence().
  void release(Index id) {
    refuse_busy(slot(id), "release");
    slot(id).release();
  }

  /// True when no sequence would take another step.
  [[nodiscard]] bool finished() const {
    return std::none_of(m_slots.begin(), m_slots.end(),
                        [](const auto& slot) { return slot->runs(); });
  }
  /// Number of sequences added so far.
  [[nodiscard]] Index sequences() const { return static_cast<Index>(m_slots.size()); }
  /// State of a sequence; throws std::invalid_argument for an unknown number.
  [[nodiscard]] const SequenceState& sequence(Index id) const { return slot(id).state; }
  /// The features of a sequence's conditional run; throws like sequence(), and std::logic_error
  /// when they were given back.
  [[nodiscard]] const Cache& cache(Index id) const {
    const Slot& held = slot(id);
    if (!held.cache) base::refuse_call("DenoisingLoop: cache() of sequence ", id, " released");
    return *held.cache;
  }
  /// Sequences of the step in progress, in the order of the pass.
  [[nodiscard]] std::span<const BatchEntry> batch() const { return m_batch; }

  /// Rows of all committed steps of a sequence, unconditional ones included; throws like
  /// sequence().
  [[nodiscard]] DecodingCounts counts(Index id) const { return slot(id).counts(); }
  /// Forwards of a sequence, unconditional ones included; throws like sequence().
  [[nodiscard]] Index forwards(Index id) const { return slot(id).forwards(); }
  /// Bytes of features held for a sequence, unconditional ones included; throws like sequence().
  [[nodiscard]] Index cache_bytes(Index id) const { return slot(id).cache_bytes(); }

 private:
  // True while step() runs, however it ends.
  struct Stepping {
    explicit Stepping(bool& flag) : held(flag) { held = true; }
    ~Stepping() { held = false; }
    Stepping(const Stepping&) = delete;
    Stepping& operator=(const Stepping&) = delete;
    bool& held;
  };

  using Slot = detail::LoopSequence<Cache>;
  using Wanted = detail::WantedRow<Cache>;

  [[nodiscard]] SequenceShape shape_of(const SequenceState& state) const {
    return {.prompt = state.prompt_rows(),
            .response = state.options().response,
            .prediction_shift = m_model->prediction_shift()};
  }

  void check_prompt(std::span<const std::int32_t> tokens) const {
    for (const std::int32_t token : tokens)
      if (token < 0 || token >= m_model->vocabulary())
        base::refuse_argument("DenoisingLoop: prompt must hold tokens in [0, ",
                              m_model->vocabulary(), "), got ", token);
  }

  Cache make_cache(const SequenceState& state, const AnyPolicy& policy) {
    return Cache(m_model->shape(), shape_of(state), policy, m_resource, m_selector);
  }

  detail::UnconditionalRun<Cache> make_guided(const SequenceState& state, const AnyPolicy& policy) {
    const DecodingOptions& options = state.options();
    return {make_cache(state, policy),
            Guidance(options.guidance_scale, options.guidance_interval, options.response,
                     m_model->vocabulary()),
            state.tokens().size()};
  }

  std::unique_ptr<Slot> make_slot(SequenceState state, const AnyPolicy& policy) {
    Cache cache = make_cache(state, policy);
    auto made = std::make_unique<Slot>(sequences(), std::move(state), std::move(cache));
    if (made->state.options().guidance_scale > 0.0)
      made->guided.emplace(make_guided(made->state, policy));
    return made;
  }

  // Part of a forward whose predictions are not committed yet.
  [[nodiscard]] bool in_step(Index id) const {
    const auto& cache = slot(id).cache;
    if (cache && cache->planner().step_open()) return true;  // in the middle of its layers
    return m_pass && std::any_of(m_batch.begin(), m_batch.end(),
                                 [&](const BatchEntry& entry) { return entry.id == id; });
  }

  void refuse_busy(const Slot& done, const char* call) const {
    if (done.runs() || in_step(done.id))
      base::refuse_call("DenoisingLoop: ", call, "() of sequence ", done.id, ", which still runs");
  }

  // A sequence between two steps, with its features.
  const Slot& resting(Index id, const char* call) const {
    const Slot& held = slot(id);
    if (in_step(id))
      base::refuse_call("DenoisingLoop: ", call, "() of sequence ", id,
                        ", in the middle of a step");
    if (!held.cache)
      base::refuse_call("DenoisingLoop: ", call, "() of sequence ", id, ", released");
    return held;
  }

  [[nodiscard]] const Slot& slot(Index id) const {
    if (id < 0 || id >= sequences())
      base::refuse_argument("DenoisingLoop: sequence must be in [0, ", sequences(), "), got ", id);
    return *m_slots[static_cast<std::size_t>(id)];
  }
  [[nodiscard]] Slot& slot(Index id) { return const_cast<Slot&>(std::as_const(*this).slot(id)); }

  void collect_batch() {
    m_batch.clear();
    m_caches.clear();
    m_inputs.clear();
    for (Index id = 0; id < sequences(); ++id) {
      Slot& running = slot(id);
      if (!running.runs()) continue;
      const SequenceState& state = running.state;
      m_batch.push_back({id, false});
      m_caches.push_back(&*running.cache);
      m_inputs.push_back({.block = state.block(),
                          .block_step = state.block_progress().step,
                          .masked = state.masked(),
                          .changed = running.changes.changed,
                          .unchanged_steps = running.changes.unchanged_steps});
      if (!running.guided || !running.guided->guidance.due(state.step())) continue;
      auto& guided = *running.guided;
      m_batch.push_back({id, true});
      m_caches.push_back(&guided.cache);
      m_inputs.push_back({.block = state.block(),
                          .block_step = guided.block == state.block() ? guided.block_step : 0,
                          .masked = state.masked(),
                          .changed = guided.changes.changed,
                          .unchanged_steps = guided.changes.unchanged_steps});
    }
  }

  // One forward of all running sequences; leaves the hidden rows in m_x and the finished pass.
  void forward() {
    collect_batch();
    if (m_batch.empty()) return;
    PassType pass = m_workspace.begin_step(std::span<Cache* const>(m_caches),
                                           std::span<const StepInput>(m_inputs));
    const Index width = m_model->shape().width;
    m_x = dense_view(m_hidden.ensure(pass.row_count() * width), pass.row_count(), width);
    m_tokens.clear();
    for (Index i = 0; i < pass.sequences(); ++i) {
      const BatchEntry& entry = m_batch[static_cast<std::size_t>(i)];
      const SequenceState& state = sequence(entry.id);
      for (const Index row : pass.rows(i))
        m_tokens.push_back(entry.unconditional && row < state.prompt_rows()
                               ? m_model->special_tokens().mask
                               : state.tokens()[static_cast<std::size_t>(row)]);
    }
    if (pass.row_count() > 0) m_model->embed(m_tokens, m_x);
    const Index last = m_model->shape().layers - 1;
    for (Index layer = 0; layer < last; ++layer) {
      pass.layer(m_model->layer(layer), m_x);
      if (observer.on_layer) observer.on_layer(pass, layer);
    }
    pass.layer(m_model->layer(last), m_x);
    keep_forward(std::move(pass));
    if (observer.on_layer) observer.on_layer(*m_pass, last);
  }

  // The caches have committed: the step goes on from here even if an observer throws.
  void keep_forward(PassType&& pass) {
    m_pass.emplace(std::move(pass));
    for (const BatchEntry& entry : m_batch) count_forward(slot(entry.id), entry.unconditional);
  }

  void count_forward(Slot& ran, bool unconditional) {
    (unconditional ? ran.guided->changes : ran.changes).step_done();
    if (!unconditional) return;
    if (ran.guided->block != ran.state.block()) ran.guided->block_step = 0;
    ran.guided->block = ran.state.block();
    ++ran.guided->block_step;
  }

  void predict_rows() {
    m_wanted.clear();
    for (Index i = 0; i < m_pass->sequences(); ++i) {
      const BatchEntry& entry = m_batch[static_cast<std::size_t>(i)];
      if (entry.unconditional || slot(entry.id).stopped) continue;
      const auto next = static_cast<std::size_t>(i) + 1;
      const bool refreshes = next < m_batch.size() && m_batch[next].unconditional;
      want_rows(slot(entry.id), i, refreshes);
    }
    m_sampler.sample(*m_model, m_x, std::span<const Wanted>(m_wanted),
                     [&](Index id, Index row, std::span<const float> logits) {
                       if (observer.on_logits) observer.on_logits(id, row, logits);
                     });
    // Counted here, so that a step tried again counts once.
    for (const Wanted& wanted : m_wanted)
      wanted.sequence->logits_rows += wanted.unconditional_place >= 0 ? 2 : 1;
  }

  // Only rows that can still be committed; all masked rows when the guidance residual is refreshed.
  void want_rows(Slot& held, Index sequence, bool refreshes) {
    held.state.predictions().clear();
    const auto masked = held.state.masked();
    const Index shift = m_model->prediction_shift();
    for (Index row = held.state.prompt_rows(); row < static_cast<Index>(masked.size()); ++row) {
      if (masked[static_cast<std::size_t>(row)] == 0) continue;
      if (!refreshes && !held.state.is_candidate(row)) continue;
      const std::optional<Index> place = m_pass->find(row - shift, sequence);
      if (!place) continue;  // the policy lets it rest in this step
      Wanted wanted{.sequence = &held, .row = row, .place = *place};
      if (refreshes)
        wanted.unconditional_place = m_pass->find(row - shift, sequence + 1).value_or(-1);
      m_wanted.push_back(wanted);
    }
  }

  template <class OnStep>
  bool commit(OnStep& on_step) {
    m_reports.clear();
    for (const BatchEntry& entry : m_batch) {
      Slot& held = slot(entry.id);
      if (entry.unconditional || held.stopped) continue;
      StepReport report{.id = entry.id, .step = held.state.step(), .block = held.state.block()};
      report.committed = held.state.commit();
      report.predictions = held.state.predictions();
      report.tokens = held.state.tokens();
      report.prompt_rows = held.state.prompt_rows();
      report.finished = held.state.finished();
      for (const Prediction& one :
           report.predictions.first(static_cast<std::size_t>(report.committed))) {
        if (one.token == m_model->special_tokens().mask) continue;  // stays what it was
        const auto row = static_cast<std::size_t>(one.row);
        held.changes.mark(row);
        if (held.guided) held.guided->changes.mark(row);
      }
      m_reports.push_back(report);
    }
    // What a throwing callback leaves is not told later: the tokens are committed.
    struct Forget {
      DenoisingLoop& loop;
      ~Forget() { loop.m_reports.clear(); }
    } const forget{*this};
    bool goes_on = true;
    for (m_told = 0; m_told < m_reports.size();) {
      const StepReport& report = m_reports[m_told++];
      if constexpr (std::is_void_v<std::invoke_result_t<OnStep&, const StepReport&>>)
        on_step(report);
      else
        goes_on = on_step(report) && goes_on;
    }
    return goes_on && !finished();
  }

  Model* m_model;
  std::pmr::memory_resource* m_resource;
  Selector m_selector;
  std::vector<std::unique_ptr<Slot>> m_slots;
  Workspace<float, Stored, Selector> m_workspace;
  std::optional<PassType> m_pass;  // a finished forward whose predictions are not committed yet
  std::vector<BatchEntry> m_batch;
  std::vector<Cache*> m_caches;
  std::vector<StepInput> m_inputs;
  std::vector<std::int32_t> m_tokens;
  std::vector<Wanted> m_wanted;
  std::vector<StepReport> m_reports;  // of the step that is being told of
  std::size_t m_told = 0;             // so many of them were or are being told
  bool m_stepping = false;
  detail::LogitsPass<Cache> m_sampler;
  MatrixView<float> m_x;
  base::Buffer<float> m_hidden;
};

}  // namespace dllm_cache::inline v0_1
