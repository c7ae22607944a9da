// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "dllm_cache/detail/attention_watch.hpp"
#include "dllm_cache/feature_cache.hpp"
#include "dllm_cache/layer.hpp"

namespace dllm_cache::inline v0_1 {

template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
class Pass;

/// Scratch memory of the steps of one thread, shared by all caches that it steps.
///
/// A step packs the rows in the pass of its sequences into one matrix, so that the layers see large
/// products; one sequence is the batch of one. Memory grows to the largest step seen, then stays.
/// Not synchronised; not movable, since an open pass points at it.
template <ComputeScalar Scalar, StoredScalar Stored = Scalar,
          class Selector = VVerifySelector<Scalar, Stored>>
requires RowSelector<Selector, Scalar, Stored>
class Workspace {
 public:
  using Cache = FeatureCache<Scalar, Stored, Selector>;
  using PassType = Pass<Scalar, Stored, Selector>;

  explicit Workspace(std::pmr::memory_resource* resource = std::pmr::get_default_resource())
      : m_gathered(resource),
        m_kv(resource),
        m_queries(resource),
        m_deltas(resource),
        m_features(resource) {}
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  /// Begins a step of one sequence; see the batch below.
  [[nodiscard]] PassType begin_step(Cache& cache, const StepInput& input = {}) {
    Cache* const one = &cache;
    return begin_step(std::span<Cache* const>(&one, 1), std::span<const StepInput>(&input, 1));
  }

  /// Begins a step of several sequences of the same model, one input a cache: asks their policies
  /// and packs the rows in the pass. The caches must stay where they are until the pass has ended.
  ///
  /// Throws std::invalid_argument for inputs that do not fit and std::logic_error for a plan that
  /// cannot be carried out or a pass that is still open; then no cache has changed.
  [[nodiscard]] PassType begin_step(std::span<Cache* const> caches,
                                    std::span<const StepInput> inputs);

 private:
  friend PassType;

  struct Sequence {
    Cache* cache = nullptr;
    Range packed = {};      // its rows of x
    Range verified = {};    // its part of m_verified and m_sums in the last layer
    Range recomputed = {};  // its part of m_recompute_rows in the last layer
    RowCounts counts = {};
    bool watches = false;  // its policy is told of layers that are done
  };

  // Everything below is one layer's work, in the order in which layer() calls it.
  template <class Layer>
  void run_layer(Layer& layer, Index number, MatrixView<Scalar> x);
  void mark_rows(Index layer);
  template <class Layer>
  void verify_features(Layer& layer, MatrixView<const Scalar> x, Index number);
  void choose_value_rows();
  void store_values(MatrixView<const Scalar> v, Index layer);
  void choose_recompute_rows();
  void probe(Index layer);
  void store_keys(MatrixView<const Scalar> k, Index layer);
  [[nodiscard]] MatrixView<Scalar> drop_unused(MatrixView<Scalar> q) const;
  void store_queries(MatrixView<const Scalar> q, Index layer);
  void find_segments(Index layer);
  void add_deltas(MatrixView<Scalar> x, MatrixView<const Scalar> u, Index layer);
  void tell_policies(MatrixView<const Scalar> q, Index layer);

  void pack_rows();
  void prepare_watching();
  void reserve_scratch();
  [[nodiscard]] MatrixView<const Scalar> gather(MatrixView<const Scalar> x,
                                                const std::vector<Index>& rows);
  void compare(Sequence& sequence, MatrixView<const Scalar> fresh, MatrixView<Stored> kept,
               Index first);
  void select_rows(Sequence& sequence, Index layer);
  [[nodiscard]] RowAction action(const Sequence& sequence, Index packed, Index layer) const {
    const StepPlan& plan = sequence.cache->m_planner.plan();
    if (!plan.reaches(row_of(packed), layer)) return RowAction::Absent;
    if (!plan.cached_layers.contains(layer)) return RowAction::Recompute;
    return plan.rows[static_cast<std::size_t>(row_of(packed))];
  }
  [[nodiscard]] detail::WatchedLayer<Scalar, Stored> watched_layer(
      const Sequence& sequence, Index layer, MatrixView<const Scalar> q) const;
  // Whether verified rows are compared by features of the layer, not by their values.
  [[nodiscard]] static bool by_features(const Sequence& sequence) {
    return sequence.cache->m_planner.traits().verifies_features;
  }
  [[nodiscard]] RowAction asked(Index packed) const {
    return m_actions[static_cast<std::size_t>(packed)];
  }
  [[nodiscard]] bool recomputes(Index packed) const {
    return m_recompute[static_cast<std::size_t>(packed)] != 0;
  }
  [[nodiscard]] Index row_of(Index packed) const {
    return m_rows[static_cast<std::size_t>(packed)];
  }

