// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory_resource>
#include <span>
#include <utility>
#include <vector>

#include "dllm_cache/detail/cache_snapshot.hpp"
#include "dllm_cache/detail/feature_layout.hpp"
#include "dllm_cache/detail/feature_memory.hpp"
#include "dllm_cache/model_shape.hpp"
#include "dllm_cache/stats.hpp"
#include "dllm_cache/step_planner.hpp"
#include "dllm_cache/vverify_selector.hpp"

namespace dllm_cache::inline v0_1 {

template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
class Workspace;

/// The features of one sequence: per layer keys and values `[T, kv]`, prompt then response, and the
/// deltas `[stored, d]` of the rows whose deltas the policy may reuse.
///
/// Each of these matrices is dense and begins on a multiple of 64 bytes. Behind the rows of keys
/// and values lie rows of zeros, up to a multiple of the model's `row_multiple`.
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
        m_features(resource),
        m_selector(std::move(selector)) {
    layout().clear_padding(m_features.ensure(layout().elements()));
  }
  FeatureCache(FeatureCache&&) noexcept = default;
  FeatureCache& operator=(FeatureCache&&) noexcept = default;
  FeatureCache(const FeatureCache&) = delete;
  FeatureCache& operator=(const FeatureCache&) = delete;
  ~FeatureCache() = default;

  /// An independent copy with its features, counters and memory resource. Throws std::logic_error
  /// while a pass is open, and std::bad_alloc.
  [[nodiscard]] FeatureCache clone() const {
    if (m_planner.step_open()) base::refuse_call("FeatureCache: clone() while a pass is open");
    return FeatureCache(*this, m_features.resource());
  }

  /// A copy like clone() that shares the features as they are now: memory is taken only for what
  /// either of them writes from here on, a page of the operating system at a time. From the first
  /// fork on the features of both lie in pages of the operating system, not in the memory resource.
  /// Elsewhere than on Linux this is clone(). Throws like clone().
  [[nodiscard]] FeatureCache fork() {
    if (m_planner.step_open()) base::refuse_call("FeatureCache: fork() while a pass is open");
    return FeatureCache(*this, m_features.fork(layout().elements(), rows()));
  }

  /// Goes on with another shape: rows `[0, keep)` keep their features, later ones have none yet;
  /// counters run on. See StepPlanner::reshape for what stays final and what is thrown; then
  /// nothing has changed.
  void reshape(const SequenceShape& shape, Index keep) {
    if (m_planner.step_open()) base::refuse_call("FeatureCache: reshape() while a pass is open");
    const PolicyTraits traits = m_planner.prepare_reshape(shape, keep);
    FeatureCache grown(m_model, shape, m_planner.policy(), m_features.resource(), m_selector);
    const Range old = m_planner.traits().stored_deltas;
    const Range kept = {std::max(old.begin, traits.stored_deltas.begin),
                        std::min({old.end, traits.stored_deltas.end, keep})};
    for (Index layer = 0; traits.keeps_features && layer < m_model.layers; ++layer) {
      copy_rows(keys(layer), {0, keep}, keys_in(grown, layer), 0);
      copy_rows(values(layer), {0, keep}, values_in(grown, layer), 0);
      if (!kept.empty())
        copy_rows(deltas(layer), {kept.begin - old.begin, kept.end - old.begin},
                  deltas_in(grown, layer), kept.begin - traits.stored_deltas.begin);
    }
    m_planner.reshape(shape, keep);
    m_features = std::move(grown.m_features);
  }

  /// Begins a new sequence with the same policy and the selector as it is, reusing memory where it
  /// suffices. Throws std::logic_error while a pass is open, std::invalid_argument and
  /// std::bad_alloc; then nothing has changed.
  void reset(const SequenceShape& shape) {
    if (m_planner.step_open()) base::refuse_call("FeatureCache: reset() while a pass is open");
    // Whatever may throw comes before whatever changes something.
    const PolicyTraits traits = m_planner.prepare_reset(shape);
    Stored* const features = m_features.ensure(Layout(m_model, shape, traits).elements());
    m_planner.reset(shape);
    m_features.own_all();  // nothing that was shared is read again
    layout().clear_padding(features);
    m_counts = {};
  }

