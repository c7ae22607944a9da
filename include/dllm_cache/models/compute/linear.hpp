// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <initializer_list>
#include <variant>
#include <vector>

#include "dllm_cache/models/checkpoint/read_floats.hpp"
#include "dllm_cache/models/compute/backend.hpp"
#include "dllm_cache/models/compute/backends.hpp"
#include "dllm_cache/models/compute/parallel.hpp"
#include "dllm_cache/models/compute/product_input.hpp"
#include "dllm_cache/models/compute/rounding.hpp"

namespace dllm_cache::inline v0_1::models {

/// A linear map y = x W^T + b with the weights laid out for one backend; see Products. Const and
/// shared between threads; the checkpoint's lifetime() must be held as long as it is used.
class Linear {
 public:
  Linear() = default;

  /// Weight `[outputs, inputs]`, bias `[outputs]` or null. Throws std::runtime_error for an element
  /// type other than F32, F16 and BF16, and std::invalid_argument where can_compute() is false.
  Linear(const Tensor& weight, const Tensor* bias, const ComputeOptions& options)
      : m_weights(detail::Backends::lay_out(weight, options)),
        m_narrow(models::multiplies_bf16(options)),
        m_outputs(weight.shape.at(0)),
        m_inputs(weight.shape.at(1)) {
    if (bias != nullptr) m_bias = read_floats(*bias);
  }

  [[nodiscard]] Index outputs() const { return m_outputs; }
  [[nodiscard]] Index inputs() const { return m_inputs; }
  /// Whether rows are multiplied in bf16; see ProductInput.
  [[nodiscard]] bool multiplies_bf16() const { return m_narrow; }
  /// Whether products read the bytes of the weight's tensor, which must then be kept.
  [[nodiscard]] bool reads_tensor() const {
    return std::visit([](const auto& weights) { return weights.reads_tensor(); }, m_weights);
  }

 private:
  friend class Products;

  detail::Backends::Weights m_weights;
  bool m_narrow = false;
  Index m_outputs = 0;
  Index m_inputs = 0;
  std::vector<float> m_bias;
};

/// Computes the products of a running model: one small interface over the backends, for one thread.
/// Holds scratch memory, what the backends keep between calls and the count of operations.
class Products {
 public:
  /// One product of several with the same input.
  struct Output {
    const Linear* linear;
    MatrixView<float> y;  ///< `[m, outputs]`
    /// Whether y is dense and may be written up to padded_rows(m) rows.
    bool padded = false;
  };

  explicit Products(ThreadTeam& team) : m_team(&team) {}

  /// Rows for which the inputs of products (and padded outputs) need memory.
  [[nodiscard]] static Index padded_rows(Index rows) { return detail::Backends::padded_rows(rows); }

  /// Each y = x W^T + b. x `[m, inputs]` is dense with memory for padded_rows(m) rows (what the
  /// rows behind m hold does not matter) and overlaps no y.
  void apply(MatrixView<const float> x, std::initializer_list<Output> outputs) {
    const Eigen::bfloat16* rounded = nullptr;
    for (const Output& output : outputs) {
      const bool narrow = output.linear->multiplies_bf16();
      if (narrow && rounded == nullptr) rounded = round(x);
      multiply({x.rows, narrow ? nullptr : x.data, rounded}, output);
    }
  }

  /// The same of rows `[m, inputs]` that were made for products. Throws std::invalid_argument where
  /// they are bf16 and a linear map multiplies float, or the other way round; then no y is written.
  void apply(ProductInput& x, std::initializer_list<Output> outputs) {
    for (const Output& output : outputs)
      if (x.narrow() != output.linear->multiplies_bf16())
        base::refuse_argument("Products: narrow must be what the linear map multiplies, ",
                              !x.narrow(), ", got ", x.narrow());
    const ProductRows rows = x.product_rows();
    for (const Output& output : outputs) multiply(rows, output);
  }

  /// 2 m n k of every product so far.
  [[nodiscard]] double operations() const { return m_operations; }

 private:
  const Eigen::bfloat16* round(MatrixView<const float> x) {
    Eigen::bfloat16* const rounded = m_rounded.ensure(padded_rows(x.rows) * x.cols);
    m_team->for_rows(x.rows, static_cast<double>(x.rows * x.cols), [&](Index row) {
      detail::round_row(x.row(row), rounded + row * x.cols, x.cols);
    });
    return rounded;
  }

  void multiply(const ProductRows& x, const Output& output) {
    const Linear& linear = *output.linear;
    detail::Backends::multiply(m_backends, linear.m_weights, x, output.y, output.padded, *m_team);
    if (!linear.m_bias.empty())
      as_eigen(output.y).rowwise() += Eigen::Map<const Eigen::RowVectorXf>(
          linear.m_bias.data(), static_cast<Index>(linear.m_bias.size()));
    m_operations += 2.0 * static_cast<double>(x.rows) * static_cast<double>(linear.inputs()) *
                    static_cast<double>(linear.outputs());
  }

  ThreadTeam* m_team;
  detail::Backends::Products m_backends;
  base::Buffer<Eigen::bfloat16> m_rounded;  // an input in bf16
  double m_operations = 0.0;
};

}  // namespace dllm_cache::inline v0_1::models
