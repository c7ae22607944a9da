// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>

#include "dllm_cache/base/matrix_view.hpp"

namespace dllm_cache::inline v0_1 {

/// Row-major Eigen matrix `[rows, cols]` with the element type of a view.
template <class T>
using RowMajorMatrix =
    Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Eigen map of a view's memory; nothing is copied, the view's owner must outlive it.
template <class T>
using EigenMap =
    Eigen::Map<std::conditional_t<std::is_const_v<T>, const RowMajorMatrix<T>, RowMajorMatrix<T>>,
               Eigen::Unaligned, Eigen::OuterStride<>>;

/// Maps a view `[rows, cols]` to Eigen, so that a layer written with Eigen can read and write it.
template <class T>
[[nodiscard]] EigenMap<T> as_eigen(const MatrixView<T>& view) {
  return {view.data, view.rows, view.cols, Eigen::OuterStride<>(view.stride)};
}

/// Views a row-major Eigen matrix `[rows, cols]`, which must outlive the view.
template <class Derived>
requires(static_cast<bool>(Derived::IsRowMajor))
    [[nodiscard]] auto as_view(Eigen::PlainObjectBase<Derived>& matrix) {
  return dense_view(matrix.data(), matrix.rows(), matrix.cols());
}
/// The same, to be read only.
template <class Derived>
requires(static_cast<bool>(Derived::IsRowMajor))
    [[nodiscard]] auto as_view(const Eigen::PlainObjectBase<Derived>& matrix) {
  return dense_view(matrix.data(), matrix.rows(), matrix.cols());
}
/// A view of a temporary would dangle.
template <class Derived>
void as_view(const Eigen::PlainObjectBase<Derived>&& matrix) = delete;

}  // namespace dllm_cache::inline v0_1
