// SPDX-License-Identifier: Apache-2.0
// One model over 1, 2 and 4 processes: the same tokens, the keys and values divided.
#include <catch2/catch.hpp>

#include "support/golden_case.hpp"
#include "support/program_run.hpp"
#include "support/temporary_folder.hpp"

using namespace dllm_cache;
using golden::Case;
using testing::Outcome;

namespace {

/// Runs the program on `ranks` ranks of this machine, more than it has processors if need be.
Outcome run_ranks(int ranks, const std::string& arguments) {
  // Without the second option ranks that wait would keep processors from those that work.
  return testing::run_program(DLLM_MPIRUN,
                              "--allow-run-as-root --oversubscribe --mca mpi_yield_when_idle 1 "
                              "--bind-to none --quiet -np " +
                                  std::to_string(ranks) + " " DLLM_TENSOR_PARALLEL " " + arguments);
}

std::string model_option(const std::string& name) {
  return "--model " + (golden::folder() / "models" / name).string();
}

nlohmann::json answer(int ranks, const std::string& name, const std::string& options = "") {
  const testing::TemporaryFolder folder;
  const auto json = folder / "answer.json";
  const Outcome outcome =
      run_ranks(ranks, model_option(Case(name).request.at("model")) + " --request " +
                           (golden::folder() / name / "case.json").string() + " --json " +
                           json.string() + " " + options);
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

TEST_CASE("tensor parallel: six heads run on 2 ranks, with guidance on 4 a second cache each",
          "[tensor_parallel]") {
  CHECK(answer(2, "cache-deep-model").at("tokens").at(0) == Case("cache-deep-model").answer(0));
  CHECK(answer(4, "cfg-interval3-blocks").at("tokens").at(0) ==
        Case("cfg-interval3-blocks").answer(0));
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

TEST_CASE("tensor parallel: a number of ranks that does not divide the heads is refused once",
          "[tensor_parallel]") {
  const std::string request =
      " --request " + (golden::folder() / "cache-deep-model" / "case.json").string();
  testing::check_refusal(run_ranks(4, model_option("llada-deep") + request), "tensor_parallel", 2,
                         "the number of ranks must divide attention heads = 6, got 4");
  testing::check_refusal(run_ranks(2, model_option("none") + request), "tensor_parallel", 1,
                         "expected a folder");
  testing::check_refusal(run_ranks(2, "--ranks 2"), "tensor_parallel", 2, "--");
}
