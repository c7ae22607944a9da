// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <variant>

#include "dllm_cache/base/error.hpp"
#include "dllm_cache/base/scalar.hpp"
#include "dllm_cache/layer.hpp"
#include "dllm_cache/models/compute/backends.hpp"
#include "dllm_cache/models/compute/few_rows_attention.hpp"
#include "dllm_cache/models/compute/head_shape.hpp"
#include "dllm_cache/models/compute/parallel.hpp"
#include "dllm_cache/models/compute/product_input.hpp"

namespace dllm_cache::inline v0_1::models {

/// Computes the attention of a running model: one door to few rows and to the backends' many, for
/// one thread. Holds what a backend keeps between calls and the count of operations.
class Attention {
 public:
  /// Throws std::invalid_argument for a backend that is not built in. The team must outlive it.
  Attention(const ComputeOptions& options, ThreadTeam& team)
      : m_team(&team),
        m_narrow(multiplies_bf16(options)),
        m_many_rows(detail::Backends::make_attention(options.backend, team.threads())) {}

  /// out `[m, heads * head_dim]` = softmax(q k^T / sqrt(head_dim)) v, each segment's rows over its
  /// own keys and values; q `[m, heads * head_dim]`. Grouped query heads share their keys.
  ///
  /// Throws std::invalid_argument where the rows of `out` are not what multiplies_bf16() says; then
  /// none is written.
  template <StoredScalar Stored>
  void attend(MatrixView<const float> q, std::span<const Segment<Stored>> segments,
              const HeadShape& shape, ProductInput& out) {
    if (out.narrow() != m_narrow)
      base::refuse_argument("Attention: narrow must be what its options multiply, ", m_narrow,
                            ", got ", out.narrow());
    for (const Segment<Stored>& segment : segments) {
      const Index rows = segment.end - segment.begin;
      // For many rows, too, so that a later step with fewer finds it.
      detail::FewRowsAttention<Stored>::reserve(segment.keys.rows, shape, *m_team);
      if (detail::few_rows_suit(rows, shape))
        out.fill([&](auto to) { detail::attend_few(q, segment, shape, to, *m_team); });
      else
        std::visit([&](auto& many) { many.attend(q, segment, shape, out, *m_team); }, m_many_rows);
      m_operations += attention_operations(rows, segment.keys.rows, shape);
    }
  }

  /// 4 rows keys heads head_dim of every segment so far.
  [[nodiscard]] double operations() const { return m_operations; }

 private:
  ThreadTeam* m_team;
  bool m_narrow;  // rows are bf16
  detail::Backends::Attention m_many_rows;
  double m_operations = 0.0;
};

}  // namespace dllm_cache::inline v0_1::models
