// SPDX-License-Identifier: Apache-2.0
#include "support/request.hpp"

#include <array>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string_view>

#include "support/errors.hpp"

namespace programs {
namespace {

using Json = nlohmann::json;

/// Reads typed values out of one JSON object and refuses what it does not know.
class Reader {
 public:
  Reader(const Json& object, std::string where) : m_object(object), m_where(std::move(where)) {}

  [[noreturn]] void refuse(std::string_view key, std::string_view legal, const Json& got) const {
    std::string text = got.dump(-1, ' ', true, Json::error_handler_t::replace);
    if (text.size() > 60) text = text.substr(0, 57) + "...";
    throw BadRequest(m_where + ": " + std::string(key) + " must be " + std::string(legal) +
                     ", got " + text);
  }

  void read(const char* key, std::optional<Index>& to) const {
    if (const Json* value = find(key)) to = integer(key, *value);
  }
  void read(const char* key, std::optional<std::uint64_t>& to) const {
    const Json* value = find(key);
    if (value == nullptr) return;
    if (!value->is_number_unsigned()) refuse(key, "an integer in [0, 2^64)", *value);
    to = value->get<std::uint64_t>();
  }
  void read(const char* key, std::optional<double>& to) const {
    const Json* value = find(key);
    if (value == nullptr) return;
    if (!value->is_number()) refuse(key, "a number", *value);
    to = value->get<double>();
  }
  void read(const char* key, std::optional<bool>& to) const {
    const Json* value = find(key);
    if (value == nullptr) return;
    if (!value->is_boolean()) refuse(key, "true or false", *value);
    to = value->get<bool>();
  }
  void read(const char* key, std::optional<std::string>& to) const {
    const Json* value = find(key);
    if (value == nullptr) return;
    if (!value->is_string()) refuse(key, "a string", *value);
    to = value->get<std::string>();
  }

  /// The value of a key; null counts as absent.
  [[nodiscard]] const Json* find(const char* key) const {
    const auto found = m_object.find(key);
    return found == m_object.end() || found->is_null() ? nullptr : &*found;
  }

  template <std::size_t N>
  void refuse_others(const std::array<std::string_view, N>& known) const {
    for (const auto& [key, value] : m_object.items())
      if (std::find(known.begin(), known.end(), key) == known.end())
        throw BadRequest(m_where + ": unknown key \"" + key + "\"");
  }

 private:
  [[nodiscard]] Index integer(const char* key, const Json& value) const {
    const bool fits = value.is_number_integer() &&
                      !(value.is_number_unsigned() &&
                        value.get<std::uint64_t>() >
                            static_cast<std::uint64_t>(std::numeric_limits<Index>::max()));
    if (!fits) refuse(key, "an integer", value);
    return value.get<Index>();
  }

