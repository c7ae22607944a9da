// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory_resource>
#include <span>
#include <utility>
#include <vector>

#include "dllm_cache/detail/stored_features.hpp"
#include "dllm_cache/model_shape.hpp"
#include "dllm_cache/stats.hpp"
#include "dllm_cache/step_planner.hpp"
#include "dllm_cache/vverify_selector.hpp"

namespace dllm_cache::inline v0_1 {

template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
class Workspace;

/// The features of one sequence: per layer keys and values `[T, kv]`, prompt then response, and the
/// deltas `[stored, d]` of the rows whose deltas the policy may reuse; where it asks for them also
/// queries, and features that rows are verified by.
///
/// Each of these matrices is dense and begins on a multiple of 64 bytes. Behind the rows of keys
/// and values lie rows of zeros, up to a multiple of the model's `row_multiple`. Keys and values of
/// rows that a policy hides lie behind those that are seen: see key_place().
///
/// Steps are taken through a Workspace. One thread uses a cache at a time; different caches are
/// independent. Movable while no pass is open on it; copied only by clone(). Memory comes from the
/// memory resource given, which must outlive the cache.
template <ComputeScalar Scalar, StoredScalar Stored = Scalar,
          class Selector = VVerifySelector<Scalar, Stored>>
requires RowSelector<Selector, Scalar, Stored>
class FeatureCache {
 public:
  using SelectorType = Selector;

  /// Takes the policy for one sequence and allocates its features. Throws std::invalid_argument
  /// naming field, legal range and value, and std::bad_alloc.
  FeatureCache(const ModelShape& model, const SequenceShape& shape, AnyPolicy policy,
               std::pmr::memory_resource* resource = std::pmr::get_default_resource(),
               Selector selector = {})
      : m_model(checked(model, shape, policy)),
        m_planner(std::move(policy), shape, model.layers),
        m_features(Layout(model, shape, m_planner.traits()), resource),
        m_selector(std::move(selector)) {}
  FeatureCache(FeatureCache&&) noexcept = default;
  FeatureCache& operator=(FeatureCache&&) noexcept = default;
  FeatureCache(const FeatureCache&) = delete;
  FeatureCache& operator=(const FeatureCache&) = delete;
  ~FeatureCache() = default;

  /// An independent copy with its features, counters and memory resource. Throws std::logic_error
  /// while a pass is open, and std::bad_alloc.
  [[nodiscard]] FeatureCache clone() const {
    if (m_planner.step_open()) base::refuse_call("FeatureCache: clone() while a pass is open");
    return FeatureCache(*this, m_features.clone());
  }

  /// A copy like clone() that shares the features as they are now: memory is taken only for what
  /// either of them writes from here on, a page of the operating system at a time. From the first
  /// fork on the features of both lie in pages of the operating system, not in the memory resource.
  /// Elsewhere than on Linux this is clone(). Throws like clone().
  [[nodiscard]] FeatureCache fork() {
    if (m_planner.step_open()) base::refuse_call("FeatureCache: fork() while a pass is open");
    return FeatureCache(*this, m_features.fork());
  }

  /// Goes on with another shape: rows `[0, keep)` keep their features, later ones have none yet;
  /// counters run on. See StepPlanner::reshape for what stays final and what is thrown; then
  /// nothing has changed.
  void reshape(const SequenceShape& shape, Index keep) {
    if (m_planner.step_open()) base::refuse_call("FeatureCache: reshape() while a pass is open");
    const PolicyTraits traits = m_planner.prepare_reshape(shape, keep);
    detail::StoredFeatures<Stored> grown(Layout(m_model, shape, traits), m_features.resource());
    m_features.straighten();
    grown.copy_rows(m_features, keep);
    m_planner.reshape(shape, keep);
    m_features = std::move(grown);
  }

  /// Begins a new sequence with the same policy and the selector as it is, reusing memory where it
  /// suffices. Throws std::logic_error while a pass is open, std::invalid_argument and
  /// std::bad_alloc; then nothing has changed.
  void reset(const SequenceShape& shape) {
    if (m_planner.step_open()) base::refuse_call("FeatureCache: reset() while a pass is open");
    // Whatever may throw comes before whatever changes something.
    const PolicyTraits traits = m_planner.prepare_reset(shape);
    const Layout layout(m_model, shape, traits);
    m_features.reserve(layout);
    m_planner.reset(shape);
    m_features.reset(layout);
    m_counts = {};
  }

