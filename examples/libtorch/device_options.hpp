// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/torch.h>

#include <stdexcept>
#include <string>

namespace torch_runtime {

/// The element type of a name; throws std::invalid_argument.
[[nodiscard]] inline torch::ScalarType type_named(const std::string& name) {
  if (name == "float32") return torch::kFloat32;
  if (name == "bfloat16") return torch::kBFloat16;
  if (name == "float16") return torch::kFloat16;
  throw std::invalid_argument("--dtype: expected float32, bfloat16 or float16, got " + name);
}

}  // namespace torch_runtime
