// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <memory_resource>
#include <span>
#include <utility>
#include <vector>

#include "dllm_cache/detail/cache_snapshot.hpp"
#include "dllm_cache/detail/feature_layout.hpp"
#include "dllm_cache/detail/feature_memory.hpp"
#include "dllm_cache/detail/key_order.hpp"

namespace dllm_cache::inline v0_1::detail {

/// The features of one sequence as matrices, and in which order the rows of keys and values lie.
/// Move-only; not synchronised.
template <class Stored>
class StoredFeatures {
 public:
  using Layout = FeatureLayout<Stored>;

  /// Takes the memory; throws std::bad_alloc and what Layout::elements throws.
  StoredFeatures(const Layout& layout, std::pmr::memory_resource* resource)
      : m_layout(layout), m_memory(resource) {
    m_layout.clear_padding(m_memory.ensure(layout.elements()));
  }
  /// A copy of its own.
  [[nodiscard]] StoredFeatures clone() const {
    StoredFeatures copy(m_layout, m_memory.resource());
    std::copy_n(m_memory.data(), m_layout.elements(), copy.m_memory.data());
    copy.m_orders = m_orders;
    return copy;
  }
  /// See FeatureMemory::fork.
  [[nodiscard]] StoredFeatures fork() {
    return StoredFeatures(m_layout, m_memory.fork(m_layout.elements(), m_layout.rows()), m_orders);
  }

  /// Takes the memory that reset() will need; throws like the constructor.
  void reserve(const Layout& layout) { m_memory.ensure(layout.elements()); }
  /// Begins anew; nothing that was stored is read again. Needs reserve().
  void reset(const Layout& layout) {
    m_layout = layout;
    forget();
    m_layout.clear_padding(m_memory.data());
  }
  /// Nothing that was stored, or shared, is read again.
  void forget() {
    m_memory.own_all();
    for (KeyOrder& order : m_orders) order.forget();
  }

  [[nodiscard]] const Layout& layout() const { return m_layout; }
  [[nodiscard]] std::pmr::memory_resource* resource() const { return m_memory.resource(); }
  /// Order of the rows of a layer's keys and values.
  [[nodiscard]] const KeyOrder& order(Index layer) const {
    static const KeyOrder plain;
    return m_orders.empty() ? plain : m_orders[static_cast<std::size_t>(layer)];
  }
  /// Whether all rows lie in their own order.
  [[nodiscard]] bool is_plain() const {
    return std::all_of(m_orders.begin(), m_orders.end(),
                       [](const KeyOrder& order) { return order.is_plain(); });
  }

  // Matrices of a layer; see FeatureLayout. Those that may be written are asked for by name.
  [[nodiscard]] auto keys(Index layer) const { return m_layout.keys(m_memory.data(), layer); }
  [[nodiscard]] auto values(Index layer) const { return m_layout.values(m_memory.data(), layer); }
  [[nodiscard]] auto deltas(Index layer) const { return m_layout.deltas(m_memory.data(), layer); }
  [[nodiscard]] auto queries(Index layer) const { return m_layout.queries(m_memory.data(), layer); }
  [[nodiscard]] auto verify_features(Index layer) const {
    return m_layout.verify_features(m_memory.data(), layer);
  }
  [[nodiscard]] auto write_keys(Index layer) { return m_layout.keys(m_memory.data(), layer); }
  [[nodiscard]] auto write_values(Index layer) { return m_layout.values(m_memory.data(), layer); }
  [[nodiscard]] auto write_deltas(Index layer) { return m_layout.deltas(m_memory.data(), layer); }
  [[nodiscard]] auto write_queries(Index layer) { return m_layout.queries(m_memory.data(), layer); }
  [[nodiscard]] auto write_verify_features(Index layer) {
    return m_layout.verify_features(m_memory.data(), layer);
  }

