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
#include "dllm_cache/decoding/detail/batch_step.hpp"
#include "dllm_cache/decoding/detail/loop_sequence.hpp"
#include "dllm_cache/decoding/detail/sequence_maker.hpp"
#include "dllm_cache/decoding/detail/step_engine.hpp"
#include "dllm_cache/decoding/step_report.hpp"

namespace dllm_cache::inline v0_1 {

/// Denoises any number of sequences together, each with its own options and cache policy.
///
/// Sequences may join at any time and leave when they are finished; a sequence's result does not
/// depend on its neighbours beyond the rounding of the model's products. With guidance a sequence
/// has a second cache, for the prompt replaced by masks. An exception from the model commits no
/// token: the next step() tries again; where a layer threw, all caches of the step are stale, so
/// that it is a plain forward. Not synchronised; starts no threads.
///
/// A StepModel keeps features and selects rows by itself: `Stored`, `Selector` and the memory
/// resource say nothing to it, `on_layer` is not called, its snapshots hold no features (a restored
/// sequence begins with a plain forward), and the logits of a step lie in one array.
template <class Model, StoredScalar Stored = float, class Selector = VVerifySelector<float, Stored>>
requires StepModel<Model> ||
    (DenoisingModel<Model, Stored>&& RowSelector<Selector, float, Stored>)class DenoisingLoop {
  using Engine = typename detail::EngineOf<Model, Stored, Selector>::type;
  using Step = detail::BatchStep<Engine>;

 public:
  using Cache = typename Engine::Cache;
  using PassType = typename Engine::PassType;

  using Observer = StepObserver<PassType>;
  using BatchEntry = dllm_cache::BatchEntry;

  /// Logits are computed and reduced in chunks of so many rows: there is no [rows, vocabulary]
  /// array.
  static constexpr Index chunk_rows = Step::chunk_rows;

  /// Every sequence gets a copy of `selector`. The model and the memory resource of the caches must
  /// outlive the loop.
  explicit DenoisingLoop(Model& model, std::pmr::memory_resource* resource = large_pages(),
                         typename Cache::SelectorType selector = {})
      : m_make(model, resource, std::move(selector)), m_step(model) {}

  Observer observer;  ///< Set it before the step that it is to see.

  /// Adds a sequence and returns its number. Masks in the prompt are filled like the response; see
  /// SequenceState. Throws std::invalid_argument for bad options and for tokens outside
  /// [0, vocabulary), or [0, embeddings) where the model has more; see HasMoreEmbeddings.
  Index add(std::span<const std::int32_t> prompt, const DecodingOptions& options,
            const AnyPolicy& policy) {
    m_slots.push_back(m_make.sequence(sequences(), m_make.state(prompt, options), policy));
    return sequences() - 1;
  }

  /// Computes now what lies before the first block of a sequence, and commits nothing: what
  /// sequences that are forked from it then share. With block-causal attention these features are
  /// final and answers do not change; where attention is bidirectional this is a step that the
  /// policy counts. Nothing happens where nothing is to be computed. Throws like step(),
  /// std::logic_error while a step is in progress and for a sequence that takes no further steps,
  /// and like sequence().
  void prefill(Index id) {
    const Stepping stepping = begin_call("prefill");
    Slot& held = slot(id);
    if (m_step.ran() || !held.runs())
      base::refuse_call(
          "DenoisingLoop: prefill() of sequence ", id,
          held.runs() ? ", in the middle of a step" : ", which takes no further steps");
    if (!held.begin_prefill()) return;
    m_step.forward(std::span<const std::unique_ptr<Slot>>(&m_slots[place_of(id)], 1), observer);
    m_step.sample(observer);
    const auto ignore = [](const StepReport&) {};
    m_step.commit(ignore);
  }

  /// Adds a copy of a sequence as it stands between two steps, with features of its own, and
  /// returns its number. The copy draws the random numbers of sequence `random_sequence` from here
  /// on: another number, another continuation. Throws std::logic_error when its features were
  /// released or it is part of a step that threw, and like sequence().
  Index clone(Index id, std::uint64_t random_sequence) {
    return add_copy(std::make_unique<Slot>(resting(id, "clone").clone(sequences())),
                    random_sequence);
  }
  /// The same, with features that both share until one of them writes: see FeatureCache::fork. Many
  /// answers to one prompt: prefill() it and fork it.
  Index fork(Index id, std::uint64_t random_sequence) {
    static_cast<void>(resting(id, "fork"));
    return add_copy(std::make_unique<Slot>(slot(id).fork(sequences())), random_sequence);
  }

  /// Gives a sequence `rows >= 1` more response rows, also one that is finished, unless an end
  /// token ended it. With block-causal attention nothing is computed again; where it is
  /// bidirectional the next step is a plain forward. Throws std::logic_error after an end token,
  /// with guidance, and like clone(), std::invalid_argument for rows that the options do not allow,
  /// and std::bad_alloc; then nothing has changed.
  void extend(Index id, Index rows) {
    static_cast<void>(resting(id, "extend"));
    Slot& held = slot(id);
    if (held.guided)
      base::refuse_call("DenoisingLoop: extend() of sequence ", id, ", which has guidance");
    SequenceState state = held.state;
    state.extend(rows);
    const SequenceShape shape = m_make.shape_of(state);  // before the state is moved
    held.go_on(std::move(state), shape);
  }

  /// Begins the next turn of a sequence that takes no further steps: its prompt and its answer, up
  /// to and with the first end token, are followed by `tokens`, and by a new response as the
  /// options say. With block-causal attention finished blocks are not computed again; where it is
  /// bidirectional, or blocks lie elsewhere now (`prompt_end_grid`), the next step is a plain
  /// forward. Throws like restart(); then nothing has changed.
  void append(Index id, std::span<const std::int32_t> tokens, const DecodingOptions& options) {
    Slot& done = ended(id, "append");
    const auto kept = done.state.tokens().first(static_cast<std::size_t>(done.state.answer_end()));
    std::vector<std::int32_t> prompt(kept.begin(), kept.end());
    prompt.insert(prompt.end(), tokens.begin(), tokens.end());
    SequenceState state = m_make.state(prompt, options);
    auto guided = m_make.guided(state, done.cache->planner().policy());
    auto observed = m_make.observations(state, done.cache->planner().policy());
    const SequenceShape shape = m_make.shape_of(state);  // before the state is moved
    done.go_on(std::move(state), shape, std::move(observed), static_cast<Index>(kept.size()));
    done.guided = std::move(guided);
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
    auto slot = m_make.sequence(sequences(), m_make.state(in), policy);
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
    Slot& done = ended(id, "restart");
    SequenceState state = m_make.state(prompt, options);
    const SequenceShape shape = m_make.shape_of(state);
    auto guided = m_make.guided(state, done.cache->planner().policy());
    detail::ChangeLog changes(state.tokens().size());
    auto observed = m_make.observations(state, done.cache->planner().policy());
    auto selector = m_make.selector();
    done.cache->reset(shape);
    done.cache->selector() = std::move(selector);
    done.begin(std::move(state), std::move(changes), std::move(observed), std::move(guided));
  }

  /// Takes one step of every sequence that is not finished and tells `on_step` of each (it may
  /// return false to cancel). Returns false when nothing is left to do or it was cancelled. Throws
  /// std::logic_error when called by `on_step` or an observer, and what model, observer and
  /// `on_step` throw.
  template <TakesReports OnStep>
  bool step(OnStep&& on_step) {
    const Stepping stepping = begin_call("step");
    if (!m_step.ran()) m_step.forward(m_slots, observer);
    if (!m_step.ran()) return false;
    m_step.sample(observer);
    const bool goes_on = m_step.commit(on_step);
    return goes_on && !finished();
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
      if (!detail::tell(on_step, report)) cancelled = true;
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
  [[nodiscard]] std::span<const BatchEntry> batch() const { return m_step.batch(); }

  /// Rows of all committed steps of a sequence, unconditional ones included; throws like
  /// sequence().
  [[nodiscard]] DecodingCounts counts(Index id) const { return slot(id).counts(); }
  /// Forwards of a sequence, unconditional ones included; throws like sequence().
  [[nodiscard]] Index forwards(Index id) const { return slot(id).forwards(); }
  /// Bytes of features held for a sequence, unconditional ones included, without those that it
  /// shares with the one that it was forked from; throws like sequence().
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

  [[nodiscard]] Stepping begin_call(const char* call) {
    if (m_stepping) base::refuse_call("DenoisingLoop: ", call, "() while a step runs");
    return Stepping(m_stepping);
  }

  Index add_copy(std::unique_ptr<Slot> copy, std::uint64_t random_sequence) {
    copy->state.set_random_sequence(random_sequence);
    m_slots.push_back(std::move(copy));
    return sequences() - 1;
  }

  // Part of a forward whose predictions are not committed yet.
  [[nodiscard]] bool in_step(Index id) const {
    const auto& cache = slot(id).cache;
    if (cache && cache->planner().step_open()) return true;  // in the middle of its layers
    return m_step.holds(id);
  }

  void refuse_busy(const Slot& done, const char* call) const {
    if (done.runs() || in_step(done.id))
      base::refuse_call("DenoisingLoop: ", call, "() of sequence ", done.id, ", which still runs");
  }

  // A sequence that takes no further steps and has its features, to begin anew.
  Slot& ended(Index id, const char* call) {
    Slot& done = slot(id);
    refuse_busy(done, call);
    if (m_step.will_tell_of(id))
      base::refuse_call("DenoisingLoop: ", call, "() of sequence ", id,
                        ", whose report is still to come");
    if (!done.cache)
      base::refuse_call("DenoisingLoop: ", call, "() of sequence ", id, ", released");
    return done;
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

  [[nodiscard]] std::size_t place_of(Index id) const {
    if (id < 0 || id >= sequences())
      base::refuse_argument("DenoisingLoop: sequence must be in [0, ", sequences(), "), got ", id);
    return static_cast<std::size_t>(id);
  }
  [[nodiscard]] const Slot& slot(Index id) const { return *m_slots[place_of(id)]; }
  [[nodiscard]] Slot& slot(Index id) { return *m_slots[place_of(id)]; }

  detail::SequenceMaker<Engine> m_make;
  std::vector<std::unique_ptr<Slot>> m_slots;
  Step m_step;
  bool m_stepping = false;
};

}  // namespace dllm_cache::inline v0_1
