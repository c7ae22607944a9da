// SPDX-License-Identifier: Apache-2.0
// The answers of the public code of caches that look at attention or leave rows out: tokens, rows
// recomputed and what was decided between them.
#include <algorithm>
#include <catch2/catch.hpp>
#include <map>
#include <sstream>
#include <string>

#include "dllm_cache/decoding/decoding_keys.hpp"
#include "tests/support/golden_case.hpp"

using namespace dllm_cache;
using golden::Case;
using Runner = models::TransformerRunner;
using Loop = DenoisingLoop<Runner>;
using Tokens = std::vector<std::int32_t>;

namespace {

std::vector<std::string> all_cases() {
  std::vector<std::string> names;
  for (const char* prefix : {"elastic-", "d2cache-", "sparse-", "dpad-", "streaming-"})
    for (const std::string& name : golden::cases(prefix)) names.push_back(name);
  return names;
}

DecodingOptions options_of(const Case& golden, const models::TransformerConfig& config) {
  OptionValues values;
  for (const OptionInfo& key : decoding_keys())
    if (const auto found = golden.request.find(key.key);
        found != golden.request.end() && !found->is_null())
      values[key.key] = found->is_string() ? found->get<std::string>() : found->dump();
  return decoding_options(values,
                          {.decoder = config.decoder, .attention_block = config.attention_block});
}

Tokens answer(const Loop& loop, Index id) {
  const auto response = loop.sequence(id).response();
  return {response.begin(), response.end()};
}

Index wanted_rows(const Case& golden) {
  return golden.request.at("expected").at("row_layers").get<Index>();
}

}  // namespace

TEST_CASE("golden attention: every case ends in the reference's tokens, of as many rows",
          "[golden]") {
  const auto backend = GENERATE(from_range(golden::backends()));
  const auto names = all_cases();
  REQUIRE(names.size() == 41);
  for (const std::string& name : names) {
    DYNAMIC_SECTION(name << ", backend " << static_cast<int>(backend)) {
      const Case golden(name);
      Runner runner(golden.load(backend), 1);
      Loop loop(runner);
      loop.add(golden.prompt(0), options_of(golden, runner.config()), golden.policy());
      loop.run();
      CHECK(answer(loop, 0) == golden.answer(0));
      CHECK(loop.counts(0).recomputed <= wanted_rows(golden));
    }
  }
}

TEST_CASE(
    "golden attention: the rows of each layer and the tokens before each step are the "
    "reference's",
    "[golden]") {
  Index steps = 0, layers = 0;
  for (const std::string& name : all_cases()) {
    const Case golden(name);
    Runner runner(golden.load(), 1);
    Loop loop(runner);
    loop.add(golden.prompt(0), options_of(golden, runner.config()), golden.policy());
    const std::vector<std::int64_t> before =
        golden::integers(golden.expected.at("tokens_before_step"));
    Index step = 0;
    loop.observer.on_layer = [&](const Loop::PassType& pass, Index layer) {
      const std::string of_step = "step" + std::to_string(step) + ".";
      const models::Tensor* tensor =
          golden.expected.find(of_step + "layer" + std::to_string(layer) + ".recomputed");
      if (tensor == nullptr) tensor = golden.expected.find(of_step + "recomputed");
      if (tensor == nullptr) return;
      const auto rows = pass.recomputed(0);
      INFO(name << " step " << step << " layer " << layer);
      CHECK(std::vector<std::int64_t>(rows.begin(), rows.end()) == golden::integers(*tensor));
      ++layers;
    };
    do {
      const Tokens tokens = answer(loop, 0);
      INFO(name << " before step " << step);
      REQUIRE(static_cast<std::size_t>(step + 1) * tokens.size() <= before.size());
      CHECK(std::equal(tokens.begin(), tokens.end(),
                       before.begin() + step * static_cast<Index>(tokens.size())));
      ++steps;
    } while (loop.step() && ++step > 0);
    CHECK(static_cast<std::size_t>(step + 1) * static_cast<std::size_t>(golden.response()) ==
          before.size());
  }
  CHECK(steps > 700);
  CHECK(layers > 1000);
}

TEST_CASE("golden attention: all cases of a model in one batch give each its own answer",
          "[golden]") {
  std::map<std::string, std::vector<std::string>> by_model;
  for (const std::string& name : all_cases())
    by_model[Case(name).request.at("model").get<std::string>()].push_back(name);
  for (const auto& [model, names] : by_model) {
    const Case first(names.front());
    Runner runner(first.load(), 1);
    Loop loop(runner);
    for (const std::string& name : names) {
      const Case golden(name);
      loop.add(golden.prompt(0), options_of(golden, runner.config()), golden.policy());
    }
    loop.run();
    for (std::size_t i = 0; i < names.size(); ++i) {
      INFO(model << " " << names[i]);
      const Case golden(names[i]);
      CHECK(answer(loop, static_cast<Index>(i)) == golden.answer(0));
      CHECK(loop.counts(static_cast<Index>(i)).recomputed <= wanted_rows(golden));
    }
  }
}

TEST_CASE("golden attention: a run that is saved, restored and cloned in its middle ends alike",
          "[golden]") {
  for (const char* name : {"elastic-", "d2cache-", "sparse-", "dpad-", "streaming-"}) {
    const Case golden(golden::cases(name).front());
    Runner runner(golden.load(), 1);
    const DecodingOptions options = options_of(golden, runner.config());
    Loop loop(runner);
    loop.add(golden.prompt(0), options, golden.policy());
    for (Index step = 0; step < 5; ++step) loop.step();
    std::string bytes;
    {
      std::ostringstream out;
      loop.save(0, SnapshotWriter(out));
      bytes = out.str();
    }
    std::istringstream in(bytes);
    const Index restored = loop.restore(SnapshotReader(in), golden.policy());
    const Index cloned = loop.clone(0, 0);
    loop.run();
    INFO(name);
    for (const Index id : {Index{0}, restored, cloned}) {
      CHECK(answer(loop, id) == golden.answer(0));
      CHECK(loop.counts(id).recomputed == loop.counts(0).recomputed);
    }
  }
}
