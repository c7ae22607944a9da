// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <deque>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "dllm_cache/decoding/planned_sequence.hpp"

namespace dllm_cache::inline v0_1 {

/// Scratch memory of a StepPass: lists that keep their memory from step to step.
template <StepModel Model>
struct StepScratch {
  std::vector<PlannedSequence<Model>*> sequences;
  std::deque<StepLists> lists;  ///< One a sequence, and those of larger batches before.
  std::vector<Range> packed;    ///< Rows in the pass of each sequence, among those of all.
  std::vector<std::int32_t> wanted;
  std::vector<SequenceStep<typename Model::Features>> steps;
};

/// A step of a batch that a StepModel carries out at once: begun, run, then over.
///
/// Destroyed before run() has returned it leaves its sequences stale: their next step is a plain
/// forward, later ones keep their phase. Lists stay readable until the next step begins. Move-only.
template <StepModel Model>
class [[nodiscard]] StepPass {
 public:
  using Sequence = PlannedSequence<Model>;

  /// Asks the policies of all sequences, one input each. Throws like StepPlanner::begin_step; then
  /// no step is open. Sequences and scratch must outlive the pass.
  StepPass(StepScratch<Model>& scratch, std::span<Sequence* const> sequences,
           std::span<const StepInput> inputs)
      : m_scratch(&scratch) {
    std::size_t begun = 0;
    try {
      scratch.sequences.assign(sequences.begin(), sequences.end());
      scratch.packed.clear();
      while (scratch.lists.size() < sequences.size()) scratch.lists.emplace_back();
      Index rows = 0;
      for (; begun < sequences.size();) {
        StepPlanner& planner = sequences[begun]->m_planner;
        planner.begin_step(inputs[begun]);
        StepLists& lists = scratch.lists[begun++];
        lists.assign(planner);
        const Index end = rows + static_cast<Index>(lists.rows.size());
        scratch.packed.push_back({rows, end});
        rows = end;
      }
    } catch (...) {
      for (std::size_t i = 0; i < begun; ++i) sequences[i]->m_planner.cancel_step();
      throw;
    }
  }
  StepPass(StepPass&& other) noexcept
      : m_scratch(other.m_scratch), m_open(std::exchange(other.m_open, false)) {}
  StepPass& operator=(StepPass&&) = delete;
  StepPass(const StepPass&) = delete;
  StepPass& operator=(const StepPass&) = delete;
  ~StepPass() {
    if (!m_open) return;
    for (Sequence* sequence : m_scratch->sequences) sequence->m_planner.drop_step();
  }

  /// Lets the model carry it out: tokens are one a row in the pass, of all sequences one after the
  /// other; `wanted` names rows in the same way, ascending, each once; logits
  /// `[wanted, vocabulary]`. Throws what the model throws.
  void run(Model& model, std::span<const std::int32_t> tokens, std::span<const Index> wanted,
           MatrixView<float> logits) {
    auto& steps = m_scratch->steps;
    steps.clear();
    m_scratch->wanted.clear();
    m_scratch->wanted.reserve(wanted.size());
    auto next = wanted.begin();
    for (std::size_t i = 0; i < m_scratch->sequences.size(); ++i) {
      const Range rows = m_scratch->packed[i];
      const std::size_t before = m_scratch->wanted.size();
      for (; next != wanted.end() && *next < rows.end; ++next)
        m_scratch->wanted.push_back(static_cast<std::int32_t>(*next - rows.begin));
      steps.push_back({.features = &m_scratch->sequences[i]->m_features,
                       .lists = &m_scratch->lists[i],
                       .tokens = tokens.subspan(static_cast<std::size_t>(rows.begin),
                                                static_cast<std::size_t>(rows.size())),
                       .wanted = std::span(m_scratch->wanted).subspan(before),
                       .recomputed = m_scratch->lists[i].counts().recomputed});
    }
    model.forward(std::span(steps), logits);
    for (std::size_t i = 0; i < m_scratch->sequences.size(); ++i) {
      Sequence& sequence = *m_scratch->sequences[i];
      sequence.m_planner.commit_step();
      RowCounts counts = m_scratch->lists[i].counts();
      counts.recomputed = steps[i].recomputed;
      sequence.m_counts += counts;
    }
    m_open = false;
  }

  /// Rows in the pass, of all sequences.
  [[nodiscard]] Index row_count() const {
    return m_scratch->packed.empty() ? 0 : m_scratch->packed.back().end;
  }
  [[nodiscard]] Index sequences() const { return static_cast<Index>(m_scratch->sequences.size()); }
  /// What sequence `i` computes; `0 <= i < sequences()` (unchecked, here and below).
  [[nodiscard]] const StepLists& lists(Index i = 0) const {
    return m_scratch->lists[static_cast<std::size_t>(i)];
  }
  /// Its rows among those of all sequences.
  [[nodiscard]] Range packed(Index i = 0) const {
    return m_scratch->packed[static_cast<std::size_t>(i)];
  }
  /// Ascending numbers of its rows in the pass.
  [[nodiscard]] std::span<const std::int32_t> rows(Index i = 0) const { return lists(i).rows; }
  /// Place of one of its rows among those of all sequences, or none when it is not in the pass.
  [[nodiscard]] std::optional<Index> find(Index row, Index i = 0) const {
    const auto in_pass = rows(i);
    const auto place = std::lower_bound(in_pass.begin(), in_pass.end(), row);
    if (place == in_pass.end() || *place != row) return std::nullopt;
    return packed(i).begin + (place - in_pass.begin());
  }

 private:
  StepScratch<Model>* m_scratch;
  bool m_open = true;
};

}  // namespace dllm_cache::inline v0_1
