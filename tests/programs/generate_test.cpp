// SPDX-License-Identifier: Apache-2.0
// dllm-generate as a user runs it: files, exit codes, one line of complaint.
#include <catch2/catch.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/support/golden_case.hpp"
#include "tests/support/program_run.hpp"
#include "tests/support/temporary_folder.hpp"

using dllm_cache::Index;
using dllm_cache::testing::Outcome;
using dllm_cache::testing::read_json;
using dllm_cache::testing::run_program;
using dllm_cache::testing::TemporaryFolder;
using golden::Case;
using Json = nlohmann::json;

namespace {

Outcome run(const std::string& arguments) {
  return dllm_cache::testing::run_program(DLLM_GENERATE, arguments);
}

std::string model(const std::string& name) {
  return "--model " + (golden::folder() / "models" / name).string() + " ";
}
std::string request(const std::string& name) {
  return "--request " + (golden::folder() / name / "case.json").string() + " ";
}

/// Writes a request that is the golden one with some keys replaced (or removed, where null is given
/// as "remove").
std::string changed_request(const TemporaryFolder& folder, const Json& changes) {
  Json json = Case("uncached-blocks").request;
  for (const auto& [key, value] : changes.items()) {
    if (value == "remove")
      json.erase(key);
    else
      json[key] = value;
  }
  const auto path = folder.path() / "request.json";
  std::ofstream(path) << json.dump();
  return "--request " + path.string() + " ";
}

void check_refusal(const Outcome& outcome, int code, const std::string& part) {
  dllm_cache::testing::check_refusal(outcome, "dllm-generate", code, part);
}

}  // namespace

TEST_CASE("dllm-generate: a golden case comes out token for token with its cost", "[programs]") {
  const TemporaryFolder folder;
  const auto out = (folder.path() / "out.json").string();
  for (const std::string name :
       {"cache-kp100-kr7-rho025", "cfg-interval4", "uncached-blocks", "cache-half-steps-batch2"}) {
    const Case golden(name);
    const Outcome outcome =
        run(model(golden.request.at("model")) + request(name) + "--quiet --json " + out);
    INFO(name << ": " << outcome.output);
    REQUIRE(outcome.code == 0);
    const Json result = read_json(out);
    for (Index i = 0; i < golden.batch(); ++i)
      CHECK(result.at("tokens").at(static_cast<std::size_t>(i)) == Json(golden.answer(i)));
    CHECK(result.at("steps") == golden.request.at("steps"));
    CHECK(result.at("forwards") >= result.at("steps"));
    for (const char* key : {"flow", "value", "update", "head"})
      CHECK(result.at("rows").at(key).get<Index>() > 0);
    for (const char* key : {"operations", "cache_bytes"}) CHECK(result.at(key).get<Index>() > 0);
    CHECK(result.at("seconds").get<double>() > 0.0);
  }
}

TEST_CASE("dllm-generate: the output says how many threads there were", "[programs]") {
  const TemporaryFolder folder;
  const auto out = (folder.path() / "out.json").string();
  const auto run_with = [&](const std::string& environment, const std::string& options) {
    const Outcome outcome = run_program(
        "env -u GOMP_SPINCOUNT -u OMP_WAIT_POLICY -u KMP_BLOCKTIME " + environment + " " +
            DLLM_GENERATE,
        model("llada-tiny") + request("uncached-blocks") + "--quiet --json " + out + options);
    INFO(outcome.output);
    REQUIRE(outcome.code == 0);
    return read_json(out);
  };
  const Json one = run_with("", " --threads 1");
  CHECK(one.at("threads") == 1);
  // Whether the program starts itself again, or the environment says how to wait.
  for (const std::string environment : {"", "OMP_WAIT_POLICY=active", "GOMP_SPINCOUNT=10"}) {
    const Json two = run_with(environment, " --threads 2");
    CHECK(two.at("threads") == 2);
    CHECK(two.at("tokens") == one.at("tokens"));
  }
#ifdef _OPENMP
  CHECK(run_with("OMP_NUM_THREADS=3", "").at("threads") == 3);
#endif
}

TEST_CASE("dllm-generate: a request in a pipe is read once, with any number of threads",
          "[programs]") {
  for (const std::string threads : {"1", "2"}) {
    const Outcome outcome = run_program(
        "sh -c 'cat " + request("uncached-blocks").substr(std::string("--request ").size()) +
            " | env -u GOMP_SPINCOUNT -u OMP_WAIT_POLICY -u KMP_BLOCKTIME " DLLM_GENERATE,
        model("llada-tiny") + "--request /dev/stdin --quiet --json - --threads " + threads + "'");
    CHECK(outcome.code == 0);
    CHECK(outcome.output.rfind("{\"tokens\":", 0) == 0);
  }
}

