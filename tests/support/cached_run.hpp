// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "dllm_cache/workspace.hpp"
#include "tests/support/counting_layer.hpp"
#include "tests/support/nan_resource.hpp"
#include "tests/support/tiny_model.hpp"

namespace dllm_cache::testing {

/// Hidden states of the rows of one sequence that were in a pass.
template <class Scalar>
struct PassRows {
  std::vector<Index> rows;
  Matrix<Scalar> hidden;  ///< One row an entry of `rows`.
  friend bool operator==(const PassRows& a, const PassRows& b) {
    return a.rows == b.rows && a.hidden.data == b.hidden.data;
  }
};

/// Takes the rows of an open pass from `all` (one matrix [T, d] a sequence), runs every layer over
/// them and says what came out. With a log, layers count and may throw.
template <class Scalar, class Stored, class PassType>
std::vector<PassRows<Scalar>> run_pass(PassType& pass, const TinyModel<Scalar, Stored>& model,
                                       const std::vector<Matrix<Scalar>>& all,
                                       CallLog* log = nullptr, Index stride_padding = 0) {
  const Index width = model.shape().width;
  Matrix<Scalar> storage(pass.row_count(), width + stride_padding);
  const MatrixView<Scalar> x{storage.data.data(), pass.row_count(), width, width + stride_padding};
  for (Index i = 0; i < pass.sequences(); ++i)
    for (std::size_t j = 0; j < pass.rows(i).size(); ++j)
      std::copy_n(all[static_cast<std::size_t>(i)].row(pass.rows(i)[j]), width,
                  x.row(pass.packed(i).begin + static_cast<Index>(j)));
  for (Index number = 0; number < model.shape().layers; ++number) {
    if (log != nullptr)
      pass.layer(
          CountingLayer<TinyLayer<Scalar, Stored>, Scalar, Stored>(model.layer(number), *log), x);
    else
      pass.layer(model.layer(number), x);
  }
  std::vector<PassRows<Scalar>> result;
  for (Index i = 0; i < pass.sequences(); ++i) {
    PassRows<Scalar> in_pass{{pass.rows(i).begin(), pass.rows(i).end()},
                             Matrix<Scalar>(pass.packed(i).size(), width)};
    for (Index j = 0; j < in_pass.hidden.rows; ++j)
      std::copy_n(x.row(pass.packed(i).begin + j), width, in_pass.hidden.row(j));
    result.push_back(std::move(in_pass));
  }
  return result;
}

/// One step of one cache over all rows x [T, d].
template <class Scalar, class Stored>
PassRows<Scalar> run_step(Workspace<Scalar, Stored>& workspace, FeatureCache<Scalar, Stored>& cache,
                          const TinyModel<Scalar, Stored>& model, const Matrix<Scalar>& x,
                          const StepInput& input = {}, CallLog* log = nullptr) {
  auto pass = workspace.begin_step(cache, input);
  return std::move(run_pass(pass, model, {x}, log).front());
}

/// First row of `in_pass` that differs from the same row of `expected` [T, d] in any bit that
/// counts (NaN differs from everything), or none.
template <class Scalar>
std::optional<Index> first_difference(const PassRows<Scalar>& in_pass,
                                      const Matrix<Scalar>& expected) {
  for (Index j = 0; j < in_pass.hidden.rows; ++j) {
    const Index row = in_pass.rows[static_cast<std::size_t>(j)];
    if (row >= expected.rows ||
        !std::equal(expected.row(row), expected.row(row) + expected.cols, in_pass.hidden.row(j)))
      return row;
  }
  return std::nullopt;
}

/// The numbers begin, begin + 1, ..., end - 1.
inline std::vector<Index> range(Index begin, Index end) {
  std::vector<Index> numbers;
  for (Index i = begin; i < end; ++i) numbers.push_back(i);
  return numbers;
}

}  // namespace dllm_cache::testing
