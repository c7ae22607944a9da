// SPDX-License-Identifier: Apache-2.0
// A policy of one's own in the programs: one line registers it, and its options are everywhere.
#include <CLI/CLI.hpp>
#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "programs/options/command_line.hpp"
#include "programs/options/policies.hpp"
#include "programs/options/request.hpp"
#include "programs/options/settings_json.hpp"

using namespace programs;
using Json = nlohmann::ordered_json;

namespace {

/// Recomputes everything now and then, and always when it is careful.
struct NowAndThen {
  dllm_cache::Index every_steps = 4;
  bool careful = false;

  static void visit_options(auto& self, auto&& visit) {
    visit("every_steps", self.every_steps, dllm_cache::steps_or_never,
          "steps between full forwards");
    visit("careful", self.careful, dllm_cache::yes_or_no, "a full forward at every step");
  }
  [[nodiscard]] dllm_cache::PolicyTraits traits(const dllm_cache::SequenceShape&) const {
    return {.name = "now-and-then", .needs_block = true};
  }
  void plan(const dllm_cache::StepContext& context, dllm_cache::StepPlan& plan) const {
    const bool due = careful || context.step % every_steps == 0;
    plan.recompute(due ? context.live() : context.block);
  }
};

void register_once() {
  static const bool done = [] {
    policies().add<NowAndThen>("now-and-then", "a full forward now and then");
    return true;
  }();
  static_cast<void>(done);
}

/// The policy that a command line chooses.
PolicyChoice chosen(const std::string& line) {
  CLI::App app("", "program");
  PolicyChoice choice;
  declare_policy(app, choice);
  app.parse(line);
  return choice;
}

}  // namespace

TEST_CASE("programs: a registered policy is on the command line, in the help and in the list",
          "[programs][options]") {
  register_once();
  CLI::App app("", "program");
  PolicyChoice choice;
  declare_policy(app, choice);
  const std::string help = app.help();
  CHECK(help.find("--every-steps INT") != std::string::npos);
  CHECK(help.find("--careful") != std::string::npos);
  std::ostringstream list;
  list_policies(list);
  CHECK(list.str().find("now-and-then\n    a full forward now and then\n    --every-steps  steps "
                        "between full forwards (at least 1 or never; default 4)\n") !=
        std::string::npos);

  const PolicyChoice given = chosen("--policy now-and-then --every-steps never --careful");
  CHECK(make_policy(given).options() == "every_steps never, careful true");
  CHECK(make_policy(chosen("--policy now-and-then --careful false")).options() ==
        "every_steps 4, careful false");
  CHECK_THROWS_AS(make_policy(chosen("--policy dual --careful")), std::invalid_argument);
}

TEST_CASE("programs: a registered policy is in requests and in JSON", "[programs][options]") {
  register_once();
  const Request request = parse_request(
      R"({"prompt_ids": [[1]], "cache_kind": "now-and-then", "every_steps": 9, "careful": true})",
      "request.json");
  CHECK(make_policy(request.settings.policy).options() == "every_steps 9, careful true");
  CHECK(policy_json(request.settings.policy) ==
        Json({{"policy", "now-and-then"},
              {"policy_options", {{"every_steps", 9}, {"careful", true}}},
              {"preset", nullptr}}));
  CHECK(policy_json({.name = "now-and-then", .options = {{"every_steps", "never"}}})
            .at("policy_options") == Json({{"every_steps", "never"}, {"careful", false}}));
}

TEST_CASE("programs: an option must not have the name of another key of requests",
          "[programs][options]") {
  // Every option of the library's policies is checked when the table is made.
  for (const auto& entry : policies().entries())
    for (const auto& option : entry.options)
      for (const std::string& key : request_keys()) CHECK(option.key != key);
  dllm_cache::PolicyTable table;
  table.reserve_keys(request_keys()).add<dllm_cache::DkvDecodePolicy>("dkv", "");
  CHECK_THROWS_AS(table.reserve_keys({"refresh_interval"}), std::invalid_argument);
}

TEST_CASE("programs: the JSON of decoding has every key with its default", "[programs][options]") {
  CHECK(decoding_json({}, {}) == Json({{"block_length", nullptr},
                                       {"steps", nullptr},
                                       {"steps_per_block", nullptr},
                                       {"attention_block", nullptr},
                                       {"fuse_blocks", true},
                                       {"temperature", 0.0},
                                       {"top_p", 1.0},
                                       {"top_k", 0},
                                       {"alg_temp", 0.0},
                                       {"window_length", nullptr},
                                       {"certainty_sigma", nullptr},
                                       {"confidence_alpha", 0.0},
                                       {"cfg_scale", 0.0},
                                       {"guidance_interval", 1},
                                       {"early_stop", false},
                                       {"trim_after_eos", false},
                                       {"eos_truncates", false},
                                       {"logits_eos_inf", false},
                                       {"confidence_eos_eot_inf", false},
                                       {"seed", 0},
                                       {"decoder", "llada"},
                                       {"remasking", "low_confidence"},
                                       {"schedule", nullptr},
                                       {"block_grid", nullptr},
                                       {"stop_at", nullptr},
                                       {"small_block_length", nullptr},
                                       {"alg", nullptr},
                                       {"suppress_tokens", nlohmann::json::array()},
                                       {"commit_last", nlohmann::json::array()},
                                       {"eps", nullptr},
                                       {"threshold", nullptr},
                                       {"factor", nullptr},
                                       {"entropy_bound", nullptr},
                                       {"tokens_per_step", nullptr}}));
  const auto dream = decoding_json({{"threshold", "0.9"}, {"steps", "8"}}, {.decoder = "dream"});
  CHECK(dream.at("alg") == "entropy");
  CHECK(dream.at("eps") == 1e-3);
  CHECK(dream.at("threshold") == 0.9);
  CHECK(dream.at("steps") == 8);
  const auto sdar = decoding_json({}, {.decoder = "sdar", .attention_block = 4});
  CHECK(sdar.at("decoder") == "sdar");
  CHECK(sdar.at("remasking") == "low_confidence_dynamic");
  CHECK(sdar.at("threshold") == 0.85);
  CHECK(sdar.at("attention_block") == 4);
  CHECK(sdar.at("block_length") == 4);
  CHECK(sdar.at("early_stop") == true);
}
