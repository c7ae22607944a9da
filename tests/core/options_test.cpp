// SPDX-License-Identifier: Apache-2.0
// Options told once: what follows from visit_options, and the table of policies.
#include <array>
#include <catch2/catch.hpp>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dllm_cache/decoding/decoding_keys.hpp"
#include "dllm_cache/policies/policy_table.hpp"
#include "tests/support/exact_refusal.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;

namespace {

struct Everything {
  Index interval = 5;
  Index count = 0;
  double share = 0.5;
  double threshold = 0.9;
  bool on = true;
  std::uint64_t seed = 7;
  Index length = 0;

  static void visit_options(auto& self, auto&& visit) {
    visit("interval", self.interval, steps_or_never, "steps");
    visit("count", self.count, between(0, 3), "a count");
    visit("share", self.share, from_0_to_1, "a share");
    visit("threshold", self.threshold, cosine_or_none, "a cosine");
    visit("on", self.on, yes_or_no, "a flag");
    visit("seed", self.seed, OptionRange<std::uint64_t>{}, "a seed", "");
    visit("length", self.length, OptionRange<Index>{.least = 1, .unset = 0}, "a length", "size");
  }
  PolicyTraits traits(const SequenceShape&) const { return {.name = "everything"}; }
  void plan(const StepContext& context, StepPlan& plan) const { plan.recompute(context.live()); }
};

struct Clash {
  double refresh_interval = 1.0;
  static void visit_options(auto& self, auto&& visit) {
    visit("refresh_interval", self.refresh_interval, not_negative, "not a count of steps");
  }
  PolicyTraits traits(const SequenceShape&) const { return {.name = "clash"}; }
  void plan(const StepContext&, StepPlan&) const {}
};
// Kinds of values that came later.
struct Lists {
  static constexpr std::array<std::string_view, 3> colours = {"red", "green", "blue"};
  Index kernel = 3;
  Index colour = 1;
  RowLists rows = {};

  static void visit_options(auto& self, auto&& visit) {
    visit("kernel", self.kernel,
          OptionRange<Index>{.least = 1, .most = 9, .word = "none", .word_value = 1, .odd = true},
          "an odd number");
    visit("colour", self.colour, one_of(colours), "a word");
    visit("rows", self.rows, OptionRange<RowLists>{}, "rows of blocks");
  }
};
RowLists parsed(std::string_view text) {
  Lists lists;
  set_option(lists, "rows", text, "owner");
  return lists.rows;
}
std::string refusal_of_list(std::string_view key, std::string_view text) {
  Lists lists;
  const std::string message = refused_argument([&] { set_option(lists, key, text, "owner"); });
  CHECK(options_text(lists) == options_text(Lists{}));  // and nothing changed
  return message;
}

static_assert(VisitsOptions<Everything> && CachePolicy<Everything>);
static_assert(!VisitsOptions<NoCache>);

std::string refusal_of(const Everything& options) {
  return refused_argument([&] { check_options(options, "Owner ", "of it"); });
}
std::string refusal_of(std::string_view key, std::string_view text) {
  Everything options;
  return refused_argument([&] { set_option(options, key, text, "owner"); });
}

}  // namespace

TEST_CASE("Options: values outside their range are refused by owner, name, range and value",
          "[options][refusal]") {
  CHECK(refusal_of({.interval = 0}) == "Owner of it: interval must be at least 1 or never, got 0");
  CHECK(refusal_of({.count = 4}) == "Owner of it: count must be in [0, 3], got 4");
  CHECK(refusal_of({.share = -0.25}) == "Owner of it: share must be in [0, 1], got -0.25");
  CHECK(refusal_of({.share = std::numeric_limits<double>::quiet_NaN()}) ==
        "Owner of it: share must be in [0, 1], got nan");
  CHECK(refusal_of({.threshold = 1.5}) ==
        "Owner of it: threshold must be in [-1, 1] or none, got 1.5");
  CHECK(refusal_of({.length = -1}) == "Owner of it: length must be at least 1, got -1");
  const Everything legal{.interval = never, .count = 3, .threshold = no_similarity_threshold};
  CHECK(refusal_of(legal) == "nothing was thrown");
}

