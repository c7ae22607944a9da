// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "dllm_cache/decoding/detail/logits_observer.hpp"
#include "dllm_cache/decoding/detail/logits_pass.hpp"
#include "dllm_cache/decoding/detail/loop_sequence.hpp"
#include "dllm_cache/decoding/step_model.hpp"
#include "dllm_cache/decoding/step_report.hpp"

namespace dllm_cache::inline v0_1 {

/// One run of a sequence in the step in progress.
struct BatchEntry {
  Index id = 0;
  bool unconditional = false;
};

/// Looks into a running step; empty functions are not called.
template <class PassType>
struct StepObserver {
  /// After each layer; not where a model carries out whole steps. Sequence `i` of the pass is
  /// entry `i` of the loop's batch.
  std::function<void(const PassType& pass, Index layer)> on_layer;
  /// After each row of logits `[vocabulary]`, guided when there is guidance.
  std::function<void(Index id, Index row, std::span<const float> logits)> on_logits;
};

namespace detail {

/// One step of all running sequences of a DenoisingLoop: a forward, the predictions of the rows
/// that may be committed, and the commits. It belongs to the loop, which says when; the sequences
/// are the loop's, predictions and reports are its own.
///
/// A step is forward(), sample(), commit(), in this order. What throws in between leaves the parts
/// before it done: a forward that ran is kept until its predictions are committed. What computes
/// it is the engine's business; see LayerEngine.
template <class Engine>
class BatchStep {
 public:
  using Model = typename Engine::ModelType;
  using Cache = typename Engine::Cache;
  using PassType = typename Engine::PassType;
  using Observer = StepObserver<PassType>;
  using Sequence = LoopSequence<Cache>;

  static constexpr Index chunk_rows = LogitsPass<Cache>::chunk_rows;

  /// The model must outlive the step.
  explicit BatchStep(Model& model) : m_model(&model), m_engine(model) {}

  /// One forward of the sequences that run; leaves their hidden rows and the finished pass. Does
  /// nothing where none runs.
  void forward(std::span<const std::unique_ptr<Sequence>> sequences, const Observer& observer) {
    collect_batch(sequences);
    if (m_batch.empty()) return;
    PassType pass = m_engine.begin_step(std::span<Cache* const>(m_caches),
                                        std::span<const StepInput>(m_inputs));
    gather_tokens(pass);
    want_rows(pass);
    m_engine.run(pass, m_tokens, m_wanted_places, [&](const PassType& so_far, Index layer) {
      if (observer.on_layer) observer.on_layer(so_far, layer);
    });
    if constexpr (!StepModel<Model>) drop_ended(pass);
    // The caches have committed: the step goes on from here even if an observer throws.
    m_pass.emplace(std::move(pass));
    for (const Run& run : m_runs) run.sequence->forward_done(run.unconditional);
    if constexpr (!StepModel<Model>)
      if (observer.on_layer) observer.on_layer(*m_pass, m_model->shape().layers - 1);
  }

  /// True between a forward and the commit of its predictions.
  [[nodiscard]] bool ran() const { return m_pass.has_value(); }

  /// Predicts the rows that can be committed. Tried again after it threw, it begins anew.
  void sample(const Observer& observer) {
    m_predictions.clear();
    m_seen.clear();
    for (Run& run : m_runs) run.predictions = run.seen = {};
    std::erase_if(m_wanted, [](const Wanted& wanted) { return wanted.sequence->stopped; });
    m_logits_pass.run(
        m_engine, std::span<const Wanted>(m_wanted),
        [&](const Wanted& wanted, std::span<const float> logits) {
          if (observer.on_logits) observer.on_logits(wanted.sequence->id, wanted.row, logits);
          observe(wanted, logits);
        },
        [&](const Wanted& wanted, const Prediction& prediction) {
          Range& own = m_runs[wanted.run].predictions;
          if (own.empty()) own.begin = static_cast<Index>(m_predictions.size());
          m_predictions.push_back(prediction);
          own.end = static_cast<Index>(m_predictions.size());
        });
    // Counted here, so that a step tried again counts once.
    for (const Wanted& wanted : m_wanted)
      wanted.sequence->logits_rows += wanted.unconditional_place >= 0 ? 2 : 1;
    m_reports.reserve(m_batch.size());  // nothing may fail once tokens are committed
  }

