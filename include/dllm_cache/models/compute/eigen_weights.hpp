// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "dllm_cache/eigen.hpp"
#include "dllm_cache/models/checkpoint/read_floats.hpp"
#include "dllm_cache/models/compute/backend.hpp"
#include "dllm_cache/models/compute/parallel.hpp"
#include "dllm_cache/models/compute/product_input.hpp"

namespace dllm_cache::inline v0_1::models {

/// A weight matrix `[outputs, inputs]` for products with Eigen.
///
/// Float32 weights are used where they are mapped; F16 and BF16 ones are widened to float32 by
/// panels during the product. Const and shared between threads; the checkpoint's lifetime() must be
/// held.
class EigenWeights {
 public:
  EigenWeights() = default;

  /// Precision::Bfloat16 rounds weights that the checkpoint keeps wider. Throws std::runtime_error
  /// for an element type other than F32, F16 and BF16.
  EigenWeights(const Tensor& weight, Precision precision)
      : m_weight(weight), m_outputs(weight.shape.at(0)), m_inputs(weight.shape.at(1)) {
    check_float(weight);
    if (precision == Precision::Bfloat16 && weight.type != TensorType::BF16) round_weights();
    const auto address = reinterpret_cast<std::uintptr_t>(m_weight.bytes.data());
    if (m_weight.type == TensorType::F32 && address % alignof(float) == 0)
      m_floats = reinterpret_cast<const float*>(m_weight.bytes.data());
  }

  [[nodiscard]] Index inputs() const { return m_inputs; }
  /// Whether products read the bytes of the tensor given to the constructor.
  [[nodiscard]] bool reads_tensor() const { return m_rounded == nullptr; }

  /// y `[m, outputs]` = x `[m, inputs]` W^T; x and y must not overlap.
  void multiply(MatrixView<const float> x, MatrixView<float> y, ThreadTeam& team) const {
    const double effort = product_effort(x.rows, m_inputs, m_outputs);
    // One large panel a thread where the weights are used in place; panels that stay in the
    // second-level cache while they are widened and used otherwise.
    const Index threads = team.threads_for(effort);
    const Index panel = m_floats != nullptr
                            ? std::max<Index>(64, (m_outputs + threads - 1) / threads)
                            : std::clamp<Index>((Index{1} << 17) / m_inputs, 16, 256);
    team.for_each((m_outputs + panel - 1) / panel, effort, [&](Index task, Scratch& scratch) {
      const Index begin = task * panel;
      const Index count = std::min(panel, m_outputs - begin);
      const float* weights = m_floats;
      if (weights != nullptr) {
        weights += begin * m_inputs;
      } else {
        float* widened = scratch.floats.ensure(count * m_inputs);
        read_floats(m_weight, begin * m_inputs, count * m_inputs, widened);
        weights = widened;
      }
      const MatrixView<float> part{y.data + begin, y.rows, count, y.stride};
      as_eigen(part).noalias() =
          as_eigen(x) * as_eigen(dense_view(weights, count, m_inputs)).transpose();
    });
  }

 private:
  void round_weights() {
    const Index count = m_outputs * m_inputs;
    auto rounded = std::make_shared<std::vector<Eigen::bfloat16>>(static_cast<std::size_t>(count));
    std::vector<float> row(static_cast<std::size_t>(m_inputs));
    for (Index i = 0; i < m_outputs; ++i) {
      read_floats(m_weight, i * m_inputs, m_inputs, row.data());
      base::convert_row(row.data(), rounded->data() + i * m_inputs, m_inputs);
    }
    m_weight.type = TensorType::BF16;
    m_weight.bytes = std::as_bytes(std::span<const Eigen::bfloat16>(*rounded));
    m_rounded = std::move(rounded);
  }

  Tensor m_weight;
  const float* m_floats = nullptr;  // the weights in place, where they are aligned float32
  std::shared_ptr<const std::vector<Eigen::bfloat16>> m_rounded;  // where m_weight is not mapped
  Index m_outputs = 0;
  Index m_inputs = 0;
};

}  // namespace dllm_cache::inline v0_1::models