TEST_CASE("Options: texts name all options, and equal options alone give equal texts",
          "[options]") {
  CHECK(options_text(Everything{}) ==
        "interval 5, count 0, share 0.5, threshold 0.9, on true, seed 7, length 0");
  CHECK(options_text(Everything{.interval = never, .threshold = no_similarity_threshold}) ==
        "interval never, count 0, share 0.5, threshold none, on true, seed 7, length 0");
  CHECK(options_text(Everything{.share = 0.1 + 0.2}) != options_text(Everything{.share = 0.3}));
}

TEST_CASE("Options: a text sets an option by its key", "[options]") {
  Everything options;
  CHECK(set_option(options, "interval", "never", "owner"));
  CHECK(options.interval == never);
  CHECK(set_option(options, "interval", "12", "owner"));
  CHECK(options.interval == 12);
  CHECK(set_option(options, "share", "1e-1", "owner"));
  CHECK(options.share == 0.1);
  CHECK(set_option(options, "threshold", "none", "owner"));
  CHECK(options.threshold == no_similarity_threshold);
  CHECK(set_option(options, "on", "false", "owner"));
  CHECK_FALSE(options.on);
  CHECK(set_option(options, "size", "3", "owner"));
  CHECK(options.length == 3);
  CHECK_FALSE(set_option(options, "seed", "3", "owner"));    // not for texts
  CHECK_FALSE(set_option(options, "length", "3", "owner"));  // its key is another
  CHECK_FALSE(set_option(options, "", "3", "owner"));
}

TEST_CASE("Options: a text that is no legal value is refused and changes nothing",
          "[options][refusal]") {
  CHECK(refusal_of("count", "4") == "owner: count must be in [0, 3], got 4");
  CHECK(refusal_of("count", "2.0") == "owner: count must be in [0, 3], got \"2.0\"");
  CHECK(refusal_of("count", "") == "owner: count must be in [0, 3], got \"\"");
  CHECK(refusal_of("count", "never") == "owner: count must be in [0, 3], got \"never\"");
  CHECK(refusal_of("share", "half") == "owner: share must be in [0, 1], got \"half\"");
  CHECK(refusal_of("share", "nan") == "owner: share must be in [0, 1], got nan");
  // The word is the one way to say it.
  CHECK(refusal_of("threshold", "inf") == "owner: threshold must be in [-1, 1] or none, got inf");
  CHECK(refusal_of("on", "1") == "owner: on must be true or false, got \"1\"");
  // Somebody who writes the value for "not given" means something else.
  CHECK(refusal_of("size", "0") == "owner: size must be at least 1, got 0");
}

TEST_CASE("Options: what a program shows of them is all there", "[options]") {
  const std::vector<OptionInfo> all = describe_options(Everything{.interval = never});
  REQUIRE(all.size() == 6);  // all but the one without a key
  CHECK(all[0].key == "interval");
  CHECK(all[0].help == "steps");
  CHECK(all[0].kind == OptionKind::Integer);
  CHECK(all[0].legal == "at least 1 or never");
  CHECK(all[0].word == "never");
  CHECK(all[0].value == "never");
  CHECK(all[3].kind == OptionKind::Number);
  CHECK(all[3].value == "0.9");
  CHECK(all[4].kind == OptionKind::Flag);
  CHECK(all[4].value == "true");
  CHECK(all[5].key == "size");
  CHECK_FALSE(all[5].value);
}

