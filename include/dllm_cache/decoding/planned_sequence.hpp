// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <utility>

#include "dllm_cache/decoding/step_model.hpp"
#include "dllm_cache/detail/planner_snapshot.hpp"

namespace dllm_cache::inline v0_1 {

template <StepModel Model>
class StepPass;

/// A sequence whose features a StepModel keeps: its plans, its counts and the model's features. It
/// is to a step model what FeatureCache is to layers. Move-only; not synchronised.
template <StepModel Model>
class PlannedSequence {
 public:
  using Features = typename Model::Features;
  /// A step model selects rows by itself.
  struct SelectorType {};

  /// Takes the policy for one sequence; the model must outlive it. Throws std::invalid_argument
  /// like StepPlanner and check_listed(), and what the model throws.
  PlannedSequence(Model& model, const SequenceShape& shape, AnyPolicy policy)
      : m_model(&model),
        m_planner(listed(std::move(policy), shape), shape, ModelShape(model.shape()).layers),
        m_features(model.make_features(m_planner.shape(), m_planner.traits())) {}

  /// An independent copy with its features. Throws std::logic_error while a step is open and where
  /// the model's features cannot be copied, and what copying throws.
  [[nodiscard]] PlannedSequence clone() const {
    if (m_planner.step_open()) base::refuse_call("PlannedSequence: clone() while a step is open");
    if constexpr (std::copy_constructible<Features>)
      return PlannedSequence(*this, Features(m_features));
    else
      base::refuse_call("PlannedSequence: clone() of features that cannot be copied");
  }
  /// The same: what is shared is the model's business.
  [[nodiscard]] PlannedSequence fork() { return clone(); }

  /// Begins a new sequence with the same policy and new features. Throws std::logic_error while a
  /// step is open, std::invalid_argument and what the model throws; then nothing has changed.
  void reset(const SequenceShape& shape) {
    const PolicyTraits traits = m_planner.prepare_reset(shape);
    Features fresh = m_model->make_features(shape, traits);
    m_planner.reset(shape);
    m_features = std::move(fresh);
    m_counts = {};
  }
  /// Goes on with another shape and new features: the next step is a plain forward. Throws like
  /// StepPlanner::reshape, and what the model throws; then nothing has changed.
  void reshape(const SequenceShape& shape, Index keep) {
    const PolicyTraits traits = m_planner.prepare_reshape(shape, keep);
    Features fresh = m_model->make_features(shape, traits);
    m_planner.reshape(shape, 0);
    m_planner.mark_stale();
    m_features = std::move(fresh);
  }

  /// Writes plans and counts; the features stay where they are, so the sequence that is restored
  /// begins with a plain forward. Throws like FeatureCache::save.
  void save(SnapshotWriter& out) const {
    if (m_planner.step_open()) base::refuse_call("PlannedSequence: save() while a step is open");
    detail::save_plans(out, m_planner, m_counts);
  }
  /// Goes on where the saved sequence stood, with a plain forward. Throws like
  /// FeatureCache::restore.
  void restore(SnapshotReader& in) {
    if (m_planner.step_open()) base::refuse_call("PlannedSequence: restore() while a step is open");
    detail::restore_plans(in, m_planner, m_counts);
  }

  [[nodiscard]] bool stale() const { return m_planner.stale(); }
  [[nodiscard]] Index step() const { return m_planner.step(); }  ///< Committed steps.
  [[nodiscard]] SequenceShape shape() const { return m_planner.shape(); }
  [[nodiscard]] const StepPlanner& planner() const { return m_planner; }
  /// Rows of the committed steps since the sequence began.
  [[nodiscard]] const RowCounts& counts() const { return m_counts; }
  [[nodiscard]] const Features& features() const { return m_features; }
  [[nodiscard]] SelectorType& selector() { return m_selector; }
  /// Bytes of features, where they tell; else 0.
  [[nodiscard]] Index own_bytes() const {
    if constexpr (requires { Index(m_features.bytes()); })
      return m_features.bytes();
    else
      return 0;
  }

 private:
  friend class StepPass<Model>;

  static AnyPolicy listed(AnyPolicy policy, const SequenceShape& shape) {
    check_listed(policy, checked_traits(policy, shape), leaves_hidden_rows_out<Model>);
    return policy;
  }

  PlannedSequence(const PlannedSequence& other, Features features)
      : m_model(other.m_model),
        m_planner(other.m_planner),
        m_features(std::move(features)),
        m_counts(other.m_counts) {}

  Model* m_model;
  StepPlanner m_planner;
  Features m_features;
  RowCounts m_counts;
  [[no_unique_address]] SelectorType m_selector;
};

}  // namespace dllm_cache::inline v0_1
