// SPDX-License-Identifier: Apache-2.0
// The answers of the public references of dense block models, token for token.
#include <algorithm>
#include <catch2/catch.hpp>
#include <map>
#include <numeric>
#include <string>

#include "dllm_cache/decoding/decoding_keys.hpp"
#include "tests/support/golden_case.hpp"

using namespace dllm_cache;
using golden::Case;
using Runner = models::TransformerRunner;
using Loop = DenoisingLoop<Runner>;
using Tokens = std::vector<std::int32_t>;

namespace {

constexpr float logit_tolerance = 2e-4F;  // float32 sums in another order, logits of size 10

std::vector<std::string> all_cases() {
  std::vector<std::string> names;
  for (const char* prefix : {"bd3lm-", "mdlm-", "qwen2-", "sdar-", "fdv2-"})
    for (const std::string& name : golden::cases(prefix)) names.push_back(name);
  return names;
}

std::shared_ptr<const models::TransformerModel> load(const Case& golden, models::Backend backend) {
  return models::load_model(
      golden::folder() / "models" / golden.request.at("model").get<std::string>(),
      {.backend = backend},
      {.mask = golden.request.at("mask_token_id").get<std::int32_t>(),
       .end = golden.request.at("eos_token_ids").get<Tokens>(),
       .end_alone = true});
}

// What the request says, by its own keys.
DecodingOptions options_of(const Case& golden, const models::TransformerConfig& config) {
  OptionValues values;
  for (const OptionInfo& key : decoding_keys())
    if (const auto found = golden.request.find(key.key); found != golden.request.end())
      values[key.key] = found->is_string() ? found->get<std::string>() : found->dump();
  return decoding_options(values,
                          {.decoder = config.decoder, .attention_block = config.attention_block});
}

AnyPolicy policy_of(const Case& golden) {
  if (golden.request.value("cache_kind", "none") == "none") return NoCache{};
  return BlockCachePolicy{golden.request.value("use_block_cache", false)};
}

bool is_exact(const Case& golden) { return !golden.request.value("use_block_cache", false); }

void add_all(Loop& loop, const Case& golden, DecodingOptions options, const AnyPolicy& policy) {
  for (Index i = 0; i < golden.batch(); ++i) loop.add(golden.prompt(i), options, policy);
}

std::vector<Tokens> answers(const Loop& loop) {
  std::vector<Tokens> all;
  for (Index i = 0; i < loop.sequences(); ++i) {
    const auto response = loop.sequence(i).response();
    all.emplace_back(response.begin(), response.end());
  }
  return all;
}

std::vector<Tokens> wanted(const Case& golden) {
  std::vector<Tokens> all;
  for (Index i = 0; i < golden.batch(); ++i) all.push_back(golden.answer(i));
  return all;
}

}  // namespace

TEST_CASE("golden: block models end in the reference's tokens, cached, uncached and unfused",
          "[golden][blocks]") {
  const auto backend = GENERATE(from_range(golden::backends()));
  const std::vector<std::string> names = all_cases();
  REQUIRE(names.size() == 26);
  for (const std::string& name : names) {
    INFO(name << ", backend " << static_cast<int>(backend));
    const Case golden(name);
    const auto model = load(golden, backend);
    Runner runner(model, 1);
    DecodingOptions options = options_of(golden, model->config);
    Loop cached(runner);
    add_all(cached, golden, options, policy_of(golden));
    cached.run();
    CHECK(answers(cached) == wanted(golden));
    if (options.attention_block == 0 || !is_exact(golden)) continue;
    Loop plain(runner);
    add_all(plain, golden, options, NoCache{});
    plain.run();
    CHECK(answers(plain) == wanted(golden));
    options.fuse_blocks = false;
    Loop apart(runner);
    add_all(apart, golden, options, policy_of(golden));
    apart.run();
    CHECK(answers(apart) == wanted(golden));
  }
}