TEST_CASE("Options: lists of rows for one block after the other are texts and back", "[options]") {
  struct Pair {
    RowLists lists;
    std::string_view text;
  };
  for (const Pair& pair :
       {Pair{{}, ""}, Pair{{{{}}}, ";"}, Pair{{{{0}}}, "0;"}, Pair{{{{36, 40}, {52}}}, "36,40;52;"},
        Pair{{{{36, 40}, {}, {52}}}, "36,40;;52;"}, Pair{{{{}, {}, {7, 8, 900}}}, ";;7,8,900;"}}) {
    CAPTURE(pair.text);
    CHECK(option_text(pair.lists) == pair.text);
    CHECK(parsed(pair.text) == pair.lists);
  }
  CHECK(parsed("36,40;52") == RowLists{{{36, 40}, {52}}});  // the last end may be left out
  // For texts that have commas between options.
  CHECK(parsed("36 40;52;") == RowLists{{{36, 40}, {52}}});
  CHECK(options_text(Lists{.rows = {{{1, 2}}}}) == "kernel 3, colour green, rows 1,2;");
}

TEST_CASE("Options: lists of rows that are none, or not ascending, are refused",
          "[options][refusal]") {
  const std::string wants = "owner: rows must be a list of ascending rows for each block, got ";
  for (const std::string text : {"a", "1,,2", ",1", "1,", "1  2", "1.5", "1;x;", "1,2,;3;"})
    CHECK(refusal_of_list("rows", text) == wants + '"' + text + '"');
  CHECK(refusal_of_list("rows", "-1") == wants + "-1;");
  CHECK(refusal_of_list("rows", "5;3,2") == wants + "5;3,2;");
  CHECK(refusal_of_list("rows", "3,3") == wants + "3,3;");
  CHECK(refused_argument([] {
          check_options(Lists{.rows = {{{2, 1}}}}, "Owner");
        }) == "Owner: rows must be a list of ascending rows for each block, got 2,1;");
}

TEST_CASE("Options: a choice has words in texts and a number in code", "[options]") {
  Lists lists;
  for (const auto& [word, number] :
       {std::pair("red", 0), std::pair("green", 1), std::pair("blue", 2)}) {
    CHECK(set_option(lists, "colour", word, "owner"));
    CHECK(lists.colour == number);
    CHECK(options_text(lists).find(word) != std::string::npos);
  }
  CHECK(refusal_of_list("colour", "pink") ==
        "owner: colour must be red, green or blue, got \"pink\"");
  CHECK(refusal_of_list("colour", "1") == "owner: colour must be red, green or blue, got \"1\"");
  CHECK(refusal_of_list("colour", "") == "owner: colour must be red, green or blue, got \"\"");
  for (const Index number : {-1, 3})
    CHECK(refused_argument([&] { check_options(Lists{.colour = number}, "Owner"); }) ==
          "Owner: colour must be red, green or blue, got " + std::to_string(number));
}

TEST_CASE("Options: where odd numbers are wanted even ones are refused", "[options][refusal]") {
  const std::string wants = "kernel must be odd and in [1, 9] or none, got ";
  for (const char* even : {"0", "2", "8", "-2"})
    CHECK(refusal_of_list("kernel", even) == "owner: " + wants + even);
  CHECK(refusal_of_list("kernel", "11") == "owner: " + wants + "11");
  CHECK(refusal_of_list("kernel", "-1") == "owner: " + wants + "-1");
  Lists lists;
  CHECK(set_option(lists, "kernel", "9", "owner"));
  CHECK(lists.kernel == 9);
  CHECK(set_option(lists, "kernel", "none", "owner"));
  CHECK(lists.kernel == 1);
  CHECK(options_text(lists).starts_with("kernel none"));
  CHECK(refused_argument([] { check_options(Lists{.kernel = 4}, "Owner"); }) ==
        "Owner: " + wants + "4");
}

TEST_CASE("Options: a program shows lists that are not given as not given, and words as words",
          "[options]") {
  const std::vector<OptionInfo> all = describe_options(Lists{});
  REQUIRE(all.size() == 3);
  CHECK(all[0].legal == "odd and in [1, 9] or none");
  CHECK(all[0].kind == OptionKind::Integer);
  CHECK(all[1].kind == OptionKind::Word);
  CHECK(all[1].value == "green");
  CHECK(all[2].kind == OptionKind::Rows);
  CHECK_FALSE(all[2].value);
  CHECK(describe_options(Lists{.rows = {{{4}}}})[2].value == "4;");
}

