// SPDX-License-Identifier: Apache-2.0
// dllm-generate --audit: an uncached forward beside every step.
#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "dllm_cache/base/matrix_view.hpp"
#include "tests/support/program_run.hpp"
#include "tests/support/temporary_folder.hpp"

using dllm_cache::Index;
using dllm_cache::testing::Outcome;
using dllm_cache::testing::read_json;
using dllm_cache::testing::TemporaryFolder;
using Json = nlohmann::json;

namespace {

const std::string golden = DLLM_CACHE_TEST_DATA;

std::string llada(const std::string& name) {
  return " --model " + golden + "/models/llada-tiny --request " + golden + "/" + name +
         "/case.json ";
}
std::string dream(const std::string& name) {
  return " --model " + golden + "/models/dream-tiny --request " + golden + "/" + name +
         "/case.json ";
}

Json generate(const TemporaryFolder& folder, const std::string& arguments) {
  const auto out = folder.path() / "out.json";
  const Outcome outcome = dllm_cache::testing::run_program(
      DLLM_GENERATE, arguments + " --threads 1 --quiet --json " + out.string());
  INFO(arguments << ": " << outcome.output);
  REQUIRE(outcome.code == 0);
  return read_json(out);
}

}  // namespace

TEST_CASE("dllm-generate --audit: an uncached run has no error at all", "[programs]") {
  const TemporaryFolder folder;
  for (const std::string& run :
       {llada("uncached-blocks"), llada("uncached-batch2-half-steps") + "--features bf16",
        dream("dream-uncached-margin"), llada("uncached-blocks") + "--temperature 1 --seed 2"}) {
    INFO(run);
    const Json audit = generate(folder, run + " --no-cache --audit").at("audit");
    REQUIRE(!audit.empty());
    for (const Json& step : audit) {
      CHECK(step.at("rows") > 0);
      for (const char* error :
           {"largest_error", "mean_error", "rows_differing", "committed_differing"})
        CHECK(step.at(error) == 0);
    }
  }
}

TEST_CASE("dllm-generate --audit: tokens, rows and operations stay as they are", "[programs]") {
  const TemporaryFolder folder;
  for (const std::string& run :
       {llada("cache-half-steps-batch2"), llada("cache-kp100-kr8-rho1") + "--threshold 0.9",
        dream("dream-kp25-kr4-rho025") + "--temperature 1 --top-k 5",
        llada("uncached-blocks") + "--policy dual --features bf16"}) {
    INFO(run);
    Json plain = generate(folder, run);
    Json audited = generate(folder, run + " --audit");
    CHECK(audited.at("audit").size() > 1);
    CHECK(!plain.contains("audit"));
    audited.erase("audit");
    plain.erase("seconds");
    audited.erase("seconds");
    CHECK(audited == plain);
  }
}

TEST_CASE("dllm-generate --audit: every step of every sequence is there, errors add up",
          "[programs]") {
  const TemporaryFolder folder;
  const Json result =
      generate(folder, llada("cache-half-steps-batch2") +
                           "--prompt-interval never --response-interval never --ratio 0 --audit");
  const Json& audit = result.at("audit");
  const auto sequences = result.at("tokens").size();
  REQUIRE(audit.size() == sequences * result.at("steps").get<std::size_t>());
  Index committed = 0, rows = 0, differing = 0;
  for (std::size_t i = 0; i < audit.size(); ++i) {
    const Json& step = audit[i];
    CHECK(step.at("sequence") == i % sequences);
    CHECK(step.at("step") == i / sequences);
    if (step.at("step") == 0) CHECK(step.at("largest_error") == 0);  // a plain forward
    CHECK(step.at("mean_error") <= step.at("largest_error"));
    CHECK(step.at("rows_differing") <= step.at("rows"));
    CHECK(step.at("committed_differing") <= step.at("committed"));
    CHECK(step.at("committed_differing") <= step.at("rows_differing"));
    committed += step.at("committed").get<Index>();
    rows += step.at("rows").get<Index>();
    differing += step.at("rows_differing").get<Index>();
  }
  CHECK(committed == static_cast<Index>(sequences * result.at("tokens").at(0).size()));
  CHECK(rows == result.at("rows").at("head"));
  CHECK(differing > 0);
}

TEST_CASE("dllm-generate --audit: the table fits into 80 columns, guidance is refused",
          "[programs]") {
  const Outcome outcome = dllm_cache::testing::run_program(
      DLLM_GENERATE, llada("cache-kp100-kr7-rho025") + "--threads 1 --audit");
  CHECK(outcome.code == 0);
  CHECK(outcome.output.find("largest error") != std::string::npos);
  std::istringstream text(outcome.output.substr(outcome.output.find(" step ")));
  for (std::string line; std::getline(text, line);) CHECK(line.size() <= 80);
  dllm_cache::testing::check_refusal(
      dllm_cache::testing::run_program(DLLM_GENERATE, llada("cfg-interval4") + "--audit"),
      "dllm-generate", 2, "cfg_scale");
}
