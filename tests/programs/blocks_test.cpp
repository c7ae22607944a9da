// SPDX-License-Identifier: Apache-2.0
// Block-causal models, as users of the programs meet them.
#include <catch2/catch.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/support/golden_case.hpp"
#include "tests/support/program_run.hpp"
#include "tests/support/temporary_folder.hpp"

using Catch::Contains;
using dllm_cache::Index;
using dllm_cache::testing::Outcome;
using dllm_cache::testing::read_json;
using dllm_cache::testing::TemporaryFolder;
using Json = nlohmann::json;

namespace {

const golden::Case& sdar() {
  static const golden::Case one("sdar-dynamic-b4-eos");
  return one;
}

struct Session {
  Outcome run(const Json& request, const std::string& options = "") {
    const std::string path = (folder.path() / "request.json").string();
    std::ofstream(path) << request;
    return dllm_cache::testing::run_program(
        DLLM_GENERATE,
        "--model " + (golden::folder() / "models" / request.value("model", "sdar-tiny")).string() +
            " --request " + path + " --threads 1 --quiet --json " +
            (folder.path() / "out.json").string() + " " + options);
  }
  Json answer(const Json& request, const std::string& options = "") {
    const Outcome outcome = run(request, options);
    INFO(outcome.output);
    REQUIRE(outcome.code == 0);
    return read_json(folder.path() / "out.json");
  }
  void refused(const Json& request, const std::string& options, const std::string& part) {
    dllm_cache::testing::check_refusal(run(request, options), "dllm-generate", 2, part);
  }
  TemporaryFolder folder;
};

Json with(Json request, const Json& changes) {
  for (const auto& [key, value] : changes.items()) {
    if (value.is_null())
      request.erase(key);
    else
      request[key] = value;
  }
  return request;
}

}  // namespace

TEST_CASE("programs: a golden request of a block model is answered as it stands", "[blocks]") {
  Session session;
  const Json answer = session.answer(sdar().request);
  CHECK(answer.at("tokens").at(0) == sdar().answer(0));
  CHECK(answer.at("rows").at("flow") == sdar().reference_rows());
  CHECK(answer.at("warnings").empty());
}

TEST_CASE("programs: a block model is decoded by its own loop with the exact cache by default",
          "[blocks]") {
  Session session;
  const Json request = {{"prompt_ids", sdar().request.at("prompt_ids")}, {"gen_length", 12}};
  const Json answer = session.answer(request);
  const Json named = session.answer(with(request, {{"decoder", "sdar"},
                                                   {"attention_block", 4},
                                                   {"block_length", 4},
                                                   {"steps_per_block", 4},
                                                   {"remasking", "low_confidence_dynamic"},
                                                   {"threshold", 0.85},
                                                   {"early_stop", true},
                                                   {"cache_kind", "block"}}));
  CHECK(answer.at("tokens") == named.at("tokens"));
  CHECK(answer.at("rows") == named.at("rows"));
  const Json plain = session.answer(request, "--policy none");
  CHECK(plain.at("tokens") == answer.at("tokens"));
  CHECK(plain.at("rows").at("update").get<Index>() > answer.at("rows").at("update").get<Index>());
  // Another loop of the same model.
  const Json llada = session.answer(request, "--decoder llada --policy none");
  CHECK(llada.at("steps") == 12);
}

TEST_CASE("programs: the audit of an exact block cache finds no other token", "[blocks]") {
  Session session;
  const Json answer = session.answer(sdar().request, "--audit");
  REQUIRE(!answer.at("audit").empty());
  for (const Json& step : answer.at("audit")) {
    CHECK(step.at("rows_differing") == 0);
    CHECK(step.at("largest_error").get<double>() < 1e-4);
  }
}

TEST_CASE("programs: keys that do not go with a loop are refused by name", "[blocks][refusal]") {
  Session session;
  const Json& request = sdar().request;
  session.refused(
      request, "--decoder unheard",
      "decoder must be llada, dream, mdlm, bd3lm, sdar or fastdllm-v2, got \"unheard\"");
  session.refused(
      with(request, {{"steps", 8}}), "",
      "steps does not go with decoder \"sdar\": its blocks have steps_per_block, got 8");
  session.refused(with(request, {{"remasking", "sequential"}}), "",
                  "threshold belongs to remasking low_confidence_dynamic");
  session.refused(with(request, {{"remasking", "random"}}), "",
                  "remasking must be sequential, low_confidence_static or low_confidence_dynamic");
  session.refused(with(request, {{"small_block_length", 3}}), "",
                  "small_block_length must divide attention_block = 4, got 3");
  session.refused(with(request, {{"decoder", "llada"},
                                 {"attention_block", nullptr},
                                 {"remasking", nullptr},
                                 {"steps_per_block", nullptr},
                                 {"block_grid", "prompt_end"}}),
                  "", "block_grid needs an attention_block of at least 1");
  session.refused(with(request, {{"end_token", 3}}), "",
                  "eos_token_ids must be absent beside end_token");
  session.refused(with(request, {{"wanted", 3}}), "", "unknown key \"wanted\"");
  session.refused(with(golden::Case("fdv2-b8-s4-stop").request, {{"cfg_scale", 1.5}}), "",
                  "cfg_scale must be 0 with decoder \"fastdllm-v2\", whose models have no "
                  "unconditional run, got 1.5");
}