TEST_CASE("dllm-generate: rows, bytes and operations follow the formulas of the method",
          "[programs]") {
  const TemporaryFolder folder;
  const auto out = (folder.path() / "out.json").string();
  const Case golden("uncached-full-block");  // 24 + 32 rows, 32 steps, 4 layers of width 64
  REQUIRE(
      run(model("llada-tiny") + request("uncached-full-block") + "--quiet --json " + out).code ==
      0);
  const Json off = read_json(out);
  CHECK(off.at("rows").at("flow") == 56 * 32);
  CHECK(off.at("rows").at("update") == 56 * 32 * 4);
  CHECK(off.at("rows").at("head") == 33 * 32 / 2);  // one masked row fewer each step
  const double layer = 2.0 * 56 * (4 * 64 * 64 + 3 * 64 * 160) + 4.0 * 56 * 56 * 64;
  CHECK(off.at("operations").get<double>() ==
        Approx(32 * 4 * layer + 2.0 * 528 * 64 * 96).epsilon(1e-12));
  REQUIRE(run(model("llada-tiny") + request("uncached-full-block") +
              "--prompt-interval 100 --response-interval 4 --ratio 0.25 --quiet --json " + out)
              .code == 0);
  const Json on = read_json(out);
  CHECK(on.at("cache_bytes") == 4 * (56 * 2 * 64 + 32 * 64) * 4);
  CHECK(on.at("rows").at("update") == (56 + 7 * 32) * 4 + 24 * (32 + 3 * 8));
}

TEST_CASE("dllm-generate: an option beats the request", "[programs]") {
  const TemporaryFolder folder;
  const auto out = (folder.path() / "out.json").string();
  const std::string base =
      model("llada-tiny") + request("cache-kp100-kr7-rho025") + "--quiet --json " + out;
  REQUIRE(run(base + " --no-cache --gen-length 16 --block-length 8 --steps 8").code == 0);
  const Json result = read_json(out);
  CHECK(result.at("tokens").at(0).size() == 16);
  CHECK(result.at("steps") == 8);
  const Case golden("cache-kp100-kr7-rho025");
  const Index rows = static_cast<Index>(golden.prompt(0).size()) + 16;
  CHECK(result.at("rows").at("update") == rows * 8 * 4);
}

TEST_CASE("dllm-generate: prompts of different lengths are answered as alone", "[programs]") {
  const TemporaryFolder folder;
  const auto out = (folder.path() / "out.json").string();
  const Json prompts = {{5, 6, 7}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, {42}};
  const Json cache = {
      {"prompt_interval_steps", 10}, {"gen_interval_steps", 3}, {"transfer_ratio", 0.5}};
  const auto answer = [&](const Json& prompt_ids) {
    const Outcome outcome =
        run(model("llada-tiny") +
            changed_request(folder, {{"prompt_ids", prompt_ids}, {"cache", cache}}) +
            "--quiet --json " + out);
    INFO(outcome.output);
    REQUIRE(outcome.code == 0);
    return read_json(out).at("tokens");
  };
  const Json together = answer(prompts);
  REQUIRE(together.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) CHECK(together[i] == answer(Json::array({prompts[i]}))[0]);
}

TEST_CASE("dllm-generate: the trace holds the golden names and values", "[programs]") {
  const TemporaryFolder folder;
  const auto path = (folder.path() / "trace.safetensors").string();
  for (const std::string name : {"cache-half-steps-batch2", "cfg-interval4"}) {
    const Case golden(name);
    REQUIRE(
        run(model(golden.request.at("model")) + request(name) + "--quiet --trace " + path).code ==
        0);
    const golden::models::SafetensorsFile trace{std::filesystem::path(path)};
    Index compared = 0;
    for (const auto& tensor : golden.expected.tensors()) {
      const bool compares =
          tensor.name.find("selected") != std::string::npos || tensor.name == "tokens_before_step";
      if (!compares) continue;
      INFO(name << " " << tensor.name);
      REQUIRE(trace.find(tensor.name) != nullptr);
      CHECK(trace.at(tensor.name).shape == tensor.shape);
      CHECK(golden::integers(trace.at(tensor.name)) == golden::integers(tensor));
      ++compared;
    }
    CHECK(compared >= 6);
    CHECK(trace.at("step0.layer0.treatment").bytes.front() == std::byte{3});
  }
}