TEST_CASE("golden: block models have the reference's tokens before each step", "[golden][blocks]") {
  Index compared = 0;
  for (const std::string& name : all_cases()) {
    const Case golden(name);
    const auto model = load(golden, models::Backend::Eigen);
    Runner runner(model, 1);
    Loop loop(runner);
    add_all(loop, golden, options_of(golden, model->config), policy_of(golden));
    const models::Tensor& tensor = golden.expected.at("tokens_before_step");
    const std::vector<std::int64_t> expected = golden::integers(tensor);
    const auto rows = static_cast<std::size_t>(tensor.shape.at(2));
    std::size_t next = 0;
    do {
      // A forward that only stores is no step.
      if (loop.sequence(0).storing() || loop.finished()) continue;
      for (Index i = 0; i < golden.batch(); ++i) {
        const auto tokens = loop.sequence(i).tokens().subspan(
            static_cast<std::size_t>(loop.sequence(i).prompt_rows()), rows);
        REQUIRE(next + rows <= expected.size());
        INFO(name << " sequence " << i << " step " << loop.sequence(i).step());
        CHECK(std::equal(tokens.begin(), tokens.end(),
                         expected.begin() + static_cast<std::ptrdiff_t>(next)));
        next += rows;
        ++compared;
      }
    } while (loop.step());
    INFO(name);
    CHECK(next == expected.size());
  }
  CHECK(compared > 300);
}

TEST_CASE("golden: logits of block models at probe steps are the reference's", "[golden][blocks]") {
  const auto backend = GENERATE(from_range(golden::backends()));
  Index compared = 0;
  float worst = 0.0F;
  for (const std::string& name : all_cases()) {
    const Case golden(name);
    const auto model = load(golden, backend);
    Runner runner(model, 1);
    Loop loop(runner);
    add_all(loop, golden, options_of(golden, model->config), policy_of(golden));
    const Index shift = model->config.prediction_shift;
    // First rows of what a probe holds: of the sequence (v2, SDAR) or of the response.
    const bool of_response = golden.request.value("block_grid", "") == "prompt_end" ||
                             !golden.request.contains("attention_block");
    std::map<Index, Index> begins;
    for (const char* key : {"rows_of_step", "block_of_step"})
      if (const models::Tensor* tensor = golden.expected.find(key)) {
        const auto all = golden::integers(*tensor);
        for (std::size_t step = 0; step < all.size() / 2; ++step)
          begins.emplace(static_cast<Index>(step), all[2 * step]);
      }
    const std::string prefix = shift > 0 ? "logits_unshifted.step" : "logits.step";
    std::map<Index, std::vector<float>> expected;
    for (const Index step : golden.request.at("probe_steps").get<std::vector<Index>>())
      expected[step] = models::read_floats(golden.expected.at(prefix + std::to_string(step)));
    loop.observer.on_logits = [&](Index id, Index row, std::span<const float> logits) {
      const SequenceState& state = loop.sequence(id);
      const auto found = expected.find(state.step());
      if (found == expected.end() || state.storing()) return;
      const Index rows =
          static_cast<Index>(found->second.size()) / golden.batch() / runner.vocabulary();
      const Index first = (begins.contains(state.step()) ? begins.at(state.step()) : 0) +
                          (of_response ? state.prompt_rows() : 0);
      const Index place = row - shift - first;
      REQUIRE((place >= 0 && place < rows));
      const float* want = found->second.data() + (id * rows + place) * runner.vocabulary();
      for (std::size_t i = 0; i < logits.size(); ++i)
        worst = std::max(worst, std::abs(logits[i] - want[i]));
      ++compared;
    };
    loop.run();
  }
  INFO("worst difference " << worst << ", backend " << static_cast<int>(backend));
  CHECK(worst <= logit_tolerance);
  CHECK(compared > 250);
}

TEST_CASE("golden: block models take as many rows as must be computed, in fewer forwards",
          "[golden][blocks]") {
  Index compared = 0;
  for (const std::string& name : all_cases()) {
    const Case golden(name);
    if (golden.reference_rows() == 0) continue;
    const auto model = load(golden, models::Backend::Eigen);
    Runner runner(model, 1);
    Loop loop(runner);
    const DecodingOptions options = options_of(golden, model->config);
    add_all(loop, golden, options, policy_of(golden));
    loop.run();
    Index rows = 0, forwards = 0;
    for (Index i = 0; i < loop.sequences(); ++i) {
      rows += loop.counts(i).rows;
      forwards += loop.forwards(i);
    }
    INFO(name);
    CHECK(rows == golden.reference_rows());
    CHECK(forwards <= golden.request.at("forwards").get<Index>() - (options.commit_next ? 0 : 1));
    ++compared;
  }
  CHECK(compared == 22);
}
