// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <variant>
#include <vector>

#include "dllm_cache/base/error.hpp"
#include "dllm_cache/base/scalar.hpp"
#include "dllm_cache/layer.hpp"
#include "dllm_cache/models/compute/backends.hpp"
#include "dllm_cache/models/compute/few_rows_attention.hpp"
#include "dllm_cache/models/compute/head_shape.hpp"
#include "dllm_cache/models/compute/parallel.hpp"
#include "dllm_cache/models/compute/product_input.hpp"
#include "dllm_cache/models/compute/stairs.hpp"

namespace dllm_cache::inline v0_1::models {

/// Computes the attention of a running model: one door to few rows and to the backends' many, for
/// one thread. Holds what a backend keeps between calls and the count of operations.
class Attention {
 public:
  /// Throws std::invalid_argument where can_compute() is false. The team must outlive it.
  Attention(const ComputeOptions& options, ThreadTeam& team)
      : m_team(&team),
        m_narrow(multiplies_bf16(options)),
        m_many_rows(detail::Backends::make_attention(options, team.threads())) {}

  /// out `[m, heads * head_dim]` = softmax(q k^T / sqrt(head_dim)) v, each segment's rows over its
  /// own keys and values; q `[m, heads * head_dim]`. Grouped query heads share their keys.
  ///
  /// Neighbouring segments of one sequence are computed together where each sees what the one
  /// before sees, or more. What a row does not see never reaches it, be it infinite or NaN.
  ///
  /// Throws std::invalid_argument where the rows of `out` are not what multiplies_bf16() says; then
  /// none is written.
  template <StoredScalar Stored>
  void attend(MatrixView<const float> q, std::span<const Segment<Stored>> segments,
              const HeadShape& shape, ProductInput& out) {
    if (out.narrow() != m_narrow)
      base::refuse_argument("Attention: narrow must be what its options multiply, ", m_narrow,
                            ", got ", out.narrow());
    while (!segments.empty()) {
      const std::size_t count = detail::steps_together(segments);
      attend_steps(q, segments.first(count), shape, out);
      segments = segments.subspan(count);
    }
  }

  /// 4 rows keys heads head_dim of every segment so far.
  [[nodiscard]] double operations() const { return m_operations; }

 private:
  // The steps of one staircase.
  template <StoredScalar Stored>
  void attend_steps(MatrixView<const float> q, std::span<const Segment<Stored>> steps,
                    const HeadShape& shape, ProductInput& out) {
    const Index group = shape.heads / shape.kv_heads;
    bool few = true;
    Index queries = 0;  // a step costs as if its last eight were full
    for (const Segment<Stored>& step : steps) {
      const Index rows = step.end - step.begin;
      // For many rows, too, so that a later step with fewer finds it.
      detail::FewRowsAttention<Stored>::reserve(step.keys.rows, shape, *m_team);
      few = few && detail::few_rows_suit(rows, shape);
      queries += (rows * group + detail::queries_together - 1) / detail::queries_together *
                 detail::queries_together;
      m_operations += attention_operations(rows, step.keys.rows, shape);
    }
    // Several steps one after the other may cost no more than the largest one that suits.
    few = few && queries <= detail::most_queries;
    if (few) {
      for (const Segment<Stored>& step : steps)
        out.fill([&](auto to) { detail::attend_few(q, step, shape, to, *m_team); });
      return;
    }
    m_seen.clear();
    for (const Segment<Stored>& step : steps)
      m_seen.insert(m_seen.end(), static_cast<std::size_t>(step.end - step.begin), step.keys.rows);
    if (m_seen.empty()) return;
    const detail::Stairs<Stored> stairs{steps.front().begin, steps.back().end, steps.back().keys,
                                        steps.back().values, m_seen};
    std::visit([&](auto& many) { many.attend(q, stairs, shape, out, *m_team); }, m_many_rows);
  }

  ThreadTeam* m_team;
  bool m_narrow;  // rows are bf16
  detail::Backends::Attention m_many_rows;
  std::vector<Index> m_seen;  // keys that each row of a staircase sees
  double m_operations = 0.0;
};

}  // namespace dllm_cache::inline v0_1::models