TEST_CASE("dllm-generate: random numbers depend on the seed alone", "[programs]") {
  const TemporaryFolder folder;
  const auto out = (folder.path() / "out.json").string();
  const auto tokens = [&](const std::string& options) {
    REQUIRE(
        run(model("llada-tiny") + request("uncached-blocks") + options + " --quiet --json " + out)
            .code == 0);
    return read_json(out).at("tokens");
  };
  const Json cold = tokens("");
  const Json first = tokens("--temperature 1 --seed 5");
  CHECK(first == tokens("--temperature 1 --seed 5 --threads 2"));
  CHECK(first != tokens("--temperature 1 --seed 6"));
  CHECK(first != cold);
  CHECK(tokens("--remasking random --seed 5") == tokens("--remasking random --seed 5"));
  CHECK(tokens("--remasking random --seed 5") != cold);
}

TEST_CASE("dllm-generate: a bad request ends with 2 and one line that names it", "[programs]") {
  const TemporaryFolder folder;
  struct Bad {
    Json changes;
    std::string named;
  };
  const Bad all[] = {
      {{{"prompt_ids", "remove"}}, "prompt_ids"},
      {{{"prompt_ids", Json::array()}}, "prompt_ids"},
      {{{"prompt_ids", {1, 2}}}, "prompt_ids"},
      {{{"prompt_ids", {{-1}}}}, "prompt_ids"},
      {{{"prompt_ids", {{1.5}}}}, "prompt_ids"},
      {{{"prompt_ids", {{96}}}}, "[0, 96)"},
      {{{"prompt_ids", {{4294967296}}}}, "prompt_ids"},
      {{{"gen_length", 0}}, "gen_length"},
      {{{"gen_length", -8}}, "gen_length"},
      {{{"gen_length", "32"}}, "gen_length"},
      {{{"block_length", 5}}, "block_length"},
      {{{"block_length", 64}}, "block_length"},
      {{{"steps", 0}}, "steps"},
      {{{"steps", 30}}, "steps"},
      {{{"temperature", -1.0}}, "temperature"},
      {{{"seed", -1}}, "seed"},
      {{{"cfg_scale", -0.5}}, "cfg_scale"},
      {{{"remasking", "high"}}, "remasking"},
      {{{"cache", 7}}, "cache"},
      {{{"cache", {{"transfer_ratio", 1.5}}}}, "ratio"},
      {{{"cache", {{"prompt_interval_steps", 0}}}}, "prompt_interval"},
      {{{"cache", {{"gen_interval_steps", -1}}}}, "response_interval"},
      {{{"cache", {{"interval", 3}}}}, "interval"},
      {{{"surprise", 1}}, "surprise"},
  };
  for (const Bad& bad : all) {
    INFO(bad.changes.dump());
    check_refusal(run(model("llada-tiny") + changed_request(folder, bad.changes)), 2, bad.named);
  }
}

TEST_CASE("dllm-generate: ignored keys of a request are ignored", "[programs]") {
  const TemporaryFolder folder;
  const Json changes = {
      {"margins", {{"logit", 1}}}, {"note", "hello"},      {"probe_steps", {1, 2}},
      {"model", "another"},        {"forwards", 3},        {"rows_per_forward", {1}},
      {"block_length", "remove"},  {"remasking", "remove"}};
  CHECK(run(model("llada-tiny") + changed_request(folder, changes) + "--quiet").code == 0);
}

TEST_CASE("dllm-generate: a bad option ends with 2 and one line", "[programs]") {
  const std::string good = model("llada-tiny") + request("uncached-blocks");
  check_refusal(run(good + "--ratio 2"), 2, "ratio");
  check_refusal(run(good + "--ratio nan"), 2, "ratio");
  check_refusal(run(good + "--policy balanced --similarity-threshold 2"), 2,
                "similarity_threshold");
  check_refusal(run(good + "--threads 0"), 2, "threads");
  check_refusal(run(good + "--remasking random --alg entropy"), 2, "remasking belongs to LLaDA");
  check_refusal(run(good + "--alg entropy --eps 0.01 --threshold 0.9"), 2, "eps belongs to");
  check_refusal(run(good + "--eps 0.01"), 2, "eps belongs to alg");
  const std::string dream = model("dream-tiny") + request("dream-uncached-entropy");
  check_refusal(run(dream + "--remasking random"), 2, "remasking belongs to LLaDA");
  check_refusal(run(good + "--no-cache --ratio 0.5"), 2, "--ratio");
  check_refusal(run(good + "--frobnicate"), 2, "frobnicate");
  check_refusal(run(model("llada-tiny")), 2, "--request");
  check_refusal(run(request("uncached-blocks")), 2, "--model");
  check_refusal(run(model("llada-tiny") + "--prompt hello"), 2, "vocab.txt");
}

