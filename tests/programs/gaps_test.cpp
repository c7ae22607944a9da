// SPDX-License-Identifier: Apache-2.0
// Gaps, special tokens and odd use, as users of the programs meet them.
#include <algorithm>
#include <catch2/catch.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "dllm_cache/models/checkpoint/safetensors_file.hpp"
#include "tests/support/golden_case.hpp"
#include "tests/support/program_run.hpp"
#include "tests/support/temporary_folder.hpp"
#include "tests/support/text_model.hpp"

using Catch::Contains;
using dllm_cache::Index;
using dllm_cache::testing::Outcome;
using dllm_cache::testing::read_json;
using dllm_cache::testing::TemporaryFolder;
using dllm_cache::testing::TextModel;
using Json = nlohmann::json;

namespace {

constexpr std::int32_t mask = 95;  // of the tiny model

// A request to the tiny model, or to a copy of it with another config.json.
struct Session {
  [[nodiscard]] std::string path(const std::string& name) const {
    return (folder.path() / name).string();
  }
  // Changes keys of the model's config.json; null takes one away.
  void change_config(const Json& changes) {
    if (model == golden::folder() / "models" / "llada-tiny") {
      std::filesystem::copy(model, folder.path() / "model");
      model = folder.path() / "model";
    }
    Json config = read_json(model / "config.json");
    for (const auto& [key, value] : changes.items()) {
      if (value.is_null())
        config.erase(key);
      else
        config[key] = value;
    }
    std::ofstream(model / "config.json") << config;
  }
  Outcome run(const Json& request, const std::string& options = "") {
    std::ofstream(path("request.json")) << request;
    return dllm_cache::testing::run_program(
        DLLM_GENERATE, "--model " + model.string() + " --request " + path("request.json") +
                           " --threads 1 --quiet --json " + path("out.json") + " " + options);
  }
  Json answer(const Json& request, const std::string& options = "") {
    const Outcome outcome = run(request, options);
    INFO(outcome.output);
    REQUIRE(outcome.code == 0);
    said = outcome.output;
    return read_json(path("out.json"));
  }

  TemporaryFolder folder;
  std::filesystem::path model = golden::folder() / "models" / "llada-tiny";
  std::string said;
};

Json golden_infill(const std::string& name) {
  std::ifstream file(golden::folder() / "infill" / "cases.json");
  const Json all = Json::parse(file);
  for (const Json& one : all.at("cases"))
    if (one.at("name") == name) return one;
  FAIL("no golden case " << name);
  return {};
}

}  // namespace

TEST_CASE("dllm-generate: gaps come out filled in sequence, the response in tokens", "[programs]") {
  Session session;
  for (const char* name : {"llada-tiny-blocks", "llada-tiny-response"}) {
    const Json golden = golden_infill(name);
    const Json result = session.answer(golden.at("request"), "--policy none");
    CHECK(result.at("sequence") == Json::array({golden.at("sequence")}));
    const auto response = golden.at("request").at("gen_length").get<std::size_t>();
    const Json& whole = golden.at("sequence");
    CHECK(result.at("tokens").at(0) == Json(Json::array_t(whole.end() - response, whole.end())));
    CHECK(result.at("masks_left") == 0);
    CHECK(session.said.empty());
  }
  // In a batch every prompt has its sequence; without a gap there is no such key.
  const Json both = session.answer({{"prompt_ids", {{1, 2, 3}, {4, mask, 5}}}, {"gen_length", 2}},
                                   "--policy none");
  REQUIRE(both.at("sequence").size() == 2);
  CHECK(both.at("sequence").at(0).size() == 5);
  CHECK(both.at("tokens").at(1).size() == 2);
  CHECK_FALSE(
      session.answer({{"prompt_ids", {{1, 2, 3}}}, {"gen_length", 2}}).contains("sequence"));
}

TEST_CASE("dllm-generate: gen_length 0 needs a gap", "[programs]") {
  Session session;
  dllm_cache::testing::check_refusal(
      session.run({{"prompt_ids", {{1, 2}}}, {"gen_length", 0}}), "dllm-generate", 2,
      "gen_length must be at least 1 where prompt_ids holds no mask");
}