  void commit() {
    for (Sequence& sequence : m_sequences) {
      sequence.cache->m_planner.commit_step();
      sequence.cache->m_features.end_step(sequence.cache->m_planner.plan());
      sequence.counts.rows = sequence.packed.size();
      sequence.cache->m_counts += sequence.counts;
    }
    m_open = false;
  }
  void drop() noexcept {
    for (Sequence& sequence : m_sequences) sequence.cache->m_planner.drop_step();
    m_open = false;
  }

  std::vector<Sequence> m_sequences;
  std::vector<Index> m_rows;              // row number of each packed row in its sequence
  std::vector<Index> m_feature_rows;      // packed rows that are verified by features
  std::vector<Index> m_value_rows;        // packed rows whose values are computed
  std::vector<Index> m_verified;          // packed rows that are verified
  std::vector<SimilaritySums> m_sums;     // of the verified rows
  std::vector<Index> m_selected;          // the selector's answer for one sequence
  std::vector<RowAction> m_actions;       // of each packed row in this layer
  std::vector<std::uint8_t> m_recompute;  // one flag a packed row: it is recomputed in this layer
  std::vector<Index> m_key_rows;          // packed rows whose keys are computed
  std::vector<Index> m_recompute_rows;    // packed rows that are recomputed
  std::vector<Index> m_recomputed;        // the same as row numbers
  std::vector<std::int32_t> m_positions;  // of the rows whose keys are computed
  std::vector<Segment<Stored>> m_segments;
  base::Buffer<Scalar> m_gathered;  // rows of x given to a callback
  base::Buffer<Scalar> m_kv;        // fresh values, then fresh keys
  base::Buffer<Scalar> m_queries;
  base::Buffer<Scalar> m_deltas;
  base::Buffer<Scalar> m_features;                               // that rows are verified by
  std::deque<detail::AttentionWatch<Scalar, Stored>> m_watches;  // one a sequence that watches
  bool m_open = false;
};

/// One step in progress: give it every layer once, in order; the last one commits.
///
/// Dropped earlier (an exception, a cancelled step) it leaves its caches stale: their next step is
/// a plain forward, later ones keep their phase. Row numbers and reports stay readable after the
/// last layer, until the workspace begins its next step.
template <ComputeScalar Scalar, StoredScalar Stored = Scalar,
          class Selector = VVerifySelector<Scalar, Stored>>
requires RowSelector<Selector, Scalar, Stored>
class [[nodiscard]] Pass {
 public:
  Pass(Pass&& other) noexcept
      : m_workspace(other.m_workspace),
        m_layers(other.m_layers),
        m_next(other.m_next),
        m_open(std::exchange(other.m_open, false)) {}
  Pass& operator=(Pass&&) = delete;
  ~Pass() {
    if (m_open) m_workspace->drop();
  }

  /// Runs one layer over x `[row_count(), d]` in place: recomputes, verifies and reuses as planned.
  ///
  /// Throws std::logic_error after the last layer or an error, std::invalid_argument for a
  /// misshapen x (nothing happened), and what the layer throws (all caches are stale then).
  template <class Layer>
  requires TransformerLayer<std::remove_reference_t<Layer>, Scalar, Stored>
  void layer(Layer&& layer, MatrixView<Scalar> x) {
    if (!m_open)
      base::refuse_call("Pass: layer() after ", m_next, " of ", m_layers,
                        " layers, when the pass has ended");
    const Index width = m_workspace->m_sequences.front().cache->model().width;
    if (x.rows != row_count() || x.cols != width || x.stride < x.cols)
      base::refuse_argument("Pass: x must be [", row_count(), ", ", width, "], got [", x.rows, ", ",
                            x.cols, "] with stride ", x.stride);
    try {
      m_workspace->run_layer(layer, m_next, x);
      if (++m_next < m_layers) return;
      m_workspace->commit();
      m_open = false;
    } catch (...) {
      m_workspace->drop();
      m_open = false;
      throw;
    }
  }