TEST_CASE("dllm-generate: a file that cannot be used ends with 1 and one line", "[programs]") {
  const TemporaryFolder folder;
  const std::string good = model("llada-tiny") + request("uncached-blocks");
  check_refusal(run(model("llada-tiny") + "--request /nonexistent.json"), 1, "nonexistent");
  check_refusal(run("--model /nonexistent " + request("uncached-blocks")), 1, "nonexistent");
  check_refusal(run(good + "--quiet --json /nonexistent/out.json"), 1, "nonexistent");
  check_refusal(run(good + "--quiet --trace /nonexistent/out.safetensors"), 1, "nonexistent");
  std::filesystem::copy(golden::folder() / "models" / "llada-tiny", folder.path() / "cut");
  const auto weights = folder.path() / "cut" / "model.safetensors";
  std::filesystem::resize_file(weights, std::filesystem::file_size(weights) - 8);
  check_refusal(
      run("--model " + (folder.path() / "cut").string() + " " + request("uncached-blocks")), 1,
      "model.safetensors");
  const auto text = folder.path() / "not.json";
  std::ofstream(text) << "this is no JSON";
  check_refusal(run(model("llada-tiny") + "--request " + text.string()), 2, "not JSON");
}

TEST_CASE("dllm-generate: a text prompt is answered as text, unknown characters are named",
          "[programs]") {
  const std::string records = "--model " DLLM_RECORDS "/model ";
  const Outcome outcome =
      run(records + "--prompt-file " DLLM_RECORDS "/prompt.txt --gen-length 192 --block-length 32");
  CHECK(outcome.code == 0);
  CHECK(outcome.output.find("qxns,821725,gffj\n") != std::string::npos);
  check_refusal(run(records + "--prompt 'na\xC3\xAFve'"), 2, "\xC3\xAF");
}

TEST_CASE("dllm-generate: help explains every option and ends with 0", "[programs]") {
  const Outcome outcome = run("--help");
  CHECK(outcome.code == 0);
  for (const char* option : {"--model", "--request", "--json", "--trace", "--ratio", "--no-cache",
                             "--prompt-interval", "--seed", "--threads"})
    CHECK(outcome.output.find(option) != std::string::npos);
}

TEST_CASE("dllm-generate: a preset is a policy with options that can be varied", "[programs]") {
  const TemporaryFolder folder;
  const auto out = (folder.path() / "out.json").string();
  const auto rows = [&](const std::string& options, const Json& changes = Json::object()) {
    Json all = {{"cache", "remove"}};
    all.update(changes);
    const std::string blocks = changed_request(folder, all);
    const Outcome outcome = run(model("llada-tiny") + blocks + options + " --quiet --json " + out);
    INFO(outcome.output);
    REQUIRE(outcome.code == 0);
    return read_json(out).at("rows");
  };
  const Json balanced = rows("--policy balanced");
  CHECK(balanced == rows(""));
  CHECK(balanced == rows("--policy block-verify"));
  CHECK(balanced == rows("", {{"cache_kind", "balanced"}}));
  CHECK(rows("--policy balanced-fixed") == rows("--policy balanced --similarity-threshold none"));
  CHECK(rows("--policy fastest") == rows("--policy dual"));
  CHECK(rows("--policy exact") == rows("--no-cache"));

  const std::string options = " --ratio 0.125 --similarity-threshold none --response-interval 5";
  const Json varied = rows("--policy balanced" + options);
  CHECK(varied != balanced);
  CHECK(varied == rows("--policy block-verify" + options));
  const Json keys = {{"ratio", 0.125}, {"similarity_threshold", "none"}, {"response_interval", 5}};
  for (const char* name : {"balanced", "block-verify"}) {
    Json asked = keys;
    asked["cache_kind"] = name;
    CHECK(varied == rows("", asked));
    CHECK(varied == rows("--policy " + std::string(name), asked));
  }
  // An option varies the policy of the request, a policy of its own replaces it whole.
  CHECK(varied == rows(options, {{"cache_kind", "balanced"}}));
  CHECK(balanced == rows("--policy balanced", {{"cache_kind", "dllm-cache"}, {"ratio", 0.5}}));
}

