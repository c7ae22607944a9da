// SPDX-License-Identifier: Apache-2.0
// Nothing of ours allocates in a running generation, models and decoding included.
#include <catch2/catch.hpp>

#include "support/allocation_counter.hpp"
#include "support/golden_case.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;

TEST_CASE("Allocations: a generation allocates nothing after the first step of each kind",
          "[allocation]") {
  // Eigen takes scratch of its own from malloc, which is not counted; oneDNN's objects would be.
  for (const char* name : {"cache-kp4-kr2-rho05", "cfg-interval3-blocks", "dream-kp3-kr4-rho05",
                           "fastdllm-dual-steps16-p24-r32-b16", "dkv-reload4-p24-r32-b32-s32"})
    for (const auto precision : {models::Precision::Float32, models::Precision::Bfloat16}) {
      INFO(name << ", precision " << static_cast<int>(precision));
      const golden::Case golden(name);
      const auto model = models::load_model(
          golden::folder() / "models" / golden.request.at("model").get<std::string>(),
          {models::Backend::Eigen, precision});
      models::TransformerRunner runner(model, 1);
      DenoisingLoop<models::TransformerRunner> loop(runner);
      loop.add(golden.prompt(0), golden.options(), golden.policy());
      for (int step = 0; step < 9; ++step) loop.step();
      Index steps = 0;
      CHECK(allocations([&] {
              while (loop.step()) ++steps;
            }) == 0);
      CHECK(steps > 2);
    }
}
