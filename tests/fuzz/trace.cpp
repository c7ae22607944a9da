// SPDX-License-Identifier: Apache-2.0
#include <stdexcept>

#include "programs/show/trace_file.hpp"
#include "tests/fuzz/memory_file.hpp"

void dllm_cache::fuzz::trace(Input input) {
  const MemoryFile file(input);
  allow<std::runtime_error>(file.path(), [&] {
    for (const programs::TraceSequence& one : programs::read_trace(file.path())) {
      const auto size = [](const auto& vector) { return static_cast<Index>(vector.size()); };
      must(size(one.tokens) == (one.steps + 1) * one.response, "tokens of every step");
      must(size(one.actions) == one.forwards * one.layers * one.rows(), "treatments");
      must(size(one.step_of_forward) == one.forwards, "a step a forward");
      must(size(one.similarities) == size(one.verified_places) * one.response, "similarities");
    }
  });
}
