// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <Eigen/Eigenvalues>

#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "dllm_cache/models/compute/linear.hpp"

namespace dllm_cache::inline v0_1::models {

/// What a layer's rows are verified by in place of their values: the normed row on the first right
/// singular vectors of the value weights, times the singular values, so that products of two rows
/// are those of their values as far as the first vectors go. Source: `load_proxy_projection_from_*`
/// in spac/utils/proxy.py of wenhao728/spa-cache at f26dd1f.
class ValueProjection {
 public:
  ValueProjection() = default;

  /// Of value weights `[kv, width]`, `1 <= rank <= kv`, else std::invalid_argument. Takes the
  /// eigenvectors of the `[kv, kv]` products of their rows: about 10 kv^3 operations. What is
  /// compared does not depend on which basis of their space they are.
  ValueProjection(const Tensor& weight, Index rank, const ComputeOptions& options) {
    using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const Index rows = weight.shape.at(0), cols = weight.shape.at(1);
    if (rank < 1 || rank > rows)
      base::refuse_argument("ComputeOptions: verify_rank must be in [1, kv_width = ", rows,
                            "], got ", rank);
    const std::vector<float> elements = read_floats(weight);
    const Eigen::Map<const Matrix> w(elements.data(), rows, cols);
    const Eigen::MatrixXd squares = (w * w.transpose()).template cast<double>();
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(squares);
    // Ascending: the last ones are the largest.
    const Eigen::MatrixXf first = solver.eigenvectors().rightCols(rank).template cast<float>();
    auto weights = std::make_shared<std::vector<float>>(static_cast<std::size_t>(rank * cols));
    Eigen::Map<Matrix>(weights->data(), rank, cols).noalias() = first.transpose() * w;
    Tensor tensor;
    tensor.name = weight.name + " (projection)";
    tensor.type = TensorType::F32;
    tensor.shape = {rank, cols};
    tensor.bytes = std::as_bytes(std::span<const float>(*weights));
    m_linear = Linear(tensor, nullptr, options);
    m_weights = std::move(weights);
  }

  /// `[rank, width]`.
  [[nodiscard]] const Linear& linear() const { return m_linear; }

 private:
  std::shared_ptr<const std::vector<float>> m_weights;  // products may read them in place
  Linear m_linear;
};

}  // namespace dllm_cache::inline v0_1::models
