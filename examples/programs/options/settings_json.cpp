// SPDX-License-Identifier: Apache-2.0
#include "programs/options/settings_json.hpp"

#include <optional>

#include "programs/options/policies.hpp"

namespace programs {
namespace {

using Json = nlohmann::ordered_json;
using dllm_cache::OptionInfo;
using dllm_cache::OptionKind;

/// A legal text as the kind of value that it stands for: words stay strings.
Json value_json(const OptionInfo& option, const std::string& text) {
  if (option.kind == OptionKind::Tokens) return Json::parse("[" + text + "]");
  if (option.kind == OptionKind::Rows) {
    const auto lists =
        dllm_cache::parse_option(text, dllm_cache::OptionRange<dllm_cache::RowLists>{});
    return Json(lists->blocks);
  }
  if (option.kind == OptionKind::Word || text == option.word) return text;
  if (option.kind == OptionKind::Flag) return text == "true";
  if (option.kind == OptionKind::Number) return *dllm_cache::parse_option<double>(text, {});
  if (const auto integer = dllm_cache::parse_option<Index>(text, {})) return *integer;
  return *dllm_cache::parse_option<std::uint64_t>(text, {});
}

}  // namespace

Json decoding_json(const OptionValues& decoding, const ModelDecoding& model) {
  const OptionValues all =
      dllm_cache::with_defaults(decoding, model, dllm_cache::parallel_rule_keys());
  Json json = Json::object();
  for (const OptionInfo& option : dllm_cache::decoding_keys()) {
    if (option.key == "gen_length") continue;
    std::optional<std::string> text = option.value;
    if (option.key == "eps" && all.contains("alg"))
      text = dllm_cache::option_text(dllm_cache::TimestepCommit{}.epsilon);
    if (const auto given = all.find(option.key); given != all.end()) text = given->second;
    json[option.key] = text ? value_json(option, *text) : Json();
  }
  return json;
}

Json policy_json(const PolicyChoice& choice) {
  const auto& entry = policies().at(policy_name(choice));
  Json options = Json::object();
  for (const OptionInfo& option : policies().options(entry.name, choice.options))
    if (option.value) options[option.key] = value_json(option, *option.value);
  return {{"policy", entry.policy},
          {"policy_options", options},
          {"preset", entry.is_preset() ? Json(entry.name) : Json()}};
}

Json compute_json(const dllm_cache::models::ComputeOptions& compute, FeatureType features) {
  namespace models = dllm_cache::models;
  return {{"backend", compute.backend == models::Backend::Eigen ? "eigen" : "onednn"},
          {"precision", models::name_of(compute.precision)},
          {"features", features == FeatureType::Float32 ? "float32" : "bf16"}};
}

Json rows_json(const dllm_cache::DecodingCounts& rows) {
  return {{"flow", rows.rows},
          {"value", rows.values},
          {"update", rows.recomputed},
          {"head", rows.logits}};
}

}  // namespace programs