  /// Writes the sequence's features and counters as one section of a snapshot: to a binary stream,
  /// memory or a writer. Rows that were never computed are left out, and all of them when stale. A
  /// selector's memory, if it has any, is not written. Throws std::logic_error while a pass is open
  /// or when the policy does not name its options, and what the sink throws.
  void save(SnapshotWriter& out) const {
    if (m_planner.step_open()) base::refuse_call("FeatureCache: save() while a pass is open");
    static_cast<void>(detail::named_options(m_planner));  // refused before anything is written
    // Snapshots have rows in their own order.
    if (!m_features.is_plain()) return straight_copy().save(out);
    out.begin("features");
    write_header(out);
    if (!stale() && m_planner.traits().keeps_features)
      m_features.for_each_run(
          m_features, m_planner.progress().computed, [&](MatrixView<const Stored> run) {
            out.array("features", std::span<const Stored>(run.data, element_count(run)));
          });
    out.finish();
  }
  void save(SnapshotWriter&& out) const { save(out); }

  /// Goes on where the saved cache stood. Throws std::runtime_error for a snapshot of another model
  /// shape, sequence shape, policy, options or scalar, which changes nothing, and for a damaged or
  /// short one, after which this cache is stale: its next step is a plain forward. Throws
  /// std::logic_error while a pass is open or when the policy does not name its options, and what
  /// the source throws.
  void restore(SnapshotReader& in) {
    if (m_planner.step_open()) base::refuse_call("FeatureCache: restore() while a pass is open");
    in.begin("features");
    check_header(in);
    const auto step = in.number<Index>("step", 0, most_counted);
    const bool stale = in.flag("stale");
    const auto settled = in.number<Index>("settled", 0, rows());
    const auto open = in.number<Index>("open", 0, rows());
    const auto computed = in.elements<std::uint8_t>(static_cast<std::size_t>(rows()));
    if (std::any_of(computed.begin(), computed.end(), [](std::uint8_t flag) { return flag > 1; }))
      in.refuse("computed must be 0 or 1 for every row");
    if (!m_planner.traits().keeps_features &&
        std::any_of(computed.begin(), computed.end(), [](std::uint8_t flag) { return flag != 0; }))
      in.refuse("computed must be 0 for a policy that keeps no features");
    const RowCounts counts = detail::read_counts(in);
    detail::AnyMemory memory = detail::read_memory(in, m_planner);
    m_planner.mark_stale();  // until all features are there
    m_features.forget();
    if (!stale && m_planner.traits().keeps_features)
      m_features.for_each_run(m_features, computed, [&](MatrixView<Stored> run) {
        in.array("features", std::span<Stored>(run.data, element_count(run)));
      });
    in.finish();
    m_planner.resume({step, stale, computed, settled, open});
    m_planner.resume_memory(std::move(memory));
    m_counts = counts;
  }
  void restore(SnapshotReader&& in) { restore(in); }

  /// Features may no longer be read: the next step is a plain forward. Throws std::logic_error
  /// while a pass is open.
  void mark_stale() { m_planner.mark_stale(); }

  [[nodiscard]] bool stale() const { return m_planner.stale(); }
  [[nodiscard]] Index step() const { return m_planner.step(); }  ///< Committed steps.
  [[nodiscard]] const ModelShape& model() const { return m_model; }
  [[nodiscard]] SequenceShape shape() const { return m_planner.shape(); }
  [[nodiscard]] const StepPlanner& planner() const { return m_planner; }
  /// Rows of the committed steps since the sequence began.
  [[nodiscard]] const RowCounts& counts() const { return m_counts; }
  [[nodiscard]] Selector& selector() { return m_selector; }

  /// Bytes of features held for the present sequence, with what lies between them.
  [[nodiscard]] Index bytes() const { return m_features.layout().bytes(); }

  /// The same without what it shares with the cache that it was forked from: the features of rows
  /// that it has not written since.
  [[nodiscard]] Index own_bytes() const { return m_features.own_bytes(); }