  /// Puts the rows first that a plan sees, in each layer; `keep`: what is stored may be read again.
  /// Throws std::bad_alloc; then nothing has changed.
  void arrange(const StepPlan& plan, bool keep) {
    if (plan.sees_all() && m_orders.empty()) return;
    if (m_orders.empty()) m_orders.resize(static_cast<std::size_t>(m_layout.layers()));
    for (KeyOrder& order : m_orders) order.reserve(m_layout.rows());
    keep = keep && m_layout.keeps_all_layers();
    m_aside.ensure(2 * m_layout.kv_width());
    for (std::size_t layer = 0; layer < m_orders.size(); ++layer)
      if (m_orders[layer].arrange(plan, static_cast<Index>(layer), keep,
                                  mover(static_cast<Index>(layer))))
        m_memory.own_all();
  }
  /// All rows in their own order again; throws std::bad_alloc.
  void straighten() {
    m_aside.ensure(2 * m_layout.kv_width());
    if (!is_plain()) m_memory.own_all();
    for (std::size_t layer = 0; layer < m_orders.size(); ++layer)
      m_orders[layer].straighten(mover(static_cast<Index>(layer)));
  }
  /// Takes over the first `keep` rows of another sequence whose rows lie in their own order.
  void copy_rows(const StoredFeatures& other, Index keep) {
    if (!m_layout.keeps_all_layers() || !other.m_layout.keeps_all_layers()) return;
    for (Index layer = 0; layer < m_layout.layers(); ++layer) {
      copy_kept(other.keys(layer), {0, keep}, write_keys(layer), {0, keep}, keep);
      copy_kept(other.values(layer), {0, keep}, write_values(layer), {0, keep}, keep);
      const Range old = other.m_layout.stored_deltas(), now = m_layout.stored_deltas();
      copy_kept(other.deltas(layer), old, write_deltas(layer), now, keep);
      copy_kept(other.verify_features(layer), old, write_verify_features(layer), now, keep);
      copy_kept(other.queries(layer), other.m_layout.stored_queries(), write_queries(layer),
                m_layout.stored_queries(), keep);
    }
  }

  /// A step may write from here on; see FeatureMemory.
  void begin_step() { m_memory.begin_step(); }
  void end_step(const StepPlan& plan) { m_memory.end_step(plan, m_layout.layers()); }
  /// Bytes without what is shared with others.
  [[nodiscard]] Index own_bytes() const {
    const Index rows = m_layout.rows(), shared = m_memory.shared_rows({0, rows});
    if (shared == 0) return m_layout.bytes();
    const Range deltas = m_layout.stored_deltas(), queries = m_layout.stored_queries();
    return m_layout.bytes_of_rows(rows - shared, deltas.size() - m_memory.shared_rows(deltas),
                                  queries.size() - m_memory.shared_rows(queries));
  }

  /// Calls `part(rows of one matrix)` for all rows of `self` that are flagged, in the order of
  /// snapshots; rows must lie in their own order.
  template <class Self, class Part>
  static void for_each_run(Self& self, std::span<const std::uint8_t> flags, const Part& part) {
    const Layout& layout = self.m_layout;
    auto* const data = self.m_memory.data();
    const auto part_of = [&](const auto& matrix, Range stored, Index begin, Index end) {
      const Index first = std::max(begin, stored.begin), last = std::min(end, stored.end);
      if (first < last && matrix.cols > 0)
        part(matrix.middle_rows(first - stored.begin, last - first));
    };
    for (Index layer = 0; layer < layout.layers(); ++layer)
      detail::for_each_run(flags, [&](Index begin, Index end) {
        part(layout.keys(data, layer).middle_rows(begin, end - begin));
        part(layout.values(data, layer).middle_rows(begin, end - begin));
        part_of(layout.deltas(data, layer), layout.stored_deltas(), begin, end);
        part_of(layout.queries(data, layer), layout.stored_queries(), begin, end);
        part_of(layout.verify_features(data, layer), layout.stored_deltas(), begin, end);
      });
  }

 private:
  StoredFeatures(const Layout& layout, FeatureMemory<Stored> memory, std::vector<KeyOrder> orders)
      : m_layout(layout), m_memory(std::move(memory)), m_orders(std::move(orders)) {}

  // Rows before `keep` that both ranges have.
  static void copy_kept(MatrixView<const Stored> from, Range old, MatrixView<Stored> to, Range now,
                        Index keep) {
    const Range rows = {std::max(old.begin, now.begin), std::min({old.end, now.end, keep})};
    if (rows.empty() || from.cols == 0) return;
    std::copy_n(from.row(rows.begin - old.begin), rows.size() * from.cols,
                to.row(rows.begin - now.begin));
  }
  // Moves a row of keys and values to another place; see KeyOrder::arrange.
  [[nodiscard]] auto mover(Index layer) {
    return [this, keys = write_keys(layer), values = write_values(layer)](Index from, Index to) {
      const auto at = [&](const MatrixView<Stored>& rows, Index place, Index aside) {
        return place < 0 ? m_aside.data() + aside : rows.row(place);
      };
      std::copy_n(at(keys, from, 0), keys.cols, at(keys, to, 0));
      std::copy_n(at(values, from, keys.cols), keys.cols, at(values, to, keys.cols));
    };
  }

  Layout m_layout;
  FeatureMemory<Stored> m_memory;
  std::vector<KeyOrder> m_orders;  // one a layer, once something was hidden
  base::Buffer<Stored> m_aside;    // a row of keys and one of values, while rows move
};

}  // namespace dllm_cache::inline v0_1::detail
