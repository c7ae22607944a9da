// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <initializer_list>
#include <variant>
#include <vector>

#include "dllm_cache/models/backend.hpp"
#include "dllm_cache/models/eigen_weights.hpp"
#include "dllm_cache/models/parallel.hpp"
#include "dllm_cache/models/read_floats.hpp"
#include "dllm_cache/models/rounding.hpp"
#if DLLM_CACHE_HAS_ONEDNN
#include "dllm_cache/models/onednn.hpp"
#endif

namespace dllm_cache::models {

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
    dllm_cache::detail::refuse_argument(
        "ComputeOptions: backend must be Eigen, this build has no oneDNN");
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
    bool converted = false;
    for (const Output& output : outputs) {
      const Linear& linear = *output.linear;
      if (const auto* weights = std::get_if<EigenWeights>(&linear.m_weights))
        weights->multiply(x, output.y, *m_team);
#if DLLM_CACHE_HAS_ONEDNN
      else
        multiply_packed(std::get<PackedWeights>(linear.m_weights), x, output, converted);
#endif
      if (!linear.m_bias.empty())
        as_eigen(output.y).rowwise() += Eigen::Map<const Eigen::RowVectorXf>(
            linear.m_bias.data(), static_cast<Index>(linear.m_bias.size()));
      m_operations += 2.0 * static_cast<double>(x.rows) * static_cast<double>(linear.inputs()) *
                      static_cast<double>(linear.outputs());
    }
    static_cast<void>(converted);
  }

  /// 2 m n k of every product so far.
  [[nodiscard]] double operations() const { return m_operations; }

 private:
#if DLLM_CACHE_HAS_ONEDNN
  void multiply_packed(const PackedWeights& weights, MatrixView<const float> x,
                       const Output& output, bool& converted) {
    const Index rows = OneDnnProducts::bucket(x.rows);
    const void* input = x.data;
    if (weights.precision() == Precision::Bfloat16) {
      Eigen::bfloat16* rounded = m_rounded.ensure(rows * x.cols);
      if (!converted)
        m_team->for_rows(x.rows, static_cast<double>(x.rows * x.cols), [&](Index row) {
          detail::round_row(x.row(row), rounded + row * x.cols, x.cols);
        });
      converted = true;
      input = rounded;
    }
    const bool direct =
        output.y.stride == output.y.cols && (output.padded || rows == output.y.rows);
    float* y = direct ? output.y.data : m_result.ensure(rows * weights.outputs());
    m_onednn.multiply(weights, rows, input, y, m_team->threads());
    if (direct) return;
    m_team->for_rows(x.rows, static_cast<double>(x.rows * weights.outputs()), [&](Index row) {
      std::copy_n(y + row * weights.outputs(), weights.outputs(), output.y.row(row));
    });
  }

  OneDnnProducts m_onednn;
  dllm_cache::detail::Buffer<Eigen::bfloat16> m_rounded;  // the input in bf16
  dllm_cache::detail::Buffer<float> m_result;             // where y has no room for padding
#endif
  ThreadTeam* m_team;
  double m_operations = 0.0;
};

}  // namespace dllm_cache::models
