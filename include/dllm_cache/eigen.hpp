// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

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
/// Throws std::length_error for a view too large for a program whose Eigen counts in a smaller type
/// (`EIGEN_DEFAULT_DENSE_INDEX_TYPE`).
template <class T>
[[nodiscard]] EigenMap<T> as_eigen(const MatrixView<T>& view) {
  if constexpr (sizeof(Eigen::Index) < sizeof(Index)) {
    constexpr Index most = std::numeric_limits<Eigen::Index>::max();
    if (view.cols > most || view.stride > most ||
        view.rows > most / std::max<Index>(1, view.stride))
      throw std::length_error("as_eigen: " + std::to_string(view.rows) + " rows of stride " +
                              std::to_string(view.stride) +
                              " are more than EIGEN_DEFAULT_DENSE_INDEX_TYPE can count");
  }
  const auto count = [](Index n) { return static_cast<Eigen::Index>(n); };
  return {view.data, count(view.rows), count(view.cols), Eigen::OuterStride<>(count(view.stride))};
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
