// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dllm_cache/base/gather_rows.hpp"
#include "dllm_cache/workspace.hpp"

// How a step is carried out: the definitions of Workspace. Read run_layer first.
namespace dllm_cache::inline v0_1 {

template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
auto Workspace<Scalar, Stored, Selector>::begin_step(std::span<Cache* const> caches,
                                                     std::span<const StepInput> inputs)
    -> PassType {
  if (m_open) base::refuse_call("Workspace: begin_step() while a pass is open");
  if (caches.empty() || caches.size() != inputs.size())
    base::refuse_argument("Workspace: a batch needs 1 cache or more and one input a cache, got ",
                          caches.size(), " caches and ", inputs.size(), " inputs");
  for (Cache* const& cache : caches) {
    if (cache == nullptr) base::refuse_argument("Workspace: a cache of the batch is null");
    if (cache->model() != caches.front()->model())
      base::refuse_argument(
          "Workspace: all caches of a batch must have one model shape, that of cache ",
          &cache - caches.data(), " is not that of the first");
  }
  m_sequences.clear();
  try {
    m_sequences.reserve(caches.size());
    for (std::size_t i = 0; i < caches.size(); ++i) {
      caches[i]->m_planner.begin_step(inputs[i]);
      m_sequences.push_back({.cache = caches[i]});
    }
    pack_rows();
  } catch (...) {
    for (Sequence& sequence : m_sequences) sequence.cache->m_planner.cancel_step();
    m_sequences.clear();
    throw;
  }
  for (Sequence& sequence : m_sequences) sequence.cache->m_features.begin_step();
  m_open = true;
  return PassType(*this, caches.front()->model().layers);
}

template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
void Workspace<Scalar, Stored, Selector>::pack_rows() {
  m_rows.clear();
  m_verified.clear();
  m_recomputed.clear();
  for (Sequence& sequence : m_sequences) {
    sequence.packed.begin = static_cast<Index>(m_rows.size());
    const StepPlan& plan = sequence.cache->m_planner.plan();
    for (std::size_t row = 0; row < plan.rows.size(); ++row)
      if (plan.rows[row] != RowAction::Absent) m_rows.push_back(static_cast<Index>(row));
    sequence.packed.end = static_cast<Index>(m_rows.size());
  }
  reserve_scratch();
  // Every list of this step is at most this long: after this no layer makes one grow.
  const std::size_t in_pass = m_rows.size();
  m_value_rows.reserve(in_pass);
  m_verified.reserve(in_pass);
  m_sums.reserve(in_pass);
  m_selected.reserve(in_pass);
  m_recompute.resize(in_pass);
  m_recompute_rows.reserve(in_pass);
  m_recomputed.reserve(in_pass);
  m_positions.reserve(in_pass);
  m_segments.reserve(in_pass);
}

template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
template <class Layer>
void Workspace<Scalar, Stored, Selector>::run_layer(Layer& layer, Index number,
                                                    MatrixView<Scalar> x) {
  const ModelShape& model = m_sequences.front().cache->model();
  choose_value_rows(number);
  if (const auto rows = static_cast<Index>(m_value_rows.size()); rows > 0) {
    const MatrixView<Scalar> v = m_kv.view(rows, model.kv_width);
    layer.value(gather(x, m_value_rows), v);
    store_values(v, number);
  }
  choose_recompute_rows();
  MatrixView<Scalar> u;
  if (const auto rows = static_cast<Index>(m_recompute_rows.size()); rows > 0) {
    const MatrixView<const Scalar> chosen = gather(x, m_recompute_rows);
    const MatrixView<Scalar> q = m_queries.view(rows, model.query_width);
    const MatrixView<Scalar> k = m_kv.view(rows, model.kv_width);  // fresh values are stored by now
    layer.query_key(chosen, std::span<const std::int32_t>(m_positions), q, k);
    store_keys(k, number);
    u = m_deltas.view(rows, model.width);
    layer.delta(chosen, MatrixView<const Scalar>(q), std::span<const Segment<Stored>>(m_segments),
                u);
  }
  add_deltas(x, u, number);
}

template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
void Workspace<Scalar, Stored, Selector>::choose_value_rows(Index layer) {
  m_value_rows.clear();
  m_verified.clear();
  for (Sequence& sequence : m_sequences) {
    const auto values_before = static_cast<Index>(m_value_rows.size());
    sequence.verified.begin = static_cast<Index>(m_verified.size());
    for (Index packed = sequence.packed.begin; packed < sequence.packed.end; ++packed) {
      const RowAction asked = action(sequence, packed, layer);
      m_recompute[static_cast<std::size_t>(packed)] = asked == RowAction::Recompute;
      if (asked >= RowAction::Verify) m_value_rows.push_back(packed);
      if (asked == RowAction::Verify) m_verified.push_back(packed);
    }
    sequence.verified.end = static_cast<Index>(m_verified.size());
    sequence.counts.values += static_cast<Index>(m_value_rows.size()) - values_before;
  }
  m_sums.resize(m_verified.size());
}

// Consecutive rows of one action go to the cache together: fresh values meet their old ones
// once.
template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
void Workspace<Scalar, Stored, Selector>::store_values(MatrixView<const Scalar> v, Index layer) {
  std::size_t place = 0;  // in m_value_rows and v
  for (Sequence& sequence : m_sequences) {
    const MatrixView<Stored> values = Cache::values_in(*sequence.cache, layer);
    Index verified = sequence.verified.begin;
    while (place < m_value_rows.size() && m_value_rows[place] < sequence.packed.end) {
      const Index packed = m_value_rows[place];
      const bool recompute = m_recompute[static_cast<std::size_t>(packed)] != 0;
      std::size_t end = place + 1;
      while (end < m_value_rows.size() && m_value_rows[end] < sequence.packed.end &&
             row_of(m_value_rows[end]) == row_of(packed) + static_cast<Index>(end - place) &&
             (m_recompute[static_cast<std::size_t>(m_value_rows[end])] != 0) == recompute)
        ++end;
      const auto count = static_cast<Index>(end - place);
      const auto fresh = v.middle_rows(static_cast<Index>(place), count);
      const auto kept = values.middle_rows(row_of(packed), count);
      if (recompute) {
        for (Index row = 0; row < count; ++row)
          base::convert_row(fresh.row(row), kept.row(row), fresh.cols);
      } else {
        sequence.cache->m_selector.accumulate(
            fresh, kept,
            std::span(m_sums).subspan(static_cast<std::size_t>(verified),
                                      static_cast<std::size_t>(count)));
        verified += count;
      }
      place = end;
    }
    if (!sequence.verified.empty()) select_rows(sequence);
  }
}

template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
void Workspace<Scalar, Stored, Selector>::select_rows(Sequence& sequence) {
  const Index verified = sequence.verified.size();
  const StepPlan& plan = sequence.cache->m_planner.plan();
  const Index count = plan.verify_count;
  sequence.cache->m_selector.select(
      std::span<const SimilaritySums>(m_sums).subspan(
          static_cast<std::size_t>(sequence.verified.begin), static_cast<std::size_t>(verified)),
      count, m_selected);
  if (static_cast<Index>(m_selected.size()) > count)
    base::refuse_call("RowSelector: select() must leave at most ", count, " rows, left ",
                      m_selected.size());
  for (const Index place : m_selected) {
    if (place < 0 || place >= verified)
      base::refuse_call("RowSelector: selected places must be in [0, ", verified, "), got ", place);
    const auto entry = static_cast<std::size_t>(sequence.verified.begin + place);
    const Index packed = m_verified[entry];
    if (reaches_threshold(m_sums[entry], plan.similarity_threshold)) continue;
    m_recompute[static_cast<std::size_t>(packed)] = 1;
  }
}

template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
void Workspace<Scalar, Stored, Selector>::choose_recompute_rows() {
  m_recompute_rows.clear();
  m_recomputed.clear();
  m_positions.clear();
  for (Sequence& sequence : m_sequences) {
    const std::span<const std::int32_t> positions = sequence.cache->m_planner.positions();
    sequence.recomputed.begin = static_cast<Index>(m_recompute_rows.size());
    for (Index packed = sequence.packed.begin; packed < sequence.packed.end; ++packed) {
      if (m_recompute[static_cast<std::size_t>(packed)] == 0) continue;
      m_recompute_rows.push_back(packed);
      m_recomputed.push_back(row_of(packed));
      m_positions.push_back(positions[static_cast<std::size_t>(row_of(packed))]);
    }
    sequence.recomputed.end = static_cast<Index>(m_recompute_rows.size());
    sequence.counts.recomputed += sequence.recomputed.size();
  }
}

template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
void Workspace<Scalar, Stored, Selector>::store_keys(MatrixView<const Scalar> k, Index layer) {
  m_segments.clear();
  for (const Sequence& sequence : m_sequences) {
    Cache& cache = *sequence.cache;
    const MatrixView<Stored> keys = Cache::keys_in(cache, layer);
    const MatrixView<const Stored> values = cache.values(layer);
    const Index padded = cache.layout().padded_rows();
    for (Index place = sequence.recomputed.begin; place < sequence.recomputed.end; ++place) {
      const Index row = m_recomputed[static_cast<std::size_t>(place)];
      base::convert_row(k.row(place), keys.row(row), k.cols);
      // Rows that see the same keys share a segment: all of a sequence, unless attention is causal
      // over blocks.
      const Index seen = cache.m_planner.key_end(row);
      const bool first = place == sequence.recomputed.begin;
      if (first || m_segments.back().keys.rows != seen)
        m_segments.push_back({place, place, keys.middle_rows(0, seen), values.middle_rows(0, seen),
                              seen == keys.rows ? padded : seen});
      m_segments.back().end = place + 1;
    }
  }
}

template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
void Workspace<Scalar, Stored, Selector>::add_deltas(MatrixView<Scalar> x,
                                                     MatrixView<const Scalar> u, Index layer) {
  Index place = 0;  // in u
  for (const Sequence& sequence : m_sequences) {
    const Range stored = sequence.cache->stored_deltas();
    const MatrixView<Stored> deltas = Cache::deltas_in(*sequence.cache, layer);
    for (Index packed = sequence.packed.begin; packed < sequence.packed.end; ++packed) {
      const Index row = row_of(packed);
      if (m_recompute[static_cast<std::size_t>(packed)] == 0) {
        base::add_row(deltas.row(row - stored.begin), x.row(packed), x.cols);
        continue;
      }
      base::add_row(u.row(place), x.row(packed), x.cols);
      if (stored.contains(row))
        base::convert_row(u.row(place), deltas.row(row - stored.begin), x.cols);
      ++place;
    }
  }
}

// Room for the most rows that a layer of this step can compute: which ones are selected is not
// known yet, and no layer is to find out that memory is short.
template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
void Workspace<Scalar, Stored, Selector>::reserve_scratch() {
  const ModelShape& model = m_sequences.front().cache->model();
  Index values = 0, recomputed = 0, selected = 0;
  bool all_cached = true;
  for (const Sequence& sequence : m_sequences) {
    const StepPlan& plan = sequence.cache->m_planner.plan();
    all_cached = all_cached && plan.cached_layers == Range{0, model.layers};
    for (const RowAction action : plan.rows) {
      if (action >= RowAction::Verify) ++values;
      if (action == RowAction::Recompute) ++recomputed;
    }
    selected += plan.verify_count;
  }
  const auto in_pass = static_cast<Index>(m_rows.size());
  const Index deltas = all_cached ? recomputed + selected : in_pass;
  if (!all_cached) values = in_pass;  // outside its cached layers a plan recomputes all
  m_kv.ensure(values * model.kv_width);
  m_queries.ensure(deltas * model.query_width);
  m_deltas.ensure(deltas * model.width);
  if (recomputed < in_pass) m_gathered.ensure(values * model.width);  // else all lie together
}

// Hands out the rows themselves where they lie together, a gathered copy of them otherwise.
template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
auto Workspace<Scalar, Stored, Selector>::gather(MatrixView<const Scalar> x,
                                                 const std::vector<Index>& rows)
    -> MatrixView<const Scalar> {
  const auto count = static_cast<Index>(rows.size());
  if (rows.back() - rows.front() + 1 == count) return x.middle_rows(rows.front(), count);
  const MatrixView<Scalar> gathered = m_gathered.view(count, x.cols);
  base::gather_rows(x, rows, gathered);
  return gathered;
}

}  // namespace dllm_cache::inline v0_1
