// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <initializer_list>
#include <variant>
#include <vector>

#include "dllm_cache/models/checkpoint/read_floats.hpp"
#include "dllm_cache/models/compute/backend.hpp"
#include "dllm_cache/models/compute/eigen_weights.hpp"
#include "dllm_cache/models/compute/parallel.hpp"
#include "dllm_cache/models/compute/product_input.hpp"
#include "dllm_cache/models/compute/rounding.hpp"
#if DLLM_CACHE_HAS_ONEDNN
#include "dllm_cache/models/compute/onednn.hpp"
#endif

namespace dllm_cache::inline v0_1::models {

/// A linear map y = x W^T + b with the weights laid out for one backend; see Products. Const and
/// shared between threads; the checkpoint's lifetime() must be held as long as it is used.
class Linear {
 public:
  Linear() = default;

  /// Weight `[outputs, inputs]`, bias `[outputs]` or null. Throws std::runtime_error for an element
  /// type other than F32, F16 and BF16, and std::invalid_argument for a backend that is not built
  /// in.
  Linear(const Tensor& weight, const Tensor* bias, const ComputeOptions& options)
      : m_weights(lay_out(weight, options)),
        m_outputs(weight.shape.at(0)),
        m_inputs(weight.shape.at(1)) {
    if (bias != nullptr) m_bias = read_floats(*bias);
  }

  [[nodiscard]] Index outputs() const { return m_outputs; }
  [[nodiscard]] Index inputs() const { return m_inputs; }
  /// Whether rows are multiplied in bf16; see ProductInput.
  [[nodiscard]] bool multiplies_bf16() const {
#if DLLM_CACHE_HAS_ONEDNN
    const auto* packed = std::get_if<PackedWeights>(&m_weights);
    return packed != nullptr && packed->precision() == Precision::Bfloat16;
#else
    return false;
#endif
  }

 private:
  friend class Products;
#if DLLM_CACHE_HAS_ONEDNN
  using Weights = std::variant<EigenWeights, PackedWeights>;
#else
  using Weights = std::variant<EigenWeights>;
#endif

  static Weights lay_out(const Tensor& weight, const ComputeOptions& options) {
    if (options.backend == Backend::Eigen) return EigenWeights(weight, options.precision);
#if DLLM_CACHE_HAS_ONEDNN
    return PackedWeights(weight, options.precision);
#else
    base::refuse_argument("ComputeOptions: backend must be Eigen, this build has no oneDNN");
#endif
  }

  Weights m_weights;
  Index m_outputs = 0;
  Index m_inputs = 0;
  std::vector<float> m_bias;
};

/// Computes the products of a running model: one small interface over the backends, for one thread.
/// Holds scratch memory, oneDNN's primitives and the count of operations.
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
  [[nodiscard]] static Index padded_rows(Index rows) {
#if DLLM_CACHE_HAS_ONEDNN
    return OneDnnProducts::bucket(rows);
#else
    return rows;
#endif
  }

  /// Each y = x W^T + b. x `[m, inputs]` is dense with memory for padded_rows(m) rows (what the
  /// rows behind m hold does not matter) and overlaps no y.
  void apply(MatrixView<const float> x, std::initializer_list<Output> outputs) {
    const Eigen::bfloat16* rounded = nullptr;
    for (const Output& output : outputs) {
      const bool narrow = output.linear->multiplies_bf16();
      if (narrow && rounded == nullptr) rounded = round(x);
      multiply(x.rows, narrow ? nullptr : x.data, rounded, output);
    }
  }

  /// The same of rows `[m, inputs]` that were made for products. Throws std::invalid_argument where
  /// they are bf16 and a linear map multiplies float, or the other way round; then no y is written.
  void apply(ProductInput& x, std::initializer_list<Output> outputs) {
    for (const Output& output : outputs)
      if (x.narrow() != output.linear->multiplies_bf16())
        base::refuse_argument("Products: narrow must be what the linear map multiplies, ",
                              !x.narrow(), ", got ", x.narrow());
    const float* const floats = x.narrow() ? nullptr : x.floats().data;
    const Eigen::bfloat16* const rounded = x.narrow() ? x.rounded().data : nullptr;
    for (const Output& output : outputs) multiply(x.rows(), floats, rounded, output);
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

  // x is `floats` where it is there, else `rounded`.
  void multiply(Index rows, const float* floats, const Eigen::bfloat16* rounded,
                const Output& output) {
    const Linear& linear = *output.linear;
    if (const auto* weights = std::get_if<EigenWeights>(&linear.m_weights))
      weights->multiply(dense_view(floats, rows, linear.inputs()), output.y, *m_team);
#if DLLM_CACHE_HAS_ONEDNN
    else if (floats != nullptr)
      multiply_packed(std::get<PackedWeights>(linear.m_weights), rows, floats, output);
    else
      multiply_packed(std::get<PackedWeights>(linear.m_weights), rows, rounded, output);
#endif
    static_cast<void>(rounded);
    if (!linear.m_bias.empty())
      as_eigen(output.y).rowwise() += Eigen::Map<const Eigen::RowVectorXf>(
          linear.m_bias.data(), static_cast<Index>(linear.m_bias.size()));
    m_operations += 2.0 * static_cast<double>(rows) * static_cast<double>(linear.inputs()) *
                    static_cast<double>(linear.outputs());
  }

#if DLLM_CACHE_HAS_ONEDNN
  template <class Element>
  void multiply_packed(const PackedWeights& weights, Index rows, const Element* x,
                       const Output& output) {
    const bool dense = output.y.stride == output.y.cols;
    Index done = dense ? OneDnnProducts::rows_in_place(rows) : 0;
    if (dense && output.padded) done = rows;
    if (done > 0)
      m_onednn.multiply(weights, OneDnnProducts::bucket(done), x, output.y.data, m_team->threads());
    if (done == rows) return;
    // y has no room for the rows that fill up a bucket.
    const Index rest = rows - done, width = weights.outputs();
    float* const y = m_result.ensure(OneDnnProducts::bucket(rest) * width);
    m_onednn.multiply(weights, OneDnnProducts::bucket(rest), x + done * weights.inputs(), y,
                      m_team->threads());
    m_team->for_rows(rest, static_cast<double>(rest * width), [&](Index row) {
      std::copy_n(y + row * width, width, output.y.row(done + row));
    });
  }

  OneDnnProducts m_onednn;
  base::Buffer<float> m_result;  // where y has no room for padding
#endif
  ThreadTeam* m_team;
  base::Buffer<Eigen::bfloat16> m_rounded;  // an input in bf16
  double m_operations = 0.0;
};

}  // namespace dllm_cache::inline v0_1::models
