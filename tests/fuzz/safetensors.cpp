// SPDX-License-Identifier: Apache-2.0
#include "dllm_cache/models/checkpoint/safetensors_file.hpp"
#include "programs/text/safetensors_writer.hpp"

#include <stdexcept>

#include "tests/fuzz/memory_file.hpp"

void dllm_cache::fuzz::safetensors(Input input) {
  const MemoryFile file(input);
  allow<std::runtime_error>(file.path(), [&] {
    const models::SafetensorsFile tensors(file.path());
    unsigned sum = 0;
    for (const models::Tensor& one : tensors.tensors()) {
      must(tensors.find(one.name) == &one, "a tensor is found by its name");
      for (const std::byte byte : one.bytes) sum += std::to_integer<unsigned>(byte);
    }
    must(sum <= 255U * input.size(), "tensors lie apart in the file");
  });
}
