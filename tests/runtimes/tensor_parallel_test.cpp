// SPDX-License-Identifier: Apache-2.0
// One model over 1, 2 and 4 processes: the same tokens, the keys and values divided.
#include <catch2/catch.hpp>

#include "tests/support/golden_case.hpp"
#include "tests/support/program_run.hpp"
#include "tests/support/random_checkpoint.hpp"
#include "tests/support/temporary_folder.hpp"

using namespace dllm_cache;
using golden::Case;
using testing::Outcome;

namespace {

/// The program on `ranks` ranks of this machine, more than it has processors if need be.
std::string on_ranks(int ranks) {
  return DLLM_MPIRUN " -np " + std::to_string(ranks) + " " DLLM_TENSOR_PARALLEL;
}

std::string model_option(const std::string& name) {
  return "--model " + (golden::folder() / "models" / name).string();
}

nlohmann::json answer(int ranks, const std::string& name) {
  const testing::TemporaryFolder folder;
  const auto json = folder / "answer.json";
  const Outcome outcome = testing::run_program(
      on_ranks(ranks), model_option(Case(name).request.at("model")) + " --request " +
                           (golden::folder() / name / "case.json").string() + " --json " +
                           json.string());
  INFO(outcome.output);
  REQUIRE(outcome.code == 0);
  return testing::read_json(json);
}

}  // namespace

TEST_CASE("tensor parallel: golden cases end in the reference's tokens on 1, 2 and 4 ranks",
          "[tensor_parallel]") {
  for (const int ranks : {1, 2, 4})
    for (const std::string name :
         {"cache-kp100-kr7-rho025", "cache-kp50-kr6-rho025-blocks", "cache-half-steps-batch2"}) {
      INFO(name << " on " << ranks);
      const Case golden(name);
      const nlohmann::json result = answer(ranks, name);
      CHECK(result.at("ranks") == ranks);
      for (Index i = 0; i < golden.batch(); ++i)
        CHECK(result.at("tokens").at(static_cast<std::size_t>(i)) == golden.answer(i));
    }
}

TEST_CASE("tensor parallel: six heads run on 2 ranks, and guidance with its second cache on 4",
          "[tensor_parallel]") {
  CHECK(answer(2, "cache-deep-model").at("tokens").at(0) == Case("cache-deep-model").answer(0));
  CHECK(answer(4, "cfg-interval3-blocks").at("tokens").at(0) ==
        Case("cfg-interval3-blocks").answer(0));
}

TEST_CASE("tensor parallel: grouped queries, biases and tied heads run as in one process",
          "[tensor_parallel]") {
  nlohmann::json biased = testing::grouped_llada(), tied = testing::grouped_dream();
  biased["include_bias"] = true;
  tied["tie_word_embeddings"] = true;
  const testing::TemporaryFolder folder;
  const auto request = folder.write(
      "request.json",
      R"({"prompt_ids": [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8]], "gen_length": 16, "cache":
          {"prompt_interval_steps": 8, "gen_interval_steps": 4, "transfer_ratio": 0.25}})");
  for (const nlohmann::json& config : {biased, tied}) {
    INFO(config);
    const auto model = folder / config.at("model_type").get<std::string>();
    const testing::RandomCheckpoint written(model, config);
    const auto tokens = [&](const std::string& program) {
      const auto json = folder / "answer.json";
      const Outcome outcome =
          testing::run_program(program, "--model " + model.string() + " --request " +
                                            request.string() + " --json " + json.string());
      INFO(outcome.output);
      REQUIRE(outcome.code == 0);
      return testing::read_json(json).at("tokens");
    };
    const nlohmann::json expected = tokens(DLLM_GENERATE " --quiet --threads 1");
    CHECK(tokens(on_ranks(2)) == expected);
    CHECK(tokens(on_ranks(4)) == expected);
  }
}

TEST_CASE("tensor parallel: each rank holds the keys and values of its heads only",
          "[tensor_parallel]") {
  const Case golden("cache-kp100-kr7-rho025");
  const models::TransformerConfig config = golden.load(models::Backend::Eigen)->config;
  for (const int ranks : {1, 2, 4}) {
    const nlohmann::json result = answer(ranks, "cache-kp100-kr7-rho025");
    const ModelShape shape{config.layers, config.width, config.query_width() / ranks,
                           config.kv_width() / ranks};
    CHECK(result.at("cache_bytes_per_rank") ==
          FeatureCache<float>::bytes_needed(shape,
                                            {.prompt = static_cast<Index>(golden.prompt(0).size()),
                                             .response = golden.response()},
                                            golden.policy()));
  }
}

TEST_CASE(
    "tensor parallel: what cannot be done is refused with one line, whatever the number of ranks",
    "[tensor_parallel]") {
  const std::string request =
      " --request " + (golden::folder() / "cache-deep-model" / "case.json").string();
  testing::check_refusal(testing::run_program(on_ranks(4), model_option("llada-deep") + request),
                         "tensor_parallel", 2,
                         "the number of ranks must divide attention heads = 6, got 4");
  testing::check_refusal(testing::run_program(on_ranks(2), model_option("none") + request),
                         "tensor_parallel", 1, "expected a folder");
  const testing::TemporaryFolder folder;
  const auto unknown = folder.write("request.json", R"({"prompt_ids": [[3, 3000]]})");
  testing::check_refusal(testing::run_program(on_ranks(2), model_option("llada-deep") +
                                                               " --request " + unknown.string()),
                         "tensor_parallel", 2, "tokens must be in [0, 64), got 3000");
  testing::check_refusal(testing::run_program(on_ranks(2), "--ranks 2"), "tensor_parallel", 2,
                         "--model");
}
