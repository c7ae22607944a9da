// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <algorithm>

#include "dllm_cache/base/buffer.hpp"
#include "dllm_cache/base/matrix_view.hpp"

namespace dllm_cache::inline v0_1::models {

/// Operations whose time a product takes, for ThreadTeam: with few rows, reading a weight takes
/// longer than multiplying it.
[[nodiscard]] inline double product_effort(Index rows, Index inputs, Index outputs) {
  constexpr Index rows_while_reading = 16;
  return 2.0 * static_cast<double>(std::max(rows, rows_while_reading)) *
         static_cast<double>(inputs) * static_cast<double>(outputs);
}

/// Rows `[rows, width]` that a product reads, dense: floats, or where these are null, bf16.
struct ProductRows {
  Index rows = 0;
  const float* floats = nullptr;
  const Eigen::bfloat16* rounded = nullptr;
};

/// Rows that products read, in the type that they multiply: whoever computes such rows rounds them
/// on the way, instead of a pass of its own over all of them. Belongs to one thread at a time.
class ProductInput {
 public:
  /// Room for `rows` rows of `width` numbers, and for rows up to `padded` that products may read;
  /// `rows <= padded`; all contents are lost. Products multiply bf16 where `narrow`, else float.
  void resize(Index rows, Index width, Index padded, bool narrow) {
    m_rows = rows;
    m_width = width;
    m_padded = padded;
    m_narrow = narrow;
  }

  [[nodiscard]] Index rows() const { return m_rows; }
  [[nodiscard]] bool narrow() const { return m_narrow; }

  /// `[rows, width]`, dense, with the padding behind: what products read, or where `narrow`,
  /// scratch for it, which takes memory when it is first asked for.
  [[nodiscard]] MatrixView<float> floats() {
    return dense_view(m_floats.ensure(m_padded * m_width), m_rows, m_width);
  }
  /// `[rows, width]`, dense, with the padding behind: what products read where `narrow`.
  [[nodiscard]] MatrixView<Eigen::bfloat16> rounded() {
    return dense_view(m_rounded.ensure(m_padded * m_width), m_rows, m_width);
  }
  /// The rows as products read them.
  [[nodiscard]] ProductRows product_rows() {
    if (m_narrow) return {m_rows, nullptr, rounded().data};
    return {m_rows, floats().data, nullptr};
  }
  /// Calls `work` with floats() or rounded(), whichever products read.
  template <class Work>
  void fill(const Work& work) {
    if (m_narrow)
      work(rounded());
    else
      work(floats());
  }

 private:
  base::Buffer<float> m_floats;
  base::Buffer<Eigen::bfloat16> m_rounded;
  Index m_rows = 0;
  Index m_width = 0;
  Index m_padded = 0;
  bool m_narrow = false;
};

}  // namespace dllm_cache::inline v0_1::models