TEST_CASE("PolicyTable: every policy and preset is made with its defaults and with other options",
          "[options]") {
  const PolicyTable table = bundled_policies();
  const SequenceShape shape{.prompt = 4, .response = 4};
  std::set<std::string> names;
  for (const auto& entry : table.entries()) {
    CAPTURE(entry.name);
    CHECK(names.insert(entry.name).second);
    CHECK_FALSE(entry.description.empty());
    const AnyPolicy policy = table.make(entry.name);
    CHECK(policy.traits(shape).name == entry.policy);
    OptionValues defaults;
    for (const OptionInfo& option : entry.options) {
      CHECK_FALSE(option.help.empty());
      // Lists of rows alone may be left out.
      CHECK((option.value.has_value() || option.kind == OptionKind::Rows));
      if (option.value) defaults[option.key] = *option.value;
    }
    // Said or not, a default is the default.
    CHECK(table.make(entry.name, defaults).options() == policy.options());
  }
  CHECK(table.make("balanced").options() == AnyPolicy(balanced_policy()).options());
  CHECK(table.make("balanced", {{"ratio", "0.125"}}).options() ==
        AnyPolicy(BlockVerifyPolicy{.ratio = 0.125}).options());
  CHECK(table.make("balanced-fixed").options() == AnyPolicy(balanced_fixed_policy()).options());
  CHECK(table.make("dkv", {{"refresh_interval", "never"}}).options() ==
        AnyPolicy(DkvDecodePolicy{never}).options());
  const auto options = table.options("balanced", {{"ratio", "0.5"}});
  CHECK(options.size() == table.at("block-verify").options.size());
  CHECK(options[2].value == "0.5");
}

TEST_CASE("PolicyTable: unknown names, options of others and bad values are refused by name",
          "[options][refusal]") {
  const PolicyTable table = bundled_policies();
  const auto refused = [&](const char* name, const OptionValues& values) {
    return refused_argument([&] { static_cast<void>(table.make(name, values)); });
  };
  CHECK(refused("unheard", {})
            .starts_with("policy must be one of none, block, block-verify, dllm-cache"));
  CHECK(refused("unheard", {}).ends_with("got \"unheard\""));
  CHECK(refused("dllm-cache", {{"recompute_block", "true"}}) ==
        "recompute_block does not belong to policy dllm-cache; it belongs to block-verify");
  CHECK(refused("exact", {{"ratio", "1"}}) ==
        "ratio does not belong to policy exact; it belongs to block-verify, dllm-cache");
  CHECK(refused("dual", {{"rate", "1"}}) ==
        "rate does not belong to policy dual, nor to any other");
  CHECK(refused("balanced", {{"ratio", "2"}}) ==
        "policy block-verify: ratio must be in [0, 1], got 2");
}

TEST_CASE("PolicyTable: a policy of one's own is a line, names and kinds must not clash",
          "[options]") {
  PolicyTable table = bundled_policies();
  table.add<Everything>("everything", "one of each");
  CHECK(table.make("everything", {{"count", "2"}}).options() ==
        AnyPolicy(Everything{.count = 2}).options());
  table.add_preset("little", "less of it", "everything", Everything{.count = 1});
  CHECK(table.at("little").is_preset());
  CHECK(table.make("little", {{"share", "1"}}).options() ==
        AnyPolicy(Everything{.count = 1, .share = 1.0}).options());

  CHECK(refused_argument([&] { table.add<NoCache>("none", ""); }) ==
        "PolicyTable: policy none is there already");
  CHECK(refused_argument([&] {
          table.add_preset("p", "", "unheard", NoCache{});
        }).starts_with("policy must be one of"));
  CHECK(refused_argument([&] { table.add<Clash>("clash", ""); }) ==
        "PolicyTable: option refresh_interval of clash must have the kind of value that it has in "
        "vicinity");
  CHECK(refused_argument([&] { table.reserve_keys({"share"}); }) ==
        "PolicyTable: option share of everything must have another name: it means something else "
        "already");
}

