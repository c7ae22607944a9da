// SPDX-License-Identifier: Apache-2.0
#include "programs/options/request.hpp"

#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

#include "programs/text/json_reader.hpp"
#include "programs/text/text_file.hpp"

namespace programs {
namespace {

using Json = nlohmann::json;

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

void read_cache(const Json& cache, const std::string& where, Settings& settings) {
  const JsonReader reader(cache, where + ": cache");
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
  const Json json = parse_object(text, name, "a request");
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
  const JsonReader reader(json, name);
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
  const std::string text = read_text(path);
  if (text.empty()) throw BadRequest(path.string() + ": empty");
  return parse_request(text, path.string());
}

}  // namespace programs
