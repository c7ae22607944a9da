// SPDX-License-Identifier: Apache-2.0
#include "programs/options/request.hpp"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "programs/options/policies.hpp"
#include "programs/text/json_reader.hpp"
#include "programs/text/text_file.hpp"

namespace programs {
namespace {

using Json = nlohmann::json;
using dllm_cache::OptionInfo;
using dllm_cache::OptionKind;

constexpr std::array<std::string_view, 7> own_keys = {"prompt_ids",   "cache",     "cache_kind",
                                                      "mask_token",   "end_token", "mask_token_id",
                                                      "eos_token_ids"};
// What golden cases say beside their request: tests/golden/README.md.
constexpr std::array<std::string_view, 8> golden_keys = {
    "expected", "margins",          "note",          "probe_steps", "model",
    "forwards", "rows_per_forward", "suffix_sampler"};

/// The reference's names of dLLM-Cache's options, and ours.
constexpr std::array<std::pair<const char*, const char*>, 4> cache_keys = {
    {{"prompt_interval_steps", "prompt_interval"},
     {"gen_interval_steps", "response_interval"},
     {"transfer_ratio", "ratio"},
     {"always_refresh_layer_0", "refresh_first_layer"}}};
constexpr const char* guidance_key = "cfg_interval_steps";
/// Options of which the references' null is a value of its own.
constexpr std::array<std::pair<const char*, const char*>, 1> null_words = {
    {{"kernel_size", "none"}}};

std::vector<std::vector<std::int32_t>> read_prompts(const JsonReader& reader) {
  const char* key = "prompt_ids";
  const char* legal = "a list of prompts, each a list of token ids in [0, 2^31)";
  const Json* prompts = reader.find(key);
  if (prompts == nullptr || !prompts->is_array() || prompts->empty())
    reader.refuse(key, legal, prompts == nullptr ? Json() : *prompts);
  std::vector<std::vector<std::int32_t>> ids;
  ids.reserve(prompts->size());
  for (const Json& prompt : *prompts) ids.push_back(reader.token_ids(key, prompt, legal));
  return ids;
}

/// Whether a value is of the option's kind: numbers are not written as strings, nor flags as
/// numbers.
bool fits(const Json& value, const OptionInfo& option) {
  if (value.is_string())
    return option.kind == OptionKind::Word ||
           (!option.word.empty() && value.get_ref<const std::string&>() == option.word);
  switch (option.kind) {
    case OptionKind::Flag:
      return value.is_boolean();
    case OptionKind::Integer:
      return value.is_number_integer();
    case OptionKind::Number:
      return value.is_number();
    case OptionKind::Word:
      return false;
    case OptionKind::Tokens:
    case OptionKind::Rows:
      return value.is_array();
  }
  return false;
}

/// Lists of rows as the text that they are in options.
std::string read_rows(const JsonReader& reader, const char* key, const OptionInfo& option,
                      const Json& value) {
  if (!value.is_array()) reader.refuse(key, option.legal, value);
  dllm_cache::RowLists lists;
  for (const Json& list : value) {
    const auto rows = reader.token_ids(key, list, option.legal);
    lists.blocks.emplace_back(rows.begin(), rows.end());
  }
  return dllm_cache::option_text(lists);
}

/// Takes the value of an option as text where it is there; `as` is its key in `to`.
void read_option(const JsonReader& reader, const char* key, const OptionInfo& option,
                 const std::string& as, OptionValues& to) {
  const Json* value = reader.find(key);
  if (value == nullptr) return;
  if (option.kind == OptionKind::Tokens) {
    std::string ids;
    for (const std::int32_t id : reader.token_ids(key, *value, "a list of token ids in [0, 2^31)"))
      ids += (ids.empty() ? "" : ",") + std::to_string(id);
    to[as] = ids;
    return;
  }
  if (option.kind == OptionKind::Rows) {
    to[as] = read_rows(reader, key, option, *value);
    return;
  }
  if (!fits(*value, option)) {
    const char* kind = option.kind == OptionKind::Flag      ? ""
                       : option.kind == OptionKind::Integer ? "an integer "
                       : option.kind == OptionKind::Number  ? "a number "
                                                            : "";
    reader.refuse(key, kind + option.legal, *value);
  }
  to[as] = value->is_string() ? value->get<std::string>() : value->dump();
}

void read_cache(const Json& cache, const std::string& where, Settings& settings) {
  const JsonReader reader(cache, where + ": cache");
  std::array<std::string_view, cache_keys.size() + 1> known{guidance_key};
  for (std::size_t i = 0; i < cache_keys.size(); ++i) known[i + 1] = cache_keys[i].first;
  reader.refuse_others(known);
  settings.policy.name = "dllm-cache";
  for (const OptionInfo& option : policies().at("dllm-cache").options)
    for (const auto& [theirs, ours] : cache_keys)
      if (option.key == ours) read_option(reader, theirs, option, ours, settings.policy.options);
  for (const OptionInfo& option : dllm_cache::decoding_keys())
    if (option.key == "guidance_interval")
      read_option(reader, guidance_key, option, option.key, settings.decoding);
}

void read_tokens(const JsonReader& reader, TokenSettings& tokens) {
  constexpr const char* one = "a token id in [0, 2^31)";
  // Scripts call them by the names of config.json too.
  const auto find = [&](const char* key, const char* other) {
    if (reader.find(key) != nullptr && reader.find(other) != nullptr)
      reader.refuse(other, std::string("absent beside ") + key, *reader.find(other));
    return reader.find(other) != nullptr ? other : key;
  };
  const char* const mask_key = find("mask_token", "mask_token_id");
  if (const Json* mask = reader.find(mask_key))
    tokens.mask = reader.token_ids(mask_key, Json::array({*mask}), one).front();
  const char* const end_key = find("end_token", "eos_token_ids");
  const Json* end = reader.find(end_key);
  if (end == nullptr) return;
  tokens.ends = reader.token_ids(end_key, end->is_array() ? *end : Json::array({*end}),
                                 "a token id in [0, 2^31) or a list of them");
  tokens.ends_alone = end_key == std::string_view("eos_token_ids");
}

void read_policy(const Json& json, const JsonReader& reader, const std::string& name,
                 Settings& settings) {
  PolicyChoice& policy = settings.policy;
  const auto cache = json.find("cache");
  if (cache != json.end()) {
    if (cache->is_null())
      policy.name = "none";
    else if (cache->is_object())
      read_cache(*cache, name, settings);
    else
      reader.refuse("cache", "null or an object", *cache);
  }
  std::optional<std::string> kind;
  reader.read("cache_kind", kind);
  if (kind && cache != json.end() && cache->is_object() && *kind != "dllm-cache")
    reader.refuse("cache_kind", "dllm-cache or absent beside cache", json.at("cache_kind"));
  if (kind) policy.name = kind;
  OptionValues flat;
  for (const auto& entry : policies().entries())
    for (const OptionInfo& option : entry.options)
      read_option(reader, option.key.c_str(), option, option.key, flat);
  for (const auto& [key, word] : null_words)
    if (const auto found = json.find(key); found != json.end() && found->is_null())
      flat[key] = word;
  for (const auto& [key, text] : flat)
    if (!policy.options.emplace(key, text).second)
      throw BadRequest(std::string(name).append(": ").append(key).append(
          " is given twice, in cache and beside it"));
  // `cache: null` alone says that there is none; with options it says nothing of which policy.
  if (!kind && policy.name == "none" && !policy.options.empty()) policy.name.reset();
}

}  // namespace

std::vector<std::string> request_keys() {
  std::vector<std::string> keys(own_keys.begin(), own_keys.end());
  keys.insert(keys.end(), golden_keys.begin(), golden_keys.end());
  for (const OptionInfo& option : dllm_cache::decoding_keys()) keys.push_back(option.key);
  return keys;
}

Request parse_request(const std::string& text, const std::string& name) {
  const Json json = parse_object(text, name, "a request");
  const JsonReader reader(json, name);
  std::vector<std::string> known = request_keys();
  for (const auto& entry : policies().entries())
    for (const OptionInfo& option : entry.options) known.push_back(option.key);
  for (const auto& [key, value] : json.items())
    if (std::find(known.begin(), known.end(), key) == known.end())
      throw BadRequest(std::string(name).append(": unknown key \"").append(key).append("\""));
  Request request;
  request.prompts = read_prompts(reader);
  for (const OptionInfo& option : dllm_cache::decoding_keys())
    read_option(reader, option.key.c_str(), option, option.key, request.settings.decoding);
  read_policy(json, reader, name, request.settings);
  read_tokens(reader, request.settings.tokens);
  return request;
}

Request read_request(const std::filesystem::path& path) {
  const std::string text = read_text(path);
  if (text.empty()) throw BadRequest(path.string() + ": empty");
  return parse_request(text, path.string());
}

}  // namespace programs