TEST_CASE("dllm-generate: audit and trace work with gaps", "[programs]") {
  Session session;
  const Json request = golden_infill("llada-tiny-blocks").at("request");
  const Json result =
      session.answer(request, "--policy none --audit --trace " + session.path("trace.safetensors"));
  CHECK(result.at("audit").size() == result.at("steps"));
  for (const Json& step : result.at("audit")) {
    CHECK(step.at("largest_error") == 0.0);
    CHECK(step.at("rows").get<Index>() > 0);
  }
  const dllm_cache::models::SafetensorsFile trace(session.path("trace.safetensors"));
  const Index rows = static_cast<Index>(result.at("sequence").at(0).size());
  CHECK(trace.at("prompt_tokens").shape.at(1) == 1);  // up to the first gap
  CHECK(trace.at("final_tokens").shape.at(1) == rows - 1);
}

TEST_CASE("dllm-generate: --infill fills a text", "[programs]") {
  const TemporaryFolder folder;
  const TextModel model(folder.path());
  const auto infill = [&](const std::string& text, const std::string& options = "") {
    return dllm_cache::testing::run_program(
        DLLM_GENERATE,
        "--threads 1 --model " + model.path().string() + " --infill '" + text + "' " + options);
  };
  const Outcome outcome = infill("ab<mask:3>cd<mask:1>e", "--policy none");
  INFO(outcome.output);
  REQUIRE(outcome.code == 0);
  CHECK(outcome.output.find("<mask") == std::string::npos);
  // The same as ids.
  Session session;
  Json ids = TextModel::encode("ab");
  for (int i = 0; i < 3; ++i) ids.push_back(mask);
  for (const std::int32_t id : TextModel::encode("cd")) ids.push_back(id);
  ids.push_back(mask);
  ids.push_back(TextModel::encode("e").front());
  const Json result =
      session.answer({{"prompt_ids", Json::array({ids})}, {"gen_length", 0}}, "--policy none");
  std::string text;
  for (const std::int32_t token : result.at("sequence").at(0).get<std::vector<std::int32_t>>())
    text += token < TextModel::letters ? std::string(1, TextModel::letter(token)) : "<end>";
  CHECK_THAT(outcome.output, Contains(text + "\n"));
  for (const char* bad : {"a<mask:0>", "a<mask:x>", "a<mask:3", "a<mask:>"})
    dllm_cache::testing::check_refusal(infill(bad), "dllm-generate", 2, "<mask:N>");
  dllm_cache::testing::check_refusal(infill("abc"), "dllm-generate", 2, "holds no mask");
}

TEST_CASE("dllm-generate: a sequence longer than the model was made for is told, quiet or not",
          "[programs]") {
  Session session;
  session.change_config({{"max_sequence_length", 8}});
  const Json request = {{"prompt_ids", {{1, 2, 3}}}, {"gen_length", 6}};
  const Json result = session.answer(request);
  CHECK_THAT(session.said, Contains("dllm-generate: warning: a sequence of 9 tokens") &&
                               Contains("longer than the 8"));
  CHECK(std::count(session.said.begin(), session.said.end(), '\n') == 1);
  CHECK(result.at("warnings").size() == 1);
  session.change_config({{"max_sequence_length", 9}});
  CHECK(session.answer(request).at("warnings").empty());
  CHECK(session.said.empty());
}

TEST_CASE("dllm-generate: an answer that still holds masks is counted and told", "[programs]") {
  Session session;
  Json all = Json::array();
  for (std::int32_t token = 0; token < mask; ++token) all.push_back(token);
  const Json result = session.answer(
      {{"prompt_ids", {{1, 2, 3}, {1, mask}}}, {"gen_length", 4}, {"suppress_tokens", all}});
  CHECK(result.at("masks_left") == 9);
  CHECK(result.at("tokens").at(0) == Json::array({mask, mask, mask, mask}));
  CHECK_THAT(session.said, Contains("9 mask tokens"));
}

TEST_CASE("dllm-generate: steps with nothing to commit are not taken, and told", "[programs]") {
  Session session;
  const Json request = {{"prompt_ids", {{1, 2, 3}}}, {"gen_length", 8}, {"block_length", 4}};
  const Json few = session.answer(request);
  CHECK(few.at("empty_steps") == 0);
  const Json many = session.answer(request, "--steps 20");
  CHECK(many.at("tokens") == few.at("tokens"));
  CHECK(many.at("forwards") == 8);
  CHECK(many.at("empty_steps") == 12);
  CHECK_THAT(session.said, Contains("12 steps had nothing to commit"));
}

