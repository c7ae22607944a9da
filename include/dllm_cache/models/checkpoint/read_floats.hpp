// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "dllm_cache/base/scalar.hpp"
#include "dllm_cache/models/checkpoint/tensor.hpp"

namespace dllm_cache::inline v0_1::models {

/// Refuses a tensor that is not F32, F16 or BF16 with std::runtime_error naming it.
inline void check_float(const Tensor& tensor) {
  if (!is_float(tensor.type))
    throw std::runtime_error("tensor \"" + tensor.name +
                             "\": expected type F32, F16 or BF16, got " +
                             std::string(name_of(tensor.type)));
}

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
      base::convert_row(elements, to + done, now);
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
      check_float(tensor);  // throws
  }
}

/// All elements of a tensor as float32; see read_floats.
[[nodiscard]] inline std::vector<float> read_floats(const Tensor& tensor) {
  const auto count = static_cast<Index>(tensor.bytes.size() / bytes_of(tensor.type));
  std::vector<float> elements(static_cast<std::size_t>(count));
  read_floats(tensor, 0, count, elements.data());
  return elements;
}

}  // namespace dllm_cache::inline v0_1::models
