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

// Logits that the reference had at its probe steps.
class Probes {
 public:
  explicit Probes(const Case& golden)
      : m_batch(golden.batch()),
        // First rows of what a probe holds: of the sequence (v2, SDAR) or of the response.
        m_of_response(golden.request.value("block_grid", "") == "prompt_end" ||
                      !golden.request.contains("attention_block")) {
    for (const char* key : {"rows_of_step", "block_of_step"})
      if (const models::Tensor* tensor = golden.expected.find(key)) {
        const auto all = golden::integers(*tensor);
        for (std::size_t step = 0; step < all.size() / 2; ++step)
          m_begins.emplace(static_cast<Index>(step), all[2 * step]);
      }
    for (const Index step : golden.request.at("probe_steps").get<std::vector<Index>>())
      for (const char* prefix : {"logits.step", "logits_unshifted.step"})
        if (const models::Tensor* tensor = golden.expected.find(prefix + std::to_string(step))) {
          m_logits[step] = models::read_floats(*tensor);
          m_vocabulary = tensor->shape.back();
        }
  }

  // Those of the row that predicts, or null where there are none.
  [[nodiscard]] const float* find(const SequenceState& state, Index id, Index predicts) const {
    const auto found = m_logits.find(state.step());
    if (found == m_logits.end() || state.storing()) return nullptr;
    const Index rows = static_cast<Index>(found->second.size()) / m_batch / m_vocabulary;
    const Index first = (m_begins.contains(state.step()) ? m_begins.at(state.step()) : 0) +
                        (m_of_response ? state.prompt_rows() : 0);
    const Index place = predicts - first;
    REQUIRE((place >= 0 && place < rows));
    return found->second.data() + (id * rows + place) * m_vocabulary;
  }

 private:
  Index m_batch;
  bool m_of_response;
  Index m_vocabulary = 0;
  std::map<Index, Index> m_begins;
  std::map<Index, std::vector<float>> m_logits;
};

}  // namespace

TEST_CASE(
    "golden: block models have the reference's tokens before each step and at the end, in as many "
    "rows as must be computed",
    "[golden][blocks]") {
  const auto backend = GENERATE(from_range(golden::backends()));
  const std::vector<std::string> names = all_cases();
  REQUIRE(names.size() == 26);
  Index compared_steps = 0, compared_logits = 0, compared_rows = 0;
  float worst = 0.0F;
  for (const std::string& name : names) {
    INFO(name << ", backend " << static_cast<int>(backend));
    const Case golden(name);
    const auto model = load(golden, backend);
    Runner runner(model, 1);
    const DecodingOptions options = options_of(golden, model->config);
    Loop loop(runner);
    add_all(loop, golden, options, policy_of(golden));
    const Probes probes(golden);
    loop.observer.on_logits = [&](Index id, Index row, std::span<const float> logits) {
      const float* const want =
          probes.find(loop.sequence(id), id, row - model->config.prediction_shift);
      if (want == nullptr) return;
      for (std::size_t i = 0; i < logits.size(); ++i)
        worst = std::max(worst, std::abs(logits[i] - want[i]));
      ++compared_logits;
    };
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
        CHECK(std::equal(tokens.begin(), tokens.end(),
                         expected.begin() + static_cast<std::ptrdiff_t>(next)));
        next += rows;
        ++compared_steps;
      }
    } while (loop.step());
    CHECK(next == expected.size());
    CHECK(answers(loop) == wanted(golden));
    if (golden.reference_rows() == 0) continue;
    Index computed = 0, forwards = 0;
    for (Index i = 0; i < loop.sequences(); ++i) {
      computed += loop.counts(i).rows;
      forwards += loop.forwards(i);
    }
    CHECK(computed == golden.reference_rows());
    CHECK(forwards <= golden.request.at("forwards").get<Index>() - (options.commit_next ? 0 : 1));
    ++compared_rows;
  }
  INFO("worst difference of logits " << worst << ", backend " << static_cast<int>(backend));
  CHECK(worst <= logit_tolerance);
  CHECK(compared_logits > 250);
  CHECK(compared_steps > 300);
  CHECK(compared_rows == 22);
}

TEST_CASE("golden: block models end in the same tokens uncached and unfused", "[golden][blocks]") {
  Index compared = 0;
  for (const std::string& name : all_cases()) {
    INFO(name);
    const Case golden(name);
    const auto model = load(golden, models::ComputeOptions{}.backend);
    DecodingOptions options = options_of(golden, model->config);
    if (options.attention_block == 0 || golden.request.value("use_block_cache", false)) continue;
    Runner runner(model, 1);
    Loop plain(runner);
    add_all(plain, golden, options, NoCache{});
    plain.run();
    CHECK(answers(plain) == wanted(golden));
    options.fuse_blocks = false;
    Loop apart(runner);
    add_all(apart, golden, options, policy_of(golden));
    apart.run();
    CHECK(answers(apart) == wanted(golden));
    ++compared;
  }
  CHECK(compared == 20);
}