  /// Commits the predictions and tells `on_step` of every sequence. Returns false when a callback
  /// did. What a throwing callback leaves is not told later: the tokens are committed.
  template <TakesReports OnStep>
  bool commit(OnStep& on_step) {
    m_pass.reset();
    m_reports.clear();
    for (const Run& run : m_runs)
      if (!run.unconditional && !run.sequence->stopped) m_reports.push_back(commit_run(run));
    const Forget forget{m_reports};
    bool goes_on = true;
    for (m_told = 0; m_told < m_reports.size();) {
      const StepReport& report = m_reports[m_told++];
      goes_on = tell(on_step, report) && goes_on;
    }
    return goes_on;
  }

  /// Sequences of the step in progress, in the order of the pass.
  [[nodiscard]] std::span<const BatchEntry> batch() const { return m_batch; }
  /// Whether a sequence is part of a forward whose predictions are not committed yet.
  [[nodiscard]] bool holds(Index id) const {
    return m_pass && std::any_of(m_batch.begin(), m_batch.end(),
                                 [&](const BatchEntry& entry) { return entry.id == id; });
  }
  /// Whether a report of a sequence is still to come.
  [[nodiscard]] bool will_tell_of(Index id) const {
    return std::any_of(
        m_reports.begin() + static_cast<std::ptrdiff_t>(std::min(m_told, m_reports.size())),
        m_reports.end(), [&](const StepReport& report) { return report.id == id; });
  }

 private:
  using Wanted = WantedRow<Cache>;

  // One entry of the batch and what it predicts.
  struct Run {
    Sequence* sequence = nullptr;
    bool unconditional = false;
    Range predictions = {};  // its part of m_predictions,
    Range seen = {};         // and of m_seen
  };
  struct Forget {
    std::vector<StepReport>& reports;
    ~Forget() { reports.clear(); }
  };

  void collect_batch(std::span<const std::unique_ptr<Sequence>> sequences) {
    m_batch.clear();
    m_runs.clear();
    m_caches.clear();
    m_inputs.clear();
    std::size_t most = 0;  // predictions
    for (const std::unique_ptr<Sequence>& sequence : sequences) {
      if (!sequence->runs()) continue;
      sequence->observed.find_candidates(sequence->state);
      most += static_cast<std::size_t>(sequence->state.masks_left());
      add_run(*sequence, false, *sequence->cache, sequence->input());
      if (!sequence->wants_unconditional()) continue;
      add_run(*sequence, true, sequence->guided->cache,
              sequence->guided->input(sequence->state, sequence->observed));
    }
    m_predictions.reserve(most);
  }

  void add_run(Sequence& sequence, bool unconditional, Cache& cache, const StepInput& input) {
    m_batch.push_back({sequence.id, unconditional});
    m_runs.push_back({.sequence = &sequence, .unconditional = unconditional});
    m_caches.push_back(&cache);
    m_inputs.push_back(input);
  }

  // Tokens of the rows in the pass; the unconditional run sees masks in place of what was given.
  void gather_tokens(const PassType& pass) {
    m_tokens.clear();
    for (Index i = 0; i < pass.sequences(); ++i) {
      const Run& run = m_runs[static_cast<std::size_t>(i)];
      const SequenceState& state = run.sequence->state;
      for (const auto row : pass.rows(i))
        m_tokens.push_back(run.unconditional && state.given()[static_cast<std::size_t>(row)] != 0
                               ? state.special_tokens().mask
                               : state.tokens()[static_cast<std::size_t>(row)]);
    }
  }

  // The rows whose logits this step needs, of all runs.
  void want_rows(const PassType& pass) {
    m_wanted.clear();
    m_wanted_places.clear();
    for (std::size_t i = 0; i < m_runs.size(); ++i) {
      if (m_runs[i].unconditional) continue;
      const bool refreshes = i + 1 < m_runs.size() && m_runs[i + 1].unconditional;
      want_rows(pass, i, refreshes);
    }
    for (const Wanted& wanted : m_wanted) {
      m_wanted_places.push_back(wanted.place);
      if (wanted.unconditional_place >= 0) m_wanted_places.push_back(wanted.unconditional_place);
    }
  }

