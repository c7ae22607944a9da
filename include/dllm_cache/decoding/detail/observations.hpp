// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "dllm_cache/decoding/sequence_state.hpp"
#include "dllm_cache/plan.hpp"
#include "dllm_cache/policy.hpp"
#include "dllm_cache/snapshot.hpp"

namespace dllm_cache::inline v0_1::detail {

/// What a prediction of one row is like; see StepInput.
struct Observation {
  Index row = 0;
  float confidence = 0.0F;
  float entropy = 0.0F;
  float gap = 0.0F;
  float change = std::numeric_limits<float>::infinity();
  /// Logarithms of the probabilities `[vocabulary]`, where Observations keep them.
  std::vector<float> distribution = {};
};

/// What the predictions of a step are like until the step's tokens are committed. Keeps its memory
/// from step to step.
class StagedObservations {
 public:
  [[nodiscard]] Index count() const { return static_cast<Index>(m_count); }
  void clear() { m_count = 0; }
  /// One more, to be written.
  [[nodiscard]] Observation& add() {
    if (m_held.size() == m_count) m_held.emplace_back();
    return m_held[m_count++];
  }
  /// Some of them; `0 <= some.begin <= some.end <= count()` (unchecked).
  [[nodiscard]] std::span<Observation> range(Range some) {
    return std::span(m_held).subspan(static_cast<std::size_t>(some.begin),
                                     static_cast<std::size_t>(some.size()));
  }

 private:
  std::vector<Observation> m_held;
  std::size_t m_count = 0;
};

/// What a sequence's policy is told of candidates and of the last prediction of each row, as far as
/// its traits ask: what they do not ask for takes neither memory nor time.
///
/// For `change` the last distribution of every masked row that was predicted is kept,
/// `[vocabulary]` floats each.
class Observations {
 public:
  /// Asks for nothing.
  Observations() = default;
  /// Of so many rows that have not been predicted yet.
  Observations(const PolicyTraits& traits, std::size_t rows, Index vocabulary)
      : m_needs_candidates(traits.needs_candidates),
        m_needs_confidence(traits.needs_confidence),
        m_needs_entropy(traits.needs_entropy),
        m_needs_gap(traits.needs_gap),
        m_needs_change(traits.needs_change),
        m_predicts_all(traits.predicts_all),
        m_vocabulary(static_cast<std::size_t>(vocabulary)) {
    if (m_needs_candidates) m_candidates.resize(rows, 0);
    if (m_needs_confidence) m_confidence.resize(rows, 0.0F);
    if (m_needs_entropy) m_entropy.resize(rows, 0.0F);
    if (m_needs_gap) m_gap.resize(rows, 0.0F);
    if (!m_needs_change) return;
    m_change.resize(rows, std::numeric_limits<float>::infinity());
    m_distributions.resize(rows);
  }
  /// The same of more rows and for what these traits ask; what the first rows have is kept.
  [[nodiscard]] Observations extended(const PolicyTraits& traits, std::size_t rows) const {
    Observations more(traits, rows, static_cast<Index>(m_vocabulary));
    const auto keep = [](const auto& from, auto& to) {
      std::copy_n(from.begin(), std::min(from.size(), to.size()), to.begin());
    };
    keep(m_confidence, more.m_confidence);
    keep(m_entropy, more.m_entropy);
    keep(m_gap, more.m_gap);
    keep(m_change, more.m_change);
    keep(m_distributions, more.m_distributions);
    return more;
  }

  /// Whether predictions are looked at.
  [[nodiscard]] bool wanted() const {
    return m_needs_confidence || m_needs_entropy || m_needs_gap || m_needs_change;
  }
  /// Whether this step predicts every masked row: the first one, and the first after rows came.
  [[nodiscard]] bool predicts_all() const { return m_predicts_all && m_first_step; }
  [[nodiscard]] bool keeps_distributions() const { return m_needs_change; }
  /// Logarithms of the probabilities that a row's last prediction gave; empty where there was none
  /// or they are not kept.
  [[nodiscard]] std::span<const float> distribution(Index row) const {
    return m_distributions[static_cast<std::size_t>(row)];
  }

  /// Looks which rows may be committed in the step to come.
  void find_candidates(const SequenceState& state) {
    for (std::size_t row = 0; row < m_candidates.size(); ++row)
      m_candidates[row] = state.is_candidate(static_cast<Index>(row)) ? 1 : 0;
  }
  /// What the policy asks for; valid until a step's tokens are committed.
  void tell(StepInput& input) const {
    input.candidates = m_candidates;
    input.confidence = m_confidence;
    input.entropy = m_entropy;
    input.gap = m_gap;
    input.change = m_change;
  }

  /// A step's tokens are committed: what its predictions were like. `masked` says which rows are
  /// still to be found. Throws nothing.
  void accept(std::span<Observation> step, std::span<const std::uint8_t> masked) {
    m_first_step = false;
    for (Observation& seen : step) {
      const auto row = static_cast<std::size_t>(seen.row);
      if (m_needs_confidence) m_confidence[row] = seen.confidence;
      if (m_needs_entropy) m_entropy[row] = seen.entropy;
      if (m_needs_gap) m_gap[row] = seen.gap;
      if (!m_needs_change) continue;
      m_change[row] = seen.change;
      m_distributions[row].swap(seen.distribution);
    }
    for (std::size_t row = 0; row < m_distributions.size(); ++row)
      if (masked[row] == 0) std::vector<float>().swap(m_distributions[row]);
  }

  void save(SnapshotWriter& out) const {
    out.begin("observations");
    out.number("first_step", m_first_step);
    for (const auto* list : {&m_confidence, &m_entropy, &m_gap, &m_change})
      out.array("observations", std::span<const float>(*list));
    out.number("vocabulary", static_cast<std::uint64_t>(m_vocabulary));
    for (const std::vector<float>& one : m_distributions) {
      out.number("predicted", !one.empty());
      if (!one.empty()) out.array("distribution", std::span<const float>(one));
    }
    out.finish();
  }
  /// As they were saved, of a sequence of the same rows and policy.
  void restore(SnapshotReader& in) {
    in.begin("observations");
    m_first_step = in.flag("first_step");
    for (auto* list : {&m_confidence, &m_entropy, &m_gap, &m_change}) {
      in.array("observations", std::span(*list));
      for (const float number : *list)
        if (!(number >= 0.0F)) in.refuse("observations must be at least 0, got ", number);
    }
    in.expect("vocabulary", static_cast<std::uint64_t>(m_vocabulary));
    for (std::vector<float>& one : m_distributions)
      if (in.flag("predicted")) one = in.elements<float>(m_vocabulary);
    in.finish();
  }

 private:
  bool m_needs_candidates = false;
  bool m_needs_confidence = false;
  bool m_needs_entropy = false;
  bool m_needs_gap = false;
  bool m_needs_change = false;
  bool m_predicts_all = false;
  bool m_first_step = true;
  std::size_t m_vocabulary = 0;
  std::vector<std::uint8_t> m_candidates;
  std::vector<float> m_confidence, m_entropy, m_gap, m_change;
  std::vector<std::vector<float>> m_distributions;  // by row
};

}  // namespace dllm_cache::inline v0_1::detail