  /// Bytes of features that a cache of this shape and policy would hold; allocates nothing. Throws
  /// std::invalid_argument like the constructor.
  [[nodiscard]] static Index bytes_needed(const ModelShape& model, const SequenceShape& shape,
                                          const AnyPolicy& policy) {
    check_shape(model);
    const PolicyTraits traits = checked_traits(policy, shape);
    if (traits.watches_attention && model.heads == 0)
      base::refuse_argument("ModelShape: heads must be at least 1 for policy ", traits.name,
                            ", which watches attention, got 0");
    if (traits.verifies_features && model.verify_width == 0)
      base::refuse_argument("ModelShape: verify_width must be at least 1 for policy ", traits.name,
                            ", which verifies features of layers, got 0");
    return Layout(model, shape, traits).bytes();
  }

  /// Place of a row among the keys and values of a layer: its number, unless a policy hides rows;
  /// those that the last step saw lie in front then, in their order. `0 <= row < T`,
  /// `0 <= layer < layers` (unchecked).
  [[nodiscard]] Index key_place(Index layer, Index row) const {
    return m_features.order(layer).place(row);
  }
  /// Keys `[T, kv]` of a layer, rotated, as stored, dense, from a multiple of 64 bytes on, with
  /// rows of zeros behind them (see ModelShape::row_multiple); `0 <= layer < layers` (unchecked),
  /// valid until reset. Rows that no step has computed hold arbitrary values.
  [[nodiscard]] MatrixView<const Stored> keys(Index layer) const { return m_features.keys(layer); }
  /// Values `[T, kv]` of a layer; see keys().
  [[nodiscard]] MatrixView<const Stored> values(Index layer) const {
    return m_features.values(layer);
  }
  [[nodiscard]] Range stored_deltas() const { return m_planner.traits().stored_deltas; }
  /// Deltas `[stored_deltas().size(), d]` of a layer; see keys().
  [[nodiscard]] MatrixView<const Stored> deltas(Index layer) const {
    return m_features.deltas(layer);
  }

 private:
  friend class Workspace<Scalar, Stored, Selector>;
  using Layout = detail::FeatureLayout<Stored>;

  FeatureCache(const FeatureCache& other, detail::StoredFeatures<Stored> features)
      : m_model(other.m_model),
        m_planner(other.m_planner),
        m_features(std::move(features)),
        m_selector(other.m_selector),
        m_counts(other.m_counts) {}
  [[nodiscard]] FeatureCache straight_copy() const {
    FeatureCache copy = clone();
    copy.m_features.straighten();
    return copy;
  }

  void write_header(SnapshotWriter& out) const {
    detail::write_identity(out, m_planner);
    out.text("scalar", detail::scalar_name<Stored>());
    out.number("width", m_model.width);
    out.number("query_width", m_model.query_width);
    out.number("kv_width", m_model.kv_width);
    const StepPlanner::Progress progress = m_planner.progress();
    out.number("step", progress.step);
    out.number("stale", progress.stale);
    out.number("settled", progress.settled);
    out.number("open", progress.open);
    out.array("computed", progress.computed);
    detail::write_counts(out, m_counts);
    detail::write_memory(out, m_planner.memory());
  }

  // As much of it as must be equal.
  void check_header(SnapshotReader& in) const {
    detail::check_identity(in, m_planner);
    in.expect_text("scalar", detail::scalar_name<Stored>());
    in.expect("width", m_model.width);
    in.expect("query_width", m_model.query_width);
    in.expect("kv_width", m_model.kv_width);
  }

  static std::size_t element_count(MatrixView<const Stored> dense) {
    return static_cast<std::size_t>(dense.rows * dense.cols);
  }

  // Refuses what cannot be held before anything is allocated for it.
  static const ModelShape& checked(const ModelShape& model, const SequenceShape& shape,
                                   const AnyPolicy& policy) {
    static_cast<void>(bytes_needed(model, shape, policy));
    return model;
  }

  [[nodiscard]] Index rows() const { return m_planner.shape().rows(); }

  ModelShape m_model;
  StepPlanner m_planner;
  detail::StoredFeatures<Stored> m_features;
  Selector m_selector;
  RowCounts m_counts;
};

}  // namespace dllm_cache::inline v0_1