  // Only rows that can still be committed; all masked rows when the guidance residual is refreshed
  // and when the policy asks for predictions of all.
  void want_rows(const PassType& pass, std::size_t run, bool refreshes) {
    Sequence& held = *m_runs[run].sequence;
    const auto masked = held.state.masked();
    const auto place_in_pass = static_cast<Index>(run);
    const bool wants_all = refreshes || held.observed.predicts_all();
    const Index shift = m_model->prediction_shift();
    for (Index row = held.state.first_to_fill(); row < static_cast<Index>(masked.size()); ++row) {
      if (masked[static_cast<std::size_t>(row)] == 0) continue;
      if (!wants_all && !held.state.is_candidate(row)) continue;
      // The first row of all has none before it: there Dream's head predicts the row itself.
      const Index predicts = std::max<Index>(row - shift, 0);
      const std::optional<Index> place = pass.find(predicts, place_in_pass);
      if (!place) continue;  // the policy left it out of this step
      Wanted wanted{.sequence = &held, .run = run, .row = row, .place = *place};
      if (refreshes)
        wanted.unconditional_place = pass.find(predicts, place_in_pass + 1).value_or(-1);
      m_wanted.push_back(wanted);
    }
  }

  // Keeps what a prediction is like, where the policy asks.
  void observe(const Wanted& wanted, std::span<const float> logits) {
    const Sequence& held = *wanted.sequence;
    if (!held.observed.wanted()) return;
    if (!held.observed.predicts_all() && !held.state.is_candidate(wanted.row)) return;
    Range& own = m_runs[wanted.run].seen;
    if (own.empty()) own = {m_seen.count(), m_seen.count()};
    m_logits_observer.observe(wanted.row, logits, held.state.sampling_rule(), held.observed,
                              m_seen.add());
    own.end = m_seen.count();
  }

  // Rows that left the pass between its layers have no logits.
  void drop_ended(const PassType& pass) {
    const auto has_ended = [&](Index place, std::size_t run) {
      const auto i = static_cast<Index>(run);
      const auto rows = pass.rows(i);
      return pass.ended(rows[static_cast<std::size_t>(place - pass.packed(i).begin)], i);
    };
    std::erase_if(m_wanted, [&](Wanted& wanted) {
      if (wanted.unconditional_place >= 0 && has_ended(wanted.unconditional_place, wanted.run + 1))
        wanted.unconditional_place = -1;
      return has_ended(wanted.place, wanted.run);
    });
  }

  StepReport commit_run(const Run& run) {
    Sequence& held = *run.sequence;
    const auto predictions = std::span(m_predictions)
                                 .subspan(static_cast<std::size_t>(run.predictions.begin),
                                          static_cast<std::size_t>(run.predictions.size()));
    StepReport report{.id = held.id, .step = held.state.step(), .block = held.state.block()};
    report.stores = held.state.storing();
    report.response_rows = held.state.options().response;
    report.committed = held.state.commit(predictions, held.cache->planner().plan().hidden);
    held.observed.accept(m_seen.range(run.seen), held.state.masked());
    report.predictions = predictions;
    report.tokens = held.state.tokens();
    report.prompt_rows = held.state.prompt_rows();
    report.finished = held.state.finished();
    for (const Prediction& one : predictions.first(static_cast<std::size_t>(report.committed)))
      if (one.token != held.state.special_tokens().mask)  // else the row stays what it was
        held.mark_changed(static_cast<std::size_t>(one.row));
    return report;
  }

  Model* m_model;
  Engine m_engine;
  std::optional<PassType> m_pass;  // a finished forward whose predictions are not committed yet
  std::vector<BatchEntry> m_batch;
  std::vector<Run> m_runs;  // the same entries
  std::vector<Cache*> m_caches;
  std::vector<StepInput> m_inputs;
  std::vector<std::int32_t> m_tokens;
  std::vector<Wanted> m_wanted;
  std::vector<Index> m_wanted_places;     // the same rows, and those of unconditional runs
  std::vector<Prediction> m_predictions;  // of all runs, one after the other
  std::vector<StepReport> m_reports;      // of the step that is being told of
  std::size_t m_told = 0;                 // so many of them were or are being told
  LogitsPass<Cache> m_logits_pass;
  LogitsObserver m_logits_observer;
  StagedObservations m_seen;  // what predictions of all runs are like, where policies ask
};

}  // namespace detail
}  // namespace dllm_cache::inline v0_1
