// SPDX-License-Identifier: Apache-2.0
// Entry point of libFuzzer for the target that the build names.
#include <cstddef>

#include "tests/fuzz/targets.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  dllm_cache::fuzz::DLLM_CACHE_FUZZ_TARGET({data, size});
  return 0;
}