  /// Writes the sequence's features and counters as one section of a snapshot: to a binary stream,
  /// memory or a writer. Rows that were never computed are left out, and all of them when stale. A
  /// selector's memory, if it has any, is not written. Throws std::logic_error while a pass is open
  /// or when the policy does not name its options, and what the sink throws.
  void save(SnapshotWriter& out) const {
    if (m_planner.step_open()) base::refuse_call("FeatureCache: save() while a pass is open");
    static_cast<void>(detail::named_options(m_planner));  // refused before anything is written
    out.begin("features");
    write_header(out);
    for_each_stored_run(*this, m_planner.progress(), [&](MatrixView<const Stored> run) {
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
    m_planner.mark_stale();  // until all features are there
    m_features.own_all();
    for_each_stored_run(*this, {step, stale, computed}, [&](MatrixView<Stored> run) {
      in.array("features", std::span<Stored>(run.data, element_count(run)));
    });
    in.finish();
    m_planner.resume({step, stale, computed, settled, open});
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
  [[nodiscard]] Index bytes() const { return layout().bytes(); }

  /// The same without what it shares with the cache that it was forked from: the features of rows
  /// that it has not written since.
  [[nodiscard]] Index own_bytes() const {
    const Index shared = m_features.shared_rows({0, rows()});
    if (shared == 0) return bytes();
    const Range stored = stored_deltas();
    return layout().bytes_of_rows(rows() - shared, stored.size() - m_features.shared_rows(stored));
  }

  /// Bytes of features that a cache of this shape and policy would hold; allocates nothing. Throws
  /// std::invalid_argument like the constructor.
  [[nodiscard]] static Index bytes_needed(const ModelShape& model, const SequenceShape& shape,
                                          const AnyPolicy& policy) {
    check_shape(model);
    return Layout(model, shape, checked_traits(policy, shape)).bytes();
  }

  /// Keys `[T, kv]` of a layer, rotated, as stored, dense, from a multiple of 64 bytes on, with
  /// rows of zeros behind them (see ModelShape::row_multiple); `0 <= layer < layers` (unchecked),
  /// valid until reset. Rows that no step has computed hold arbitrary values.
  [[nodiscard]] MatrixView<const Stored> keys(Index layer) const { return keys_in(*this, layer); }
  /// Values `[T, kv]` of a layer; see keys().
  [[nodiscard]] MatrixView<const Stored> values(Index layer) const {
    return values_in(*this, layer);
  }
  [[nodiscard]] Range stored_deltas() const { return m_planner.traits().stored_deltas; }
  /// Deltas `[stored_deltas().size(), d]` of a layer; see keys().
  [[nodiscard]] MatrixView<const Stored> deltas(Index layer) const {
    return deltas_in(*this, layer);
  }

 private:
  friend class Workspace<Scalar, Stored, Selector>;
  using Layout = detail::FeatureLayout<Stored>;

  FeatureCache(const FeatureCache& other, std::pmr::memory_resource* resource)
      : m_model(other.m_model),
        m_planner(other.m_planner),
        m_features(resource),
        m_selector(other.m_selector),
        m_counts(other.m_counts) {
    const Index elements = layout().elements();
    std::copy_n(other.m_features.data(), elements, m_features.ensure(elements));
  }
  FeatureCache(const FeatureCache& other, detail::FeatureMemory<Stored> features)
      : m_model(other.m_model),
        m_planner(other.m_planner),
        m_features(std::move(features)),
        m_selector(other.m_selector),
        m_counts(other.m_counts) {}

  static void copy_rows(MatrixView<const Stored> from, Range rows, MatrixView<Stored> to,
                        Index first) {
    std::copy_n(from.row(rows.begin), rows.size() * from.cols, to.row(first));
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
  }

  // As much of it as must be equal.
  void check_header(SnapshotReader& in) const {
    detail::check_identity(in, m_planner);
    in.expect_text("scalar", detail::scalar_name<Stored>());
    in.expect("width", m_model.width);
    in.expect("query_width", m_model.query_width);
    in.expect("kv_width", m_model.kv_width);
  }

  // The same matrices for this class and Workspace, which may write, and for others, who may not.
  template <class Self>
  static auto keys_in(Self& self, Index layer) {
    return self.layout().keys(self.m_features.data(), layer);
  }
  template <class Self>
  static auto values_in(Self& self, Index layer) {
    return self.layout().values(self.m_features.data(), layer);
  }
  template <class Self>
  static auto deltas_in(Self& self, Index layer) {
    return self.layout().deltas(self.m_features.data(), layer);
  }

  // Calls `part(rows of one matrix)` for all features that a snapshot holds, in its order.
  template <class Self, class Part>
  static void for_each_stored_run(Self& self, const StepPlanner::Progress& progress,
                                  const Part& part) {
    if (progress.stale || !self.m_planner.traits().keeps_features) return;
    const Range stored = self.stored_deltas();
    for (Index layer = 0; layer < self.m_model.layers; ++layer)
      detail::for_each_run(progress.computed, [&](Index begin, Index end) {
        part(keys_in(self, layer).middle_rows(begin, end - begin));
        part(values_in(self, layer).middle_rows(begin, end - begin));
        const Index first = std::max(begin, stored.begin), last = std::min(end, stored.end);
        if (first < last)
          part(deltas_in(self, layer).middle_rows(first - stored.begin, last - first));
      });
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
  [[nodiscard]] Layout layout() const { return {m_model, m_planner.shape(), m_planner.traits()}; }

  ModelShape m_model;
  StepPlanner m_planner;
  detail::FeatureMemory<Stored> m_features;
  Selector m_selector;
  RowCounts m_counts;
};

}  // namespace dllm_cache::inline v0_1