TEST_CASE(
    "dllm-generate: options without a policy mean dllm-cache, on the command line and in a "
    "request",
    "[programs]") {
  const TemporaryFolder folder;
  const auto out = (folder.path() / "out.json").string();
  const auto rows = [&](const std::string& request, const std::string& options) {
    const Outcome outcome = run(model("llada-tiny") + request + options + " --quiet --json " + out);
    INFO(outcome.output);
    REQUIRE(outcome.code == 0);
    return read_json(out).at("rows");
  };
  const std::string plain = changed_request(folder, {{"cache", "remove"}});
  const Json expected = rows(plain, "--policy dllm-cache --ratio 0.5");
  CHECK(rows(plain, "--ratio 0.5") == expected);
  CHECK(rows(changed_request(folder, {{"cache", "remove"}, {"ratio", 0.5}}), "") == expected);
  CHECK(rows(changed_request(folder, {{"cache", nullptr}}), "--ratio 0.5") == expected);
  CHECK(rows(changed_request(folder, {{"cache", {{"transfer_ratio", 0.5}}}}), "") == expected);
}

TEST_CASE(
    "dllm-generate: bf16 on oneDNN is computed, or refused where oneDNN has no products of it",
    "[programs]") {
  const std::string good = model("llada-tiny") + request("uncached-blocks") +
                           "--gen-length 4 --block-length 4 --steps 1 --threads 1 --quiet ";
  const std::string asked = good + "--precision bf16 --backend onednn";
  const auto computed = [](const Outcome& outcome) {
    INFO(outcome.output);
    CHECK(outcome.code == 0);
    CHECK(outcome.output.empty());
  };
  // oneDNN does as if this processor had nothing newer: bf16 products need AVX-512.
  const std::string old = "ONEDNN_MAX_CPU_ISA=AVX2 " DLLM_GENERATE;
  if (!dllm_cache::models::has_onednn) {
    check_refusal(run(asked), 2, "backend must be one that is built in (Eigen), got oneDNN");
    computed(run(good + "--precision bf16"));
    return;
  }
  const std::string refusal =
      "ComputeOptions: the backend oneDNN has no bf16 products on this processor: ask for float32, "
      "or the backend Eigen";
  check_refusal(run_program(old, asked), 2, refusal);
  check_refusal(run_program(old, good + "--backend onednn --precision bf16"), 2, refusal);
  // Where no backend was asked for it is one that computes; so it is wherever the options say.
  for (const char* options : {"--precision bf16", "--precision bf16 --backend eigen",
                              "--precision float32 --backend onednn"})
    computed(run_program(old, good + options));
  if (dllm_cache::models::can_compute(
          {dllm_cache::models::Backend::OneDnn, dllm_cache::models::Precision::Bfloat16}))
    computed(run(asked));
  else
    check_refusal(run(asked), 2, refusal);
}

TEST_CASE("dllm-generate: options of another policy are refused and their owner is named",
          "[programs]") {
  const TemporaryFolder folder;
  const std::string good = model("llada-tiny") + request("uncached-blocks");
  const std::string block_verify =
      "does not belong to policy dllm-cache; it belongs to block-verify";
  check_refusal(run(good + "--policy dllm-cache --recompute-block"), 2, block_verify);
  check_refusal(run(good + "--policy dllm-cache --recompute-block true"), 2, block_verify);
  check_refusal(run(good + "--similarity-threshold 0.9"), 2, block_verify);
  check_refusal(run(good + "--policy dual --keep-active 1"), 2,
                "--keep-active does not belong to policy dual; it belongs to changed-rows");
  const auto asked = [&](const Json& changes) {
    return run(model("llada-tiny") + changed_request(folder, changes));
  };
  check_refusal(asked({{"cache_kind", "dual"}, {"ratio", 0.5}}), 2,
                "ratio does not belong to policy dual; it belongs to block-verify, dllm-cache");
  check_refusal(asked({{"cache", {{"transfer_ratio", 0.5}}}, {"ratio", 0.5}}), 2,
                "ratio is given twice");
  check_refusal(asked({{"cache_kind", "balanced"}, {"ratio", 1.5}}), 2,
                "policy block-verify: ratio must be in [0, 1], got 1.5");
  check_refusal(asked({{"cache_kind", "balanced"}, {"ratio", "0.5"}}), 2, "ratio must be a number");
  check_refusal(asked({{"cache_kind", "balanced"}, {"recompute_block", 1}}), 2,
                "recompute_block must be true or false, got 1");
  check_refusal(asked({{"cache_kind", "dkv"}, {"refresh_interval", 2.5}}), 2,
                "refresh_interval must be an integer");
  check_refusal(asked({{"cache_kind", "dkv"}, {"refresh_interval", "often"}}), 2,
                "refresh_interval must be an integer at least 1 or never, got \"often\"");
}
