// SPDX-License-Identifier: Apache-2.0
// Nothing of ours allocates in a running generation, models and decoding included.
#include <catch2/catch.hpp>
#include <cmath>
#include <vector>

#include "tests/support/allocation_counter.hpp"
#include "tests/support/golden_case.hpp"

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

TEST_CASE("RotaryEmbedding: positions outside its table turn alike and allocate nothing later",
          "[allocation]") {
  const std::vector<std::int32_t> positions{-3, 5, (1 << 20) + 1};
  models::ThreadTeam team(1);
  models::RotaryEmbedding rotary(4, 100.0);
  std::vector<float> x(24);
  const auto turn = [&] {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 8) - 3.0F;
    rotary.apply(positions, dense_view(x.data(), 3, 8), team);
  };
  turn();
  CHECK(allocations(turn) == 0);
  for (std::size_t row = 0; row < 3; ++row)
    for (std::size_t head = 0; head < 2; ++head)
      for (std::size_t i = 0; i < 2; ++i) {
        CAPTURE(row, head, i);
        const float angle = static_cast<float>(positions[row]) * (i == 0 ? 1.0F : 0.1F);
        const float low = static_cast<float>(4 * head + i) - 3.0F, high = low + 2.0F;
        const std::size_t at = 8 * row + 4 * head + i;
        CHECK(x[at] == Approx(low * std::cos(angle) - high * std::sin(angle)).margin(1e-5));
        CHECK(x[at + 2] == Approx(high * std::cos(angle) + low * std::sin(angle)).margin(1e-5));
      }
}