  const Json& m_object;
  std::string m_where;
};

std::vector<std::vector<std::int32_t>> read_prompts(const Reader& reader) {
  const char* key = "prompt_ids";
  const char* legal = "a list of prompts, each a list of token ids in [0, 2^31)";
  const Json* prompts = reader.find(key);
  if (prompts == nullptr || !prompts->is_array() || prompts->empty())
    reader.refuse(key, legal, prompts == nullptr ? Json() : *prompts);
  std::vector<std::vector<std::int32_t>> ids;
  for (const Json& prompt : *prompts) {
    if (!prompt.is_array()) reader.refuse(key, legal, prompt);
    auto& one = ids.emplace_back();
    for (const Json& id : prompt) {
      if (!id.is_number_unsigned() ||
          id.get<std::uint64_t>() >
              static_cast<std::uint64_t>(std::numeric_limits<std::int32_t>::max()))
        reader.refuse(key, legal, id);
      one.push_back(id.get<std::int32_t>());
    }
  }
  return ids;
}

void read_cache(const Json& cache, const std::string& where, Settings& settings) {
  const Reader reader(cache, where + ": cache");
  constexpr std::array<std::string_view, 5> known = {"prompt_interval_steps", "gen_interval_steps",
                                                     "transfer_ratio", "cfg_interval_steps",
                                                     "always_refresh_layer_0"};
  reader.refuse_others(known);
  PolicySettings& caching = settings.caching;
  caching.policy = "dllm-cache";
  reader.read("prompt_interval_steps", caching.prompt_interval);
  reader.read("gen_interval_steps", caching.response_interval);
  reader.read("transfer_ratio", caching.ratio);
  reader.read("cfg_interval_steps", settings.decoding.guidance_interval);
  reader.read("always_refresh_layer_0", caching.refresh_first_layer);
}

}  // namespace

Request parse_request(const std::string& text, const std::string& name) {
  // A deep nest would exhaust the stack; no request nests deeper than this.
  constexpr int deepest = 8;
  const Json json = Json::parse(
      text,
      [&](int depth, Json::parse_event_t, Json&) {
        if (depth > deepest) throw BadRequest(name + ": nested deeper than a request can be");
        return true;
      },
      /*allow_exceptions=*/false);
  if (json.is_discarded()) throw BadRequest(name + ": not JSON");
  if (!json.is_object()) throw BadRequest(name + ": a request must be a JSON object");

  constexpr std::array<std::string_view, 27> known = {"prompt_ids",    "gen_length",
                                                      "block_length",  "steps",
                                                      "temperature",   "seed",
                                                      "cfg_scale",     "remasking",
                                                      "cache",         "alg",
                                                      "eps",           "alg_temp",
                                                      "top_p",         "top_k",
                                                      "threshold",     "factor",
                                                      "cache_kind",    "refresh_interval",
                                                      "margins",       "note",
                                                      "probe_steps",   "model",
                                                      "forwards",      "rows_per_forward",
                                                      "entropy_bound", "tokens_per_step",
                                                      "early_stop"};
  const Reader reader(json, name);
  reader.refuse_others(known);
  Request request;
  request.prompts = read_prompts(reader);
  DecodingSettings& decoding = request.settings.decoding;
  reader.read("gen_length", decoding.gen_length);
  reader.read("block_length", decoding.block_length);
  reader.read("steps", decoding.steps);
  reader.read("temperature", decoding.temperature);
  reader.read("top_p", decoding.top_p);
  reader.read("top_k", decoding.top_k);
  reader.read("seed", decoding.seed);
  reader.read("cfg_scale", decoding.guidance_scale);
  reader.read("remasking", decoding.remasking);
  reader.read("alg", decoding.alg);
  reader.read("eps", decoding.eps);
  reader.read("alg_temp", decoding.alg_temp);
  reader.read("threshold", decoding.threshold);
  reader.read("factor", decoding.factor);
  reader.read("entropy_bound", decoding.entropy_bound);
  reader.read("tokens_per_step", decoding.tokens_per_step);
  reader.read("early_stop", decoding.early_stop);
  PolicySettings& caching = request.settings.caching;
  if (const auto cache = json.find("cache"); cache != json.end()) {
    if (cache->is_null())
      caching.policy = "none";
    else if (cache->is_object())
      read_cache(*cache, name, request.settings);
    else
      reader.refuse("cache", "null or an object", *cache);
  }
  std::optional<std::string> kind;
  reader.read("cache_kind", kind);
  if (kind && json.contains("cache") && json.at("cache").is_object() && *kind != "dllm-cache")
    reader.refuse("cache_kind", "dllm-cache or absent beside cache", json.at("cache_kind"));
  if (kind) caching.policy = kind;
  reader.read("refresh_interval", caching.refresh_interval);
  return request;
}

Request read_request(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  // Reading a folder opens but does not read.
  if (!file || !(text << file.rdbuf())) {
    if (file && std::filesystem::is_regular_file(path)) throw BadRequest(path.string() + ": empty");
    throw std::runtime_error(path.string() + ": cannot be read");
  }
  return parse_request(text.str(), path.string());
}

}  // namespace programs
