// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dllm_cache/workspace.hpp"

// How policies that look at layers are told of them: definitions of Workspace.
namespace dllm_cache::inline v0_1 {

template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
void Workspace<Scalar, Stored, Selector>::prepare_watching() {
  for (std::size_t i = 0; i < m_sequences.size(); ++i) {
    const Cache& cache = *m_sequences[i].cache;
    m_sequences[i].watches = cache.m_planner.policy().watches_layers();
    if (!m_sequences[i].watches) continue;
    while (m_watches.size() <= i) m_watches.emplace_back();
    m_watches[i].begin_step(cache.model(), cache.m_planner);
  }
}

template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
auto Workspace<Scalar, Stored, Selector>::watched_layer(const Sequence& sequence, Index layer,
                                                        MatrixView<const Scalar> q) const
    -> detail::WatchedLayer<Scalar, Stored> {
  const Cache& cache = *sequence.cache;
  const Range rows = sequence.recomputed;
  return {.model = cache.model(),
          .planner = cache.m_planner,
          .order = cache.m_features.order(layer),
          .number = layer,
          .keys = cache.keys(layer),
          .queries = cache.m_features.queries(layer),
          .fresh = rows.empty() ? q : q.middle_rows(rows.begin, rows.size()),
          .recomputed = std::span<const Index>(m_recomputed)
                            .subspan(static_cast<std::size_t>(rows.begin),
                                     static_cast<std::size_t>(rows.size()))};
}

// Before this layer's fresh keys are stored.
template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
void Workspace<Scalar, Stored, Selector>::probe(Index layer) {
  for (std::size_t i = 0; i < m_sequences.size(); ++i)
    if (m_sequences[i].watches) m_watches[i].before_keys(watched_layer(m_sequences[i], layer, {}));
}

template <ComputeScalar Scalar, StoredScalar Stored, class Selector>
requires RowSelector<Selector, Scalar, Stored>
void Workspace<Scalar, Stored, Selector>::tell_policies(MatrixView<const Scalar> q, Index layer) {
  for (std::size_t i = 0; i < m_sequences.size(); ++i)
    if (m_sequences[i].watches)
      m_sequences[i].cache->m_planner.layer_done(
          m_watches[i].after_layer(watched_layer(m_sequences[i], layer, q)));
}

}  // namespace dllm_cache::inline v0_1
