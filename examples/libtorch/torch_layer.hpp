// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "dllm_cache/eigen.hpp"
#include "dllm_cache/layer.hpp"

// Everything that is needed to run blocks written with libtorch under the cache: copy this file.
namespace torch_runtime {

using dllm_cache::MatrixView;
using torch::Tensor;

/// Torch's name of an element type.
template <class T>
inline constexpr torch::ScalarType scalar_type =
    std::is_same_v<T, float>             ? torch::kFloat32
    : std::is_same_v<T, double>          ? torch::kFloat64
    : std::is_same_v<T, std::int32_t>    ? torch::kInt32
    : std::is_same_v<T, Eigen::bfloat16> ? torch::kBFloat16
    : std::is_same_v<T, Eigen::half>     ? torch::kFloat16
                                         : torch::ScalarType::Undefined;

/// Tensor `[rows, cols]` over the memory of a view: nothing is copied, what torch writes is in the
/// view. Torch has no read-only tensors: one over a view of const elements must not be written.
template <class T>
[[nodiscard]] Tensor as_tensor(const MatrixView<T>& view) {
  using Element = std::remove_const_t<T>;
  static_assert(scalar_type<Element> != torch::ScalarType::Undefined);
  return torch::from_blob(const_cast<Element*>(view.data), {view.rows, view.cols}, {view.stride, 1},
                          scalar_type<Element>);
}

/// Tensor `[size]` over the memory of a span of numbers; see above.
[[nodiscard]] inline Tensor as_tensor(std::span<const std::int32_t> numbers) {
  return torch::from_blob(const_cast<std::int32_t*>(numbers.data()),
                          {static_cast<std::int64_t>(numbers.size())}, torch::kInt32);
}

/// Rows `[begin, end)` of x that see the same keys `[n, kv]` and values `[n, kv]`, both in place in
/// the cache.
struct TensorSegment {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  Tensor keys;
  Tensor values;
};

/// The three functions of a layer for a block that takes tensors; a light handle on the block.
///
/// The block writes its results where the last arguments are, as torch's own `_out` functions do:
///   void value(const Tensor& x, Tensor v)
///   void query_key(const Tensor& x, const Tensor& positions, Tensor q, Tensor k)
///   void delta(const Tensor& x, const Tensor& q, const std::vector<TensorSegment>&, Tensor u)
/// Shapes are those of dllm_cache::TransformerLayer. No gradients are recorded.
template <class Block>
class TorchLayer {
 public:
  explicit TorchLayer(Block& block) : m_block(&block) {}

  template <class Scalar>
  void value(MatrixView<const Scalar> x, MatrixView<Scalar> v) {
    const c10::InferenceMode inference;
    m_block->value(as_tensor(x), as_tensor(v));
  }

  template <class Scalar>
  void query_key(MatrixView<const Scalar> x, std::span<const std::int32_t> positions,
                 MatrixView<Scalar> q, MatrixView<Scalar> k) {
    const c10::InferenceMode inference;
    m_block->query_key(as_tensor(x), as_tensor(positions), as_tensor(q), as_tensor(k));
  }

  template <class Scalar, class Stored>
  void delta(MatrixView<const Scalar> x, MatrixView<const Scalar> q,
             std::span<const dllm_cache::Segment<Stored>> segments, MatrixView<Scalar> u) {
    const c10::InferenceMode inference;
    std::vector<TensorSegment> tensors;
    tensors.reserve(segments.size());
    for (const auto& segment : segments)
      tensors.push_back(
          {segment.begin, segment.end, as_tensor(segment.keys), as_tensor(segment.values)});
    m_block->delta(as_tensor(x), as_tensor(q), tensors, as_tensor(u));
  }

 private:
  Block* m_block;
};

}  // namespace torch_runtime
