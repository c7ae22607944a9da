// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <type_traits>

#include "dllm_cache/base/matrix_view.hpp"

namespace dllm_cache::inline v0_1::base {

/// to `[rows, width]` = the `rows` of x `[m, width]`, in the order given; each in `[0, m)`, any of
/// them more than once (unchecked). `to` overlaps no row of x that is read.
template <class T>
void gather_rows(MatrixView<const std::type_identity_t<T>> x, std::span<const Index> rows,
                 MatrixView<T> to) {
  for (std::size_t i = 0; i < rows.size(); ++i)
    std::copy_n(x.row(rows[i]), x.cols, to.row(static_cast<Index>(i)));
}

}  // namespace dllm_cache::inline v0_1::base
