// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <type_traits>

namespace dllm_cache::inline v0_1 {

/// Signed count or position of rows, columns, layers and steps.
using Index = std::ptrdiff_t;

/// Four-field view of a row-major matrix `[rows, cols]` that somebody else owns.
///
/// Row `i` starts at `data + i * stride`; `stride >= cols`, in elements. Copying a view copies four
/// words. A view of mutable elements converts to a view of const ones. Not synchronised.
template <class T>
struct MatrixView {
  T* data = nullptr;
  Index rows = 0;
  Index cols = 0;
  Index stride = 0;

  /// First element of row `i`, `0 <= i < rows` (unchecked: this is the innermost access).
  [[nodiscard]] T* row(Index i) const { return data + i * stride; }

  /// View `[count, cols]` of the rows from `begin` on, `begin + count <= rows` (unchecked).
  [[nodiscard]] MatrixView middle_rows(Index begin, Index count) const {
    return {data + begin * stride, count, cols, stride};
  }

  /// The same rows, read only.
  operator MatrixView<const T>() const requires(!std::is_const_v<T>) {
    return {data, rows, cols, stride};
  }
};

/// View `[rows, cols]` of dense row-major memory, with a stride of `cols`.
template <class T>
[[nodiscard]] MatrixView<T> dense_view(T* data, Index rows, Index cols) {
  return {data, rows, cols, cols};
}

}  // namespace dllm_cache::inline v0_1
