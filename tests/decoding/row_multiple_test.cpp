// SPDX-License-Identifier: Apache-2.0
// Rows of zeros behind the keys, as a model asks for them, in whole decoding runs.
#include <catch2/catch.hpp>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/policies/presets.hpp"
#include "tests/support/fake_model.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;

namespace {

constexpr std::uint64_t seed = 2026;

struct PaddedModel : FakeModel<> {
  using FakeModel<>::FakeModel;
  [[nodiscard]] ModelShape shape() const {
    ModelShape padded = FakeModel<>::shape();
    padded.row_multiple = 16;
    return padded;
  }
};

template <class Loop>
std::vector<std::int32_t> response_of(const Loop& loop, Index id) {
  const auto response = loop.sequence(id).response();
  return {response.begin(), response.end()};
}

}  // namespace

TEST_CASE("DenoisingLoop: a model asks for rows of zeros, and gets the same tokens",
          "[denoising_loop][feature_layout]") {
  const std::vector<std::int32_t> prompt{3, 1, 4, 1, 5};
  const std::vector<AnyPolicy> policies{balanced_policy(), balanced_fixed_policy(),
                                        fastest_policy(), exact_policy()};
  for (const double guidance : {0.0, 1.5})
    for (const AnyPolicy& policy : policies) {
      const DecodingOptions options{.response = 14, .block_length = 7, .guidance_scale = guidance};
      FakeModel<> plain(seed);
      PaddedModel padded(seed);
      DenoisingLoop<FakeModel<>> plain_loop(plain);
      DenoisingLoop<PaddedModel> padded_loop(padded);
      const Index of_plain = plain_loop.add(prompt, options, policy);
      const Index of_padded = padded_loop.add(prompt, options, policy);
      for (int step = 0; step < 5; ++step) {
        plain_loop.step();
        padded_loop.step();
      }
      CHECK(padded_loop.cache_bytes(of_padded) > plain_loop.cache_bytes(of_plain));
      // What was begun with the one is finished with the other, and by a fork.
      std::vector<std::byte> snapshot;
      plain_loop.save(of_plain, snapshot);
      const Index restored = padded_loop.restore(snapshot, policy);
      const Index forked = padded_loop.fork(of_padded, 1);
      plain_loop.run();
      padded_loop.run();
      for (const Index id : {of_padded, restored, forked})
        CHECK(response_of(padded_loop, id) == response_of(plain_loop, of_plain));
      CHECK(padded.log.broken_rule.empty());
    }
}
