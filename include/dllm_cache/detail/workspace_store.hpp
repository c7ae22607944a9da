// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dllm_cache/workspace.hpp"

// How fresh features of a layer are compared and stored: definitions of Workspace.
namespace dllm_cache::inline v0_1 {

template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
template <class Layer>
void Workspace<Scalar, Stored, Selector>::verify_features(Layer& layer, MatrixView<const Scalar> x,
                                                          Index number) {
  if constexpr (ComputesVerifyFeatures<Layer, Scalar>) {
    const MatrixView<Scalar> f = m_features.view(static_cast<Index>(m_feature_rows.size()),
                                                 m_sequences.front().cache->model().verify_width);
    layer.verify_feature(gather(x, m_feature_rows), f);
    std::size_t place = 0;  // in m_feature_rows and f
    for (Sequence& sequence : m_sequences) {
      if (!by_features(sequence)) continue;
      const Range stored = sequence.cache->stored_deltas();
      const MatrixView<Stored> kept = sequence.cache->m_features.write_verify_features(number);
      Index verified = sequence.verified.begin;
      for (; place < m_feature_rows.size() && m_feature_rows[place] < sequence.packed.end;
           ++place) {
        const auto fresh = MatrixView<const Scalar>(f).middle_rows(static_cast<Index>(place), 1);
        const auto old = kept.middle_rows(row_of(m_feature_rows[place]) - stored.begin, 1);
        if (asked(m_feature_rows[place]) == RowAction::Verify)
          compare(sequence, fresh, old, verified++);
        else
          base::convert_row(fresh.row(0), old.row(0), fresh.cols);
      }
      if (!sequence.verified.empty()) select_rows(sequence, number);
    }
  } else {
    const auto asks = std::find_if(m_sequences.begin(), m_sequences.end(), by_features);
    base::refuse_call("Workspace: policy ", asks->cache->m_planner.traits().name,
                      " verifies features, which layer ", number,
                      " does not have: write verify_feature()");
  }
}

// Consecutive rows of one kind go to the cache together: fresh values meet their old ones once.
template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
void Workspace<Scalar, Stored, Selector>::store_values(MatrixView<const Scalar> v, Index layer) {
  std::size_t place = 0;  // in m_value_rows and v
  for (Sequence& sequence : m_sequences) {
    const MatrixView<Stored> values = sequence.cache->m_features.write_values(layer);
    const detail::KeyOrder& order = sequence.cache->m_features.order(layer);
    const bool features = by_features(sequence);
    const auto compares = [&](Index packed) {
      return !features && asked(packed) == RowAction::Verify;
    };
    Index verified = sequence.verified.begin;
    while (place < m_value_rows.size() && m_value_rows[place] < sequence.packed.end) {
      const Index first = order.place(row_of(m_value_rows[place]));
      const bool compared = compares(m_value_rows[place]);
      std::size_t end = place + 1;
      while (end < m_value_rows.size() && m_value_rows[end] < sequence.packed.end &&
             order.place(row_of(m_value_rows[end])) == first + static_cast<Index>(end - place) &&
             compares(m_value_rows[end]) == compared)
        ++end;
      const auto count = static_cast<Index>(end - place);
      const auto fresh = v.middle_rows(static_cast<Index>(place), count);
      const auto kept = values.middle_rows(first, count);
      if (compared) {
        compare(sequence, fresh, kept, verified);
        verified += count;
      } else {
        for (Index row = 0; row < count; ++row)
          base::convert_row(fresh.row(row), kept.row(row), fresh.cols);
      }
      place = end;
    }
    if (!features && !sequence.verified.empty()) select_rows(sequence, layer);
  }
}

// Sums of verified rows, from entry `first` on; the fresh ones take the place of those kept.
template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
void Workspace<Scalar, Stored, Selector>::compare(Sequence& sequence,
                                                  MatrixView<const Scalar> fresh,
                                                  MatrixView<Stored> kept, Index first) {
  sequence.cache->m_selector.accumulate(
      fresh, kept,
      std::span(m_sums).subspan(static_cast<std::size_t>(first),
                                static_cast<std::size_t>(fresh.rows)));
}

template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
void Workspace<Scalar, Stored, Selector>::select_rows(Sequence& sequence, Index layer) {
  const Index verified = sequence.verified.size();
  const StepPlan& plan = sequence.cache->m_planner.plan();
  const Index count = std::min(plan.verify_count_in(layer), verified);  // some may have ended
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
void Workspace<Scalar, Stored, Selector>::store_keys(MatrixView<const Scalar> k, Index layer) {
  std::size_t place = 0;  // in m_key_rows and k
  for (const Sequence& sequence : m_sequences) {
    const MatrixView<Stored> keys = sequence.cache->m_features.write_keys(layer);
    const detail::KeyOrder& order = sequence.cache->m_features.order(layer);
    for (; place < m_key_rows.size() && m_key_rows[place] < sequence.packed.end; ++place)
      base::convert_row(k.row(static_cast<Index>(place)),
                        keys.row(order.place(row_of(m_key_rows[place]))), k.cols);
  }
}

// Queries of rows whose keys alone were wanted are dropped: the others move up.
template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
auto Workspace<Scalar, Stored, Selector>::drop_unused(MatrixView<Scalar> q) const
    -> MatrixView<Scalar> {
  if (m_key_rows.size() == m_recompute_rows.size()) return q;
  Index used = 0;
  for (std::size_t place = 0; place < m_key_rows.size(); ++place)
    if (recomputes(m_key_rows[place]))
      std::copy_n(q.row(static_cast<Index>(place)), q.cols, q.row(used++));
  return q.middle_rows(0, used);
}

template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
void Workspace<Scalar, Stored, Selector>::store_queries(MatrixView<const Scalar> q, Index layer) {
  for (const Sequence& sequence : m_sequences) {
    const Range stored = sequence.cache->m_planner.traits().stored_queries;
    if (stored.empty()) continue;
    const MatrixView<Stored> queries = sequence.cache->m_features.write_queries(layer);
    for (Index place = sequence.recomputed.begin; place < sequence.recomputed.end; ++place) {
      const Index row = m_recomputed[static_cast<std::size_t>(place)];
      if (stored.contains(row))
        base::convert_row(q.row(place), queries.row(row - stored.begin), q.cols);
    }
  }
}

// Rows that see the same keys share a segment: all of a sequence, unless attention is causal over
// blocks.
template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
void Workspace<Scalar, Stored, Selector>::find_segments(Index layer) {
  m_segments.clear();
  for (const Sequence& sequence : m_sequences) {
    const Cache& cache = *sequence.cache;
    const MatrixView<const Stored> keys = cache.keys(layer);
    const MatrixView<const Stored> values = cache.values(layer);
    const detail::KeyOrder& order = cache.m_features.order(layer);
    const Index padded = cache.m_features.layout().padded_rows();
    for (Index place = sequence.recomputed.begin; place < sequence.recomputed.end; ++place) {
      const Index row = m_recomputed[static_cast<std::size_t>(place)];
      const Index seen = order.seen_before(cache.m_planner.key_end(row));
      const bool first = place == sequence.recomputed.begin;
      if (first || m_segments.back().keys.rows != seen)
        m_segments.push_back({place, place, keys.middle_rows(0, seen), values.middle_rows(0, seen),
                              seen == keys.rows ? padded : seen});
      m_segments.back().end = place + 1;
    }
  }
}

}  // namespace dllm_cache::inline v0_1
