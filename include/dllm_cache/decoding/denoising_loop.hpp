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
  using Step = detail::BatchStep<Model, Stored, Selector>;

 public:
  using Cache = FeatureCache<float, Stored, Selector>;
  using PassType = Pass<float, Stored, Selector>;

  using Observer = StepObserver<PassType>;
  using BatchEntry = dllm_cache::BatchEntry;

  /// Logits are computed and reduced in chunks of so many rows: there is no [rows, vocabulary]
  /// array.
  static constexpr Index chunk_rows = Step::chunk_rows;

  /// Every sequence gets a copy of `selector`. The model and the memory resource of the caches must
  /// outlive the loop.
  explicit DenoisingLoop(Model& model, std::pmr::memory_resource* resource = large_pages(),
                         Selector selector = {})
      : m_model(&model), m_resource(resource), m_selector(std::move(selector)), m_step(model) {}

  Observer observer;  ///< Set it before the step that it is to see.

  /// Adds a sequence and returns its number. Masks in the prompt are filled like the response; see
  /// SequenceState. Throws std::invalid_argument for bad options and for tokens outside
  /// [0, vocabulary), or [0, embeddings) where the model has more; see HasMoreEmbeddings.
  Index add(std::span<const std::int32_t> prompt, const DecodingOptions& options,
            const AnyPolicy& policy) {
    check_tokens(prompt, options);
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
      if (token < 0 || token >= detail::count_embeddings(*m_model))
        in.refuse("tokens must be in [0, ", detail::count_embeddings(*m_model), "), got ", token);
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
    if (m_step.will_tell_of(id))
      base::refuse_call("DenoisingLoop: restart() of sequence ", id,
                        ", whose report is still to come");
    check_tokens(prompt, options);
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

  [[nodiscard]] SequenceShape shape_of(const SequenceState& state) const {
    // To the cache a prompt ends where the first gap begins: what follows changes.
    const auto rows = static_cast<Index>(state.tokens().size());
    const Index shift = m_model->prediction_shift();
    const Index prompt =
        state.has_gaps() ? std::max(state.first_to_fill(), shift) : state.prompt_rows();
    return {.prompt = prompt, .response = rows - prompt, .prediction_shift = shift};
  }

  void check_tokens(std::span<const std::int32_t> prompt, const DecodingOptions& options) const {
    const auto check = [](std::span<const std::int32_t> tokens, const char* what, Index most) {
      for (const std::int32_t token : tokens)
        if (token < 0 || token >= most)
          base::refuse_argument("DenoisingLoop: ", what, " must hold tokens in [0, ", most,
                                "), got ", token);
    };
    check(prompt, "prompt", detail::count_embeddings(*m_model));
    check(options.suppress_tokens, "suppress_tokens", m_model->vocabulary());
    check(options.commit_last, "commit_last", m_model->vocabulary());
  }

  Cache make_cache(const SequenceState& state, const AnyPolicy& policy) {
    return Cache(m_model->shape(), shape_of(state), policy, m_resource, m_selector);
  }

  detail::UnconditionalRun<Cache> make_guided(const SequenceState& state, const AnyPolicy& policy) {
    const DecodingOptions& options = state.options();
    return {make_cache(state, policy),
            Guidance(options.guidance_scale, options.guidance_interval,
                     static_cast<Index>(state.tokens().size()) - state.first_to_fill(),
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
    return m_step.holds(id);
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

  [[nodiscard]] std::size_t place_of(Index id) const {
    if (id < 0 || id >= sequences())
      base::refuse_argument("DenoisingLoop: sequence must be in [0, ", sequences(), "), got ", id);
    return static_cast<std::size_t>(id);
  }
  [[nodiscard]] const Slot& slot(Index id) const { return *m_slots[place_of(id)]; }
  [[nodiscard]] Slot& slot(Index id) { return *m_slots[place_of(id)]; }

  Model* m_model;
  std::pmr::memory_resource* m_resource;
  Selector m_selector;
  std::vector<std::unique_ptr<Slot>> m_slots;
  Step m_step;
  bool m_stepping = false;
};

}  // namespace dllm_cache::inline v0_1