TEST_CASE("Decoding keys: absent keys are the defaults, every key sets its member", "[options]") {
  const auto text_of = [](const DecodingOptions& options) { return options_text(options); };
  CHECK(text_of(decoding_options({}, {})) == text_of({}));
  const DecodingOptions all = decoding_options({{"gen_length", "64"},
                                                {"block_length", "8"},
                                                {"steps", "16"},
                                                {"temperature", "0.5"},
                                                {"top_p", "0.9"},
                                                {"top_k", "5"},
                                                {"alg_temp", "0.25"},
                                                {"cfg_scale", "1.5"},
                                                {"guidance_interval", "3"},
                                                {"early_stop", "true"},
                                                {"seed", "18446744073709551615"},
                                                {"alg", "origin"},
                                                {"eps", "0.01"}},
                                               {});
  CHECK(
      text_of(all) ==
      "response 64, block_length 8, steps 16, steps_per_block 0, attention_block 0, "
      "prompt_end_grid false, fuse_blocks true, commit_next false, causal_commit false, "
      "temperature 0.5, top_p 0.9, top_k 5, "
      "order_temperature 0.25, window 0, certainty_sigma 0, threshold_alpha 0, guidance_scale 1.5, "
      "guidance_interval 3, early_stop true, stop_within_block false, trim_after_end false, "
      "end_drops_rows false, suppress_end false, end_last false, seed "
      "18446744073709551615, sequence 0");
  CHECK(all.sampling == Sampling::Categorical);
  CHECK(all.confidence == Confidence::Random);
  CHECK(std::get<BernoulliCommit>(all.commit).epsilon == 0.01);
  CHECK(decoding_options({}, {.decoder = "dream"}).confidence == Confidence::NegativeEntropy);
  CHECK(decoding_options({{"remasking", "random"}}, {}).confidence == Confidence::Random);
  CHECK(std::get<ThresholdCommit>(decoding_options({{"threshold", "0.5"}}, {}).commit).threshold ==
        0.5);
  CHECK(std::get<FactorCommit>(decoding_options({{"factor", "2"}}, {.decoder = "dream"}).commit)
            .factor == 2.0);
  CHECK(std::get<EntropyBoundCommit>(decoding_options({{"entropy_bound", "0"}}, {}).commit).bound ==
        0.0);
  CHECK(std::get<FixedCommit>(decoding_options({{"tokens_per_step", "4"}}, {}).commit).rows == 4);
}

TEST_CASE("Decoding keys: what does not go together and unknown keys are refused",
          "[options][refusal]") {
  const auto refused = [](const OptionValues& values, bool dream = false) {
    return refused_argument([&] {
      static_cast<void>(decoding_options(values, {.decoder = dream ? "dream" : "llada"}));
    });
  };
  CHECK(refused({{"remasking", "random"}, {"alg", "entropy"}}) ==
        "remasking belongs to LLaDA, it does not go with alg \"entropy\", got \"random\"");
  CHECK(refused({{"remasking", "random"}}, true) ==
        "remasking belongs to LLaDA, it does not go with alg \"entropy\", got \"random\"");
  CHECK(refused({{"eps", "0.1"}}) == "eps belongs to alg, which is not given, got 0.1");
  CHECK(refused({{"eps", "0.1"}, {"threshold", "0.5"}}, true) ==
        "eps belongs to a schedule of steps, it does not go with any of threshold, factor, "
        "entropy_bound, tokens_per_step, got 0.1");
  CHECK(refused({{"factor", "1"}, {"threshold", "0.5"}}) ==
        "at most one of threshold, factor, entropy_bound, tokens_per_step may be given, got 2");
  CHECK(refused({{"remasking", "high"}}) ==
        "remasking must be low_confidence or random, got \"high\"");
  CHECK(refused({{"alg", "best"}}) ==
        "alg must be origin, maskgit_plus, topk_margin or entropy, got \"best\"");
  CHECK(refused({{"steps", "0"}}) == "decoding: steps must be at least 1, got 0");
  CHECK(refused({{"response", "4"}}) == "decoding has no option response");
}