TEST_CASE("dllm-generate: tokens are kept out of answers or committed last", "[programs]") {
  Session session;
  const Json request = {{"prompt_ids", {{5, 9, 33, 21}}}, {"gen_length", 12}};
  const Json plain = session.answer(request, "--policy none").at("tokens").at(0);
  const auto token = plain.at(0).get<std::int32_t>();
  Json without = request;
  without["suppress_tokens"] = Json::array({token, 3});
  const Json suppressed = session.answer(without, "--policy none").at("tokens").at(0);
  CHECK(std::count(suppressed.begin(), suppressed.end(), Json(token)) == 0);
  const std::string ids = std::to_string(token) + ",3";
  CHECK(session.answer(request, "--policy none --suppress-tokens " + ids).at("tokens").at(0) ==
        suppressed);
  // The end token by its published name, which is that of the model here.
  session.change_config({{"eos_token_id", {token, 3}}});
  CHECK(session.answer(request, "--policy none --logits-eos-inf").at("tokens").at(0) == suppressed);
  const Json last =
      session.answer(request, "--policy none --commit-last " + ids).at("tokens").at(0);
  CHECK(session.answer(request, "--policy none --confidence-eos-eot-inf").at("tokens").at(0) ==
        last);
  dllm_cache::testing::check_refusal(session.run(request, "--suppress-tokens 96"), "dllm-generate",
                                     2, "suppress_tokens must be in [0, 96), got 96");
  dllm_cache::testing::check_refusal(session.run(request, "--commit-last 1,x"), "dllm-generate", 2,
                                     "commit_last must be token ids");
}

TEST_CASE("dllm-generate: mask and end tokens can be said", "[programs]") {
  Session session;
  const Json request = {{"prompt_ids", {{5, 9, 33, 21}}}, {"gen_length", 12}, {"block_length", 4}};
  const Json expected = session.answer(request, "--policy none");
  session.change_config({{"mask_token_id", nullptr}, {"eos_token_id", -1}});
  dllm_cache::testing::check_refusal(session.run(request), "dllm-generate", 1, "--mask-token");
  CHECK(session.answer(request, "--policy none --mask-token 95").at("tokens") ==
        expected.at("tokens"));
  Json told = request;
  told["mask_token"] = mask;
  told["end_token"] = expected.at("tokens").at(0).at(2);
  const Json stopped = session.answer(told, "--policy none --early-stop");
  CHECK(stopped.at("steps") == 4);
  for (std::size_t i = 4; i < 12; ++i)
    CHECK(stopped.at("tokens").at(0).at(i) == told.at("end_token"));
  told.erase("end_token");
  dllm_cache::testing::check_refusal(session.run(told, "--early-stop"), "dllm-generate", 2,
                                     "early_stop needs an end token");
  const std::string end = std::to_string(expected.at("tokens").at(0).at(2).get<int>());
  CHECK(session.answer(told, "--policy none --early-stop --end-token 1 --end-token " + end)
            .at("steps") == 4);
}

TEST_CASE("dllm-generate: an unknown key of config.json is told once", "[programs]") {
  Session session;
  session.change_config({{"surprise", 1}, {"another", 2}});
  const Json result = session.answer({{"prompt_ids", {{1, 2}, {3, 4}}}, {"gen_length", 4}});
  CHECK_THAT(session.said, Contains("\"another\", \"surprise\""));
  CHECK(std::count(session.said.begin(), session.said.end(), '\n') == 1);
  CHECK(result.at("warnings").size() == 1);
}

TEST_CASE("dllm-eval: an answer is what fills the gaps and the response", "[programs]") {
  Session session;
  const Json prompts = {{7, mask, 8, mask, mask}, {1, 2}};
  const Json filled =
      session.answer({{"prompt_ids", {prompts.at(0)}}, {"gen_length", 0}}, "--policy none")
          .at("sequence")
          .at(0);
  std::ofstream data(session.path("data.jsonl"));
  data << Json{{"prompt_ids", prompts.at(0)}, {"gen_length", 0}} << '\n'
       << Json{{"prompt_ids", prompts.at(1)}, {"gen_length", 3}} << '\n';
  data.close();
  const auto eval = [&](const std::string& options) {
    const Outcome outcome = dllm_cache::testing::run_program(
        DLLM_EVAL, "--threads 1 --quiet --model " + session.model.string() + " --data " +
                       session.path("data.jsonl") + " --policy none " + options);
    INFO(outcome.output);
    REQUIRE(outcome.code == 0);
  };
  eval("--save-answers " + session.path("answers.jsonl"));
  std::ifstream saved(session.path("answers.jsonl"));
  std::string line;
  std::getline(saved, line);  // the head
  std::getline(saved, line);
  CHECK(Json::parse(line).at("tokens") == Json::array({filled.at(1), filled.at(3), filled.at(4)}));
  eval("--reference " + session.path("answers.jsonl") + " --json " + session.path("out.json"));
  CHECK(read_json(session.path("out.json")).at("masks_left") == 0);
}
