// SPDX-License-Identifier: Apache-2.0
#include "programs/options/command_line.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <ostream>
#include <vector>

#include "dllm_cache/models/compute/backends.hpp"
#include "programs/options/option_names.hpp"
#include "programs/options/policies.hpp"

namespace programs {

namespace models = dllm_cache::models;
using dllm_cache::OptionInfo;
using dllm_cache::OptionKind;

namespace {

const char* type_name(OptionKind kind) {
  switch (kind) {
    case OptionKind::Flag:
      return "[true|false]";
    case OptionKind::Integer:
      return "INT";
    case OptionKind::Number:
      return "NUMBER";
    case OptionKind::Word:
      return "WORD";
    case OptionKind::Tokens:
      return "ID,ID,...";
    case OptionKind::Rows:
      return "ROW,ROW;ROW;...";
  }
  return "TEXT";
}

/// Declares one option whose text goes to `values`; a flag may stand without its value.
CLI::Option* declare(CLI::App& app, const OptionInfo& option, const std::string& help,
                     OptionValues& values) {
  auto* const declared = app.add_option_function<std::string>(
      command_name(option.key),
      [&values, key = option.key](const std::string& text) {
        values[key] = text.empty() ? "true" : text;  // only a flag may come without one
      },
      help);
  declared->type_name(type_name(option.kind));
  if (option.kind == OptionKind::Flag) declared->expected(0, 1);
  return declared;
}

/// "at least 1 (or never)", and the default where there is one.
std::string range_and_default(const OptionInfo& option) {
  std::string text = option.kind == OptionKind::Flag ? "" : option.legal;
  if (option.value && !option.value->empty())
    text += (text.empty() ? "default " : "; default ") + *option.value;
  return text.empty() ? "" : " (" + text + ")";
}

/// What an option is in every policy that has it: "dkv, vicinity: steps ... (default 4, never)".
std::string policy_help(const std::string& key) {
  struct Meaning {
    explicit Meaning(std::string said) : text(std::move(said)) {}
    std::string text, names, defaults, first;
    bool differ = false;
  };
  std::vector<Meaning> meanings;
  for (const auto& entry : policies().entries())
    for (const OptionInfo& option : entry.options) {
      if (entry.is_preset() || option.key != key) continue;
      const std::string text =
          option.help + (option.kind == OptionKind::Flag ? "" : ", " + option.legal);
      auto same = std::find_if(meanings.begin(), meanings.end(),
                               [&](const Meaning& one) { return one.text == text; });
      if (same == meanings.end()) same = meanings.insert(meanings.end(), Meaning(text));
      same->names += (same->names.empty() ? "" : ", ") + entry.name;
      const std::string value = option.value.value_or("-");
      same->defaults += (same->defaults.empty() ? "" : ", ") + value;
      same->differ = same->differ || (!same->first.empty() && same->first != value);
      if (same->first.empty()) same->first = value;
    }
  std::string help;
  for (const Meaning& one : meanings)
    help += (help.empty() ? "" : "; ") + one.names + ": " + one.text + " (default " +
            (one.differ ? one.defaults : one.first) + ")";
  return help;
}

}  // namespace

void declare_decoding(CLI::App& app, OptionValues& values, bool for_one_length) {
  std::map<std::string, CLI::Option*> declared;
  for (const OptionInfo& option : dllm_cache::decoding_keys()) {
    if (option.key == "gen_length" && !for_one_length) continue;
    declared[option.key] = declare(app, option, option.help + range_and_default(option), values);
    declared[option.key]->group("Decoding");
  }
  const std::vector<std::string> rules = dllm_cache::parallel_rule_keys();
  for (const std::string& one : rules)
    for (const std::string& other : rules)
      if (one < other) declared.at(one)->excludes(declared.at(other));
}

void declare_policy(CLI::App& app, PolicyChoice& choice) {
  auto* const policy =
      app.add_option(
             "--policy", choice.name,
             "Cache policy, or a preset: exact, balanced (default), balanced-fixed, fastest; list "
             "describes them all. Options given with a preset vary it, options alone mean "
             "dllm-cache")
          ->group("Cache");
  app.add_flag_function(
         "--no-cache", [&choice](std::int64_t) { choice.name = "none"; },
         "The same as --policy none")
      ->group("Cache")
      ->excludes(policy);
  std::vector<std::string> done;
  for (const auto& entry : policies().entries())
    for (const OptionInfo& option : entry.options) {
      if (std::find(done.begin(), done.end(), option.key) != done.end()) continue;
      done.push_back(option.key);
      declare(app, option, policy_help(option.key), choice.options)->group("Cache");
    }
}

void declare_tokens(CLI::App& app, TokenSettings& tokens) {
  constexpr auto most = std::numeric_limits<std::int32_t>::max();
  app.add_option("--mask-token", tokens.mask,
                 "Id of the mask token, in place of the checkpoint's, for checkpoints that do not "
                 "name it")
      ->check(CLI::Range(std::int32_t{0}, most))
      ->group("Tokens");
  app.add_option("--end-token", tokens.ends,
                 "Id of a token that ends a text, besides those of the checkpoint; may be given "
                 "more than once")
      ->check(CLI::Range(std::int32_t{0}, most))
      ->expected(1)
      ->take_all()
      ->group("Tokens");
}

void declare_threads(CLI::App& app, int& threads) {
  app.add_option("--threads", threads,
                 "Threads to compute with; where it is not given OMP_NUM_THREADS, else the "
                 "processors that affinity and control groups leave to this process")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096));
}

void declare_compute(CLI::App& app, ComputeSettings& settings) {
  declare_threads(app, settings.threads);
  auto* const backend = app.add_option(
      "--backend", settings.model.backend,
      "Matrix products by eigen or onednn (default: onednn where it was built in and has products "
      "of --precision on this processor)");
  backend->transform(CLI::CheckedTransformer(std::map<std::string, models::Backend>{
      {"eigen", models::Backend::Eigen}, {"onednn", models::Backend::OneDnn}}));
  app.add_option("--precision", settings.model.precision,
                 "Weights and products in float32 (default) or bf16")
      ->transform(CLI::CheckedTransformer(std::map<std::string, models::Precision>{
          {"float32", models::Precision::Float32}, {"bf16", models::Precision::Bfloat16}}));
  app.add_option("--features", settings.features,
                 "Features stored as float32 (default) or bf16, which halves cache_bytes")
      ->transform(CLI::CheckedTransformer(std::map<std::string, FeatureType>{
          {"float32", FeatureType::Float32}, {"bf16", FeatureType::Bfloat16}}));
  // Whatever order the options come in. A backend that was asked for is refused at load instead.
  app.parse_complete_callback([&settings, backend] {
    if (backend->count() == 0 && !models::can_compute(settings.model))
      settings.model.backend = models::Backend::Eigen;
  });
}

void list_policies(std::ostream& out) {
  for (const auto& entry : policies().entries()) {
    out << entry.name << "\n    " << (entry.is_preset() ? "preset of " + entry.policy + ": " : "")
        << entry.description << '\n';
    for (const OptionInfo& option : entry.options)
      out << "    " << command_name(option.key) << "  " << option.help << range_and_default(option)
          << '\n';
  }
}

}  // namespace programs
