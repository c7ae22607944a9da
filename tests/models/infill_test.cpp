// SPDX-License-Identifier: Apache-2.0
// Gaps in prompts: the answers of a public sampler, token for token, and its counts.
#include <catch2/catch.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "dllm_cache/decoding/block_schedule.hpp"
#include "tests/support/golden_case.hpp"

using namespace dllm_cache;
using Runner = models::TransformerRunner;
using Json = nlohmann::json;

namespace {

Json read(const char* name) {
  std::ifstream file(golden::folder() / "infill" / name);
  return Json::parse(file);
}

DecodingOptions options_of(const Json& request) {
  DecodingOptions options{.response = request.at("gen_length")};
  options.block_length = request.value("block_length", Index{0});
  options.steps = request.at("steps");
  options.guidance_scale = request.value("cfg_scale", 0.0);
  options.suppress_tokens = request.value("suppress_tokens", std::vector<std::int32_t>());
  options.commit_last = request.value("commit_last", std::vector<std::int32_t>());
  return options;
}

}  // namespace

TEST_CASE("infill: gaps are filled with the reference's tokens", "[golden][gaps]") {
  const auto backend = GENERATE(from_range(golden::backends()));
  const Json cases = read("cases.json").at("cases");
  REQUIRE(cases.size() == 23);
  for (const Json& one : cases) {
    const Json& request = one.at("request");
    CAPTURE(one.at("name"), static_cast<int>(backend));
    Runner runner(
        models::load_model(golden::folder() / "models" / request.at("model").get<std::string>(),
                           {.backend = backend}),
        1);
    DenoisingLoop loop(runner);
    const std::vector<std::int32_t> prompt = request.at("prompt_ids").at(0);
    // Alone, and as one of a batch.
    loop.add(prompt, options_of(request), NoCache{});
    loop.add(std::vector<std::int32_t>{1, 2, 3}, {.response = 4}, NoCache{});
    loop.add(prompt, options_of(request), DllmCachePolicy{1, 1, 0.25});
    loop.run();
    for (const Index id : {0, 2}) {
      const auto tokens = loop.sequence(id).tokens();
      CHECK(std::vector<std::int32_t>(tokens.begin(), tokens.end()) ==
            one.at("sequence").get<std::vector<std::int32_t>>());
    }
  }
}

TEST_CASE("infill: a block's commits are the reference's counts", "[golden][gaps]") {
  const Json counts = read("counts.json").at("counts");
  int compared = 0;
  for (const auto& [steps_text, by_masks] : counts.items())
    for (const auto& [masks_text, expected] : by_masks.items()) {
      const Index steps = std::stol(steps_text);
      Index left = std::stol(masks_text);
      CAPTURE(steps, left);
      std::vector<Index> got;
      for (Index step = 0; step < steps; ++step) {
        const Index count = linear_commits(left, step, steps);
        if (count > 0) got.push_back(count);
        left -= count;
      }
      CHECK(left == 0);
      CHECK(got == expected.get<std::vector<Index>>());
      ++compared;
    }
  CHECK(compared == 192);
}