  /// Rows of x: all rows in the pass of all sequences, one sequence after the other.
  [[nodiscard]] Index row_count() const { return static_cast<Index>(m_workspace->m_rows.size()); }
  /// Sequences in this step.
  [[nodiscard]] Index sequences() const {
    return static_cast<Index>(m_workspace->m_sequences.size());
  }
  /// Rows of x that belong to sequence `i`.
  [[nodiscard]] Range packed(Index i = 0) const { return sequence(i).packed; }
  /// Ascending row numbers of sequence `i` in the pass: entry `j` is row `packed(i).begin + j` of
  /// x.
  [[nodiscard]] std::span<const Index> rows(Index i = 0) const {
    return slice(m_workspace->m_rows, packed(i));
  }
  /// Whether a row of sequence `i` that was in the pass has left it between two layers.
  [[nodiscard]] bool ended(Index row, Index i = 0) const {
    return !plan(i).reaches(row, m_layers - 1);
  }
  /// Place in x of a row of sequence `i`, or none when it is not in the pass, or not any more.
  [[nodiscard]] std::optional<Index> find(Index row, Index i = 0) const {
    const auto in_pass = rows(i);
    const auto place = std::lower_bound(in_pass.begin(), in_pass.end(), row);
    if (place == in_pass.end() || *place != row || ended(row, i)) return std::nullopt;
    return packed(i).begin + (place - in_pass.begin());
  }
  /// True until the last layer has run or something was thrown.
  [[nodiscard]] bool open() const { return m_open; }
  /// Layers run so far.
  [[nodiscard]] Index layers_done() const { return m_next; }

  /// The plan of sequence `i` as it stands: policies may change it between layers.
  [[nodiscard]] const StepPlan& plan(Index i = 0) const {
    return sequence(i).cache->planner().plan();
  }
  /// Rows of sequence `i` that the last layer recomputed, ascending row numbers.
  [[nodiscard]] std::span<const Index> recomputed(Index i = 0) const {
    return slice(m_workspace->m_recomputed, sequence(i).recomputed);
  }
  /// How many rows of sequence `i` the last layer verified.
  [[nodiscard]] Index verified(Index i = 0) const { return sequence(i).verified.size(); }
  /// Row number of the `j`-th verified row of sequence `i` in the last layer.
  [[nodiscard]] Index verified_row(Index j, Index i = 0) const {
    if (j < 0 || j >= verified(i))
      base::refuse_argument("Pass: verified row must be in [0, ", verified(i), "), got ", j);
    return m_workspace->row_of(
        m_workspace->m_verified[static_cast<std::size_t>(sequence(i).verified.begin + j)]);
  }
  /// Sums behind the similarity of each verified row of sequence `i` in the last layer.
  [[nodiscard]] std::span<const SimilaritySums> sums(Index i = 0) const {
    return slice(m_workspace->m_sums, sequence(i).verified);
  }

 private:
  using Owner = Workspace<Scalar, Stored, Selector>;
  friend Owner;
  Pass(Owner& workspace, Index layers) : m_workspace(&workspace), m_layers(layers) {}

  [[nodiscard]] const typename Owner::Sequence& sequence(Index i) const {
    if (i < 0 || i >= sequences())
      base::refuse_argument("Pass: sequence must be in [0, ", sequences(), "), got ", i);
    return m_workspace->m_sequences[static_cast<std::size_t>(i)];
  }
  template <class T>
  static std::span<const T> slice(const std::vector<T>& all, Range part) {
    return std::span<const T>(all).subspan(static_cast<std::size_t>(part.begin),
                                           static_cast<std::size_t>(part.size()));
  }

  Owner* m_workspace;
  Index m_layers;
  Index m_next = 0;
  bool m_open = true;
};

}  // namespace dllm_cache::inline v0_1

// The definitions:
#include "dllm_cache/detail/workspace_step.hpp"
#include "dllm_cache/detail/workspace_store.hpp"
#include "dllm_cache/detail/workspace_watch.hpp"
