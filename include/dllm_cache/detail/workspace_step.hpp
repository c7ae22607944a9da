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
    prepare_watching();
    for (Sequence& sequence : m_sequences)
      sequence.cache->m_features.arrange(sequence.cache->m_planner.plan(),
                                         !sequence.cache->m_planner.stale());
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
  m_feature_rows.reserve(in_pass);
  m_value_rows.reserve(in_pass);
  m_verified.reserve(in_pass);
  m_sums.reserve(in_pass);
  m_selected.reserve(in_pass);
  m_actions.resize(in_pass);
  m_recompute.resize(in_pass);
  m_key_rows.reserve(in_pass);
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
  mark_rows(number);
  if (!m_feature_rows.empty()) verify_features(layer, MatrixView<const Scalar>(x), number);
  choose_value_rows();
  if (const auto rows = static_cast<Index>(m_value_rows.size()); rows > 0) {
    const MatrixView<Scalar> v = m_kv.view(rows, model.kv_width);
    layer.value(gather(x, m_value_rows), v);
    store_values(v, number);
  }
  choose_recompute_rows();
  MatrixView<Scalar> q, u;
  if (const auto rows = static_cast<Index>(m_key_rows.size()); rows > 0) {
    q = m_queries.view(rows, model.query_width);
    const MatrixView<Scalar> k = m_kv.view(rows, model.kv_width);  // fresh values are stored by now
    layer.query_key(gather(x, m_key_rows), std::span<const std::int32_t>(m_positions), q, k);
    probe(number);
    store_keys(k, number);
  }
  if (const auto rows = static_cast<Index>(m_recompute_rows.size()); rows > 0) {
    q = drop_unused(q);
    store_queries(q, number);
    find_segments(number);
    u = m_deltas.view(rows, model.width);
    layer.delta(gather(x, m_recompute_rows), MatrixView<const Scalar>(q),
                std::span<const Segment<Stored>>(m_segments), u);
  }
  add_deltas(x, u, number);
  tell_policies(q, number);
}

// What the plans ask for in this layer.
template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
void Workspace<Scalar, Stored, Selector>::mark_rows(Index layer) {
  m_feature_rows.clear();
  m_verified.clear();
  for (Sequence& sequence : m_sequences) {
    const bool features = by_features(sequence);
    const Range stored = sequence.cache->stored_deltas();
    sequence.verified.begin = static_cast<Index>(m_verified.size());
    for (Index packed = sequence.packed.begin; packed < sequence.packed.end; ++packed) {
      const RowAction asked = action(sequence, packed, layer);
      m_actions[static_cast<std::size_t>(packed)] = asked;
      m_recompute[static_cast<std::size_t>(packed)] = asked == RowAction::Recompute;
      if (asked == RowAction::Verify) m_verified.push_back(packed);
      // Those of recomputed rows are stored, to be compared with later.
      if (features && asked >= RowAction::Verify && stored.contains(row_of(packed)))
        m_feature_rows.push_back(packed);
    }
    sequence.verified.end = static_cast<Index>(m_verified.size());
  }
  m_sums.resize(m_verified.size());
}

template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
void Workspace<Scalar, Stored, Selector>::choose_value_rows() {
  m_value_rows.clear();
  for (Sequence& sequence : m_sequences) {
    const auto before = static_cast<Index>(m_value_rows.size());
    const bool verified =
        !by_features(sequence) || sequence.cache->m_planner.traits().stores_verified_keys;
    for (Index packed = sequence.packed.begin; packed < sequence.packed.end; ++packed)
      if (recomputes(packed) || (verified && asked(packed) == RowAction::Verify))
        m_value_rows.push_back(packed);
    sequence.counts.values += static_cast<Index>(m_value_rows.size()) - before;
  }
}

template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
void Workspace<Scalar, Stored, Selector>::choose_recompute_rows() {
  m_key_rows.clear();
  m_recompute_rows.clear();
  m_recomputed.clear();
  m_positions.clear();
  for (Sequence& sequence : m_sequences) {
    const std::span<const std::int32_t> positions = sequence.cache->m_planner.positions();
    const bool verified = sequence.cache->m_planner.traits().stores_verified_keys;
    sequence.recomputed.begin = static_cast<Index>(m_recompute_rows.size());
    for (Index packed = sequence.packed.begin; packed < sequence.packed.end; ++packed) {
      if (!recomputes(packed) && !(verified && asked(packed) == RowAction::Verify)) continue;
      m_key_rows.push_back(packed);
      m_positions.push_back(positions[static_cast<std::size_t>(row_of(packed))]);
      if (!recomputes(packed)) continue;
      m_recompute_rows.push_back(packed);
      m_recomputed.push_back(row_of(packed));
    }
    sequence.recomputed.end = static_cast<Index>(m_recompute_rows.size());
    sequence.counts.recomputed += sequence.recomputed.size();
  }
}

template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
void Workspace<Scalar, Stored, Selector>::add_deltas(MatrixView<Scalar> x,
                                                     MatrixView<const Scalar> u, Index layer) {
  Index place = 0;  // in u
  for (const Sequence& sequence : m_sequences) {
    const Range stored = sequence.cache->stored_deltas();
    const MatrixView<Stored> deltas = sequence.cache->m_features.write_deltas(layer);
    for (Index packed = sequence.packed.begin; packed < sequence.packed.end; ++packed) {
      const Index row = row_of(packed);
      if (asked(packed) == RowAction::Absent) continue;  // it has left the pass
      if (!recomputes(packed)) {
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
  Index values = 0, keys = 0, deltas = 0, features = 0, recomputed = 0;
  bool may_change = false;
  for (const Sequence& sequence : m_sequences) {
    const StepPlan& plan = sequence.cache->m_planner.plan();
    const PolicyTraits& traits = sequence.cache->m_planner.traits();
    const auto asked_for = [&](RowAction action) {
      return static_cast<Index>(std::count(plan.rows.begin(), plan.rows.end(), action));
    };
    const Index verified = asked_for(RowAction::Verify), certain = asked_for(RowAction::Recompute);
    recomputed += certain;
    if (traits.verifies_features) features += verified + certain;
    // Outside its cached layers a plan recomputes all, and a policy may change its mind.
    const bool changes = sequence.cache->m_planner.policy().watches_layers();
    may_change = may_change || changes;
    if (changes || plan.cached_layers != Range{0, model.layers}) {
      for (Index* const count : {&values, &keys, &deltas}) *count += sequence.packed.size();
      continue;
    }
    Index selected = plan.verify_count;
    for (const Index count : plan.layer_counts) selected = std::max(selected, count);
    values += verified + certain;
    keys += certain + (traits.stores_verified_keys ? verified : selected);
    deltas += certain + selected;
  }
  m_kv.ensure(std::max(values, keys) * model.kv_width);
  m_queries.ensure(keys * model.query_width);
  m_deltas.ensure(deltas * model.width);
  m_features.ensure(features * model.verify_width);
  // Else all lie together.
  if (recomputed < static_cast<Index>(m_rows.size()) || may_change)
    m_gathered.ensure(std::max(values, features) * model.width);
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
