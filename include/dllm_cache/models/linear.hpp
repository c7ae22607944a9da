// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "dllm_cache/eigen.hpp"
#include "dllm_cache/models/checkpoint.hpp"
#include "dllm_cache/models/parallel.hpp"
#include "dllm_cache/scalar.hpp"

namespace dllm_cache::models {

/// Writes a tensor's elements `[from, from + count)` as float32; F32, F16 or BF16, else
/// std::runtime_error naming the tensor. Thread safe.
inline void read_floats(const Tensor& tensor, Index from, Index count, float* to) {
  const std::size_t width = bytes_of(tensor.type);
  const std::byte* bytes = tensor.bytes.data() + static_cast<std::size_t>(from) * width;
  // Elements may lie unaligned in a mapped file: they are copied out in small pieces.
  const auto convert = [&]<class T>(T) {
    constexpr Index piece = 256;
    T elements[piece];
    for (Index done = 0; done < count; done += piece) {
      const Index now = std::min(piece, count - done);
      std::memcpy(static_cast<void*>(elements), bytes + static_cast<std::size_t>(done) * width,
                  static_cast<std::size_t>(now) * width);
      dllm_cache::detail::convert_row(elements, to + done, now);
    }
  };
  switch (tensor.type) {
    case TensorType::F32:
      std::memcpy(to, bytes, static_cast<std::size_t>(count) * width);
      return;
    case TensorType::F16:
      convert(Eigen::half{});
      return;
    case TensorType::BF16:
      convert(Eigen::bfloat16{});
      return;
    default:
      throw std::runtime_error("tensor \"" + tensor.name +
                               "\": expected type F32, F16 or BF16, got " +
                               std::string(name_of(tensor.type)));
  }
}

/// All elements of a tensor as float32; see read_floats.
[[nodiscard]] inline std::vector<float> read_floats(const Tensor& tensor) {
  const auto count = static_cast<Index>(tensor.bytes.size() / bytes_of(tensor.type));
  std::vector<float> elements(static_cast<std::size_t>(count));
  read_floats(tensor, 0, count, elements.data());
  return elements;
}

/// A linear map y = x W^T + b whose weights stay as they lie in the checkpoint.
///
/// Float32 weights are used where they are mapped; F16 and BF16 ones are widened to float32 by
/// panels during the product. Products accumulate in float32. Const and shared between threads;
/// the checkpoint's lifetime() must be held as long as it is used.
class Linear {
 public:
  Linear() = default;

  /// Weight `[outputs, inputs]`, bias `[outputs]` or null. Throws std::runtime_error for an element
  /// type other than F32, F16 and BF16.
  Linear(const Tensor& weight, const Tensor* bias)
      : m_weight(weight), m_outputs(weight.shape.at(0)), m_inputs(weight.shape.at(1)) {
    if (bias != nullptr) m_bias = read_floats(*bias);
    float probe = 0.0F;
    read_floats(weight, 0, m_outputs > 0 && m_inputs > 0 ? 1 : 0, &probe);  // refuses other types
    const auto address = reinterpret_cast<std::uintptr_t>(weight.bytes.data());
    if (weight.type == TensorType::F32 && address % alignof(float) == 0)
      m_floats = reinterpret_cast<const float*>(weight.bytes.data());
  }

  [[nodiscard]] Index outputs() const { return m_outputs; }
  [[nodiscard]] Index inputs() const { return m_inputs; }

  /// y `[m, outputs]` = x `[m, inputs]` W^T + b; x and y must not overlap.
  void apply(MatrixView<const float> x, MatrixView<float> y, ThreadTeam& team) const {
    // One large panel a thread where the weights are used in place; panels that stay in the
    // second-level cache while they are widened and used otherwise.
    const Index panel = m_floats != nullptr
                            ? std::max<Index>(64, (m_outputs + team.threads() - 1) / team.threads())
                            : std::clamp<Index>((Index{1} << 17) / m_inputs, 16, 256);
    const double operations = 2.0 * static_cast<double>(x.rows) * static_cast<double>(m_inputs) *
                              static_cast<double>(m_outputs);
    team.for_each((m_outputs + panel - 1) / panel, operations, [&](Index task, auto& scratch) {
      const Index begin = task * panel;
      const Index count = std::min(panel, m_outputs - begin);
      const float* weights = m_floats;
      if (weights != nullptr) {
        weights += begin * m_inputs;
      } else {
        float* widened = scratch.ensure(count * m_inputs);
        read_floats(m_weight, begin * m_inputs, count * m_inputs, widened);
        weights = widened;
      }
      const MatrixView<float> part{y.data + begin, y.rows, count, y.stride};
      as_eigen(part).noalias() =
          as_eigen(x) * as_eigen(dense_view(weights, count, m_inputs)).transpose();
      if (!m_bias.empty())
        as_eigen(part).rowwise() +=
            Eigen::Map<const Eigen::RowVectorXf>(m_bias.data() + begin, count);
    });
  }

 private:
  Tensor m_weight;
  const float* m_floats = nullptr;  // the weights in place, where they are aligned float32
  Index m_outputs = 0;
  Index m_inputs = 0;
  std::vector<float> m_bias;
};

}  // namespace dllm_cache::models
