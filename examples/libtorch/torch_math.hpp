// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/torch.h>
#include <torch/version.h>

#include <cmath>
#include <cstdint>

#include "dllm_cache/models/compute/head_shape.hpp"

// The arithmetic of LLaDA and Dream in libtorch, on any device and in any element type.
namespace torch_runtime {

using torch::Tensor;

/// A weight `[outputs, inputs]` and a bias `[outputs]`, undefined where there is none.
struct Projection {
  Tensor weight, bias;
  /// x `[m, inputs]` -> `[m, outputs]`.
  [[nodiscard]] Tensor operator()(const Tensor& x) const { return torch::linear(x, weight, bias); }
  /// The same, written to y `[m, outputs]`.
  void write(const Tensor& x, Tensor y) const { torch::linear_out(y, x, weight, bias); }
};

/// Root-mean-square norm of the rows of x `[m, d]`, in float32, with a weight `[d]`.
[[nodiscard]] inline Tensor rms_norm(const Tensor& x, const Tensor& weight, double epsilon) {
  const Tensor wide = x.to(torch::kFloat32);
  return (wide * torch::rsqrt(wide.square().mean(-1, true) + epsilon)).to(x.scalar_type()) * weight;
}

/// Cosines and sines of what rows are turned by, `[m, 1, head_dim / 2]` each.
struct Turn {
  Tensor cosine, sine;
};

/// Angles that a row is turned by from one position to the next, `[head_dim / 2]`.
[[nodiscard]] inline Tensor rotary_frequencies(std::int64_t head_dim, double theta) {
  const Tensor even = torch::arange(0, head_dim, 2, torch::kFloat32);
  return torch::pow(theta, even / static_cast<double>(head_dim)).reciprocal();
}

/// What rows at the positions `[m]` are turned by.
[[nodiscard]] inline Turn turn_of(const Tensor& positions, const Tensor& frequencies) {
  const Tensor angles = torch::outer(positions.to(torch::kFloat32), frequencies).unsqueeze(1);
  return {angles.cos(), angles.sin()};
}

/// Turns the halves of each head in x `[m, heads * head_dim]`, in place and in float32.
inline void rotate(const Tensor& x, const Turn& turn) {
  const Tensor halves = x.view({x.size(0), -1, 2, turn.cosine.size(2)});
  const Tensor wide = halves.to(torch::kFloat32);
  const Tensor low = wide.select(2, 0), high = wide.select(2, 1);
  halves.copy_(torch::stack(
      {low * turn.cosine - high * turn.sine, high * turn.cosine + low * turn.sine}, 2));
}

/// Attention of q `[m, heads * head_dim]` over keys and values `[n, kv]` -> like q; mask `[m, n]`
/// is true where a key is seen, undefined: everywhere.
///
/// Only queries are laid out anew. `view` never copies: keys and values are read where they lie,
/// and those stored in another type than the queries' are widened.
[[nodiscard]] inline Tensor attend(const Tensor& q, const Tensor& keys, const Tensor& values,
                                   const Tensor& mask, const dllm_cache::models::HeadShape& shape) {
  const std::int64_t rows = q.size(0), dim = shape.head_dim, kv_heads = shape.kv_heads,
                     group = shape.heads / kv_heads;
  const auto heads_of = [&](const Tensor& kept) {  // [kv_heads, n, dim]
    return kept.to(q.scalar_type()).view({kept.size(0), kv_heads, dim}).transpose(0, 1);
  };
  // The queries of a group are rows over the one key head that they share.
  const Tensor queries = q.view({rows, kv_heads, group, dim})
                             .permute({1, 2, 0, 3})
                             .reshape({kv_heads, group * rows, dim});
  const Tensor seen = mask.defined() ? mask.repeat({group, 1}) : Tensor();
  // libtorch 2.0 has this function, too, which copied keys or values there, on the processor.
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 2)
  const Tensor a = queries.unsqueeze(0), b = heads_of(keys).unsqueeze(0),
               c = heads_of(values).unsqueeze(0);
  const Tensor mixed = seen.defined() ? at::scaled_dot_product_attention(a, b, c, seen)
                                      : at::scaled_dot_product_attention(a, b, c);
#else
  Tensor scores =
      torch::bmm(queries / std::sqrt(static_cast<double>(dim)), heads_of(keys).transpose(1, 2));
  if (seen.defined()) scores = scores.masked_fill(seen.logical_not(), -INFINITY);
  const Tensor mixed =
      torch::bmm(torch::softmax(scores, -1, torch::kFloat32).to(q.scalar_type()), heads_of(values));
#endif
  return mixed.reshape({kv_heads, group, rows, dim})
      .permute({2, 0, 1, 3})
      .reshape({rows, kv_heads * group * dim});
}

}  // namespace torch_runtime
