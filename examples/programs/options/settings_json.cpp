// SPDX-License-Identifier: Apache-2.0
#include "programs/options/settings_json.hpp"

#include <cmath>
#include <optional>

namespace programs {
namespace {

using Json = nlohmann::ordered_json;

template <class T>
Json or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json();
}

}  // namespace

Json decoding_json(const DecodingSettings& settings, bool dream) {
  const bool by_alg = settings.alg || dream;
  Json json = {
      {"block_length", or_null(settings.block_length)},
      {"steps", or_null(settings.steps)},
      {"temperature", settings.temperature.value_or(0.0)},
      {"seed", settings.seed.value_or(0)},
      {"cfg_scale", settings.guidance_scale.value_or(0.0)},
      {"guidance_interval", settings.guidance_interval.value_or(1)},
      {"remasking", settings.remasking.value_or("low_confidence")},
      {"alg", by_alg ? Json(settings.alg.value_or("entropy")) : Json()},
      {"eps", by_alg ? Json(settings.eps.value_or(1e-3)) : Json()},
      {"alg_temp", settings.alg_temp.value_or(0.0)},
      {"top_p", settings.top_p.value_or(1.0)},
      {"top_k", settings.top_k.value_or(0)},
      {"early_stop", settings.early_stop.value_or(false)},
      {"threshold", or_null(settings.threshold)},
      {"factor", or_null(settings.factor)},
      {"entropy_bound", or_null(settings.entropy_bound)},
      {"tokens_per_step", or_null(settings.tokens_per_step)},
  };
  return json;
}

Json policy_json(const PolicySettings& settings) {
  const PolicySettings all = with_defaults(settings);
  Json options = Json::object();
  const auto add = [&](const char* name, const auto& value) {
    if (value) options[name] = *value;
  };
  const auto add_interval = [&](const char* name, const std::optional<Index>& value) {
    if (value) options[name] = *value == dllm_cache::never ? Json("never") : Json(*value);
  };
  add_interval("prompt_interval", all.prompt_interval);
  add_interval("response_interval", all.response_interval);
  add("ratio", all.ratio);
  add("refresh_first_layer", all.refresh_first_layer);
  add("recompute_block", all.recompute_block);
  if (all.similarity_threshold)
    options["similarity_threshold"] =
        std::isinf(*all.similarity_threshold) ? Json("none") : Json(*all.similarity_threshold);
  add_interval("refresh_interval", all.refresh_interval);
  add("prefix_look", all.prefix_look);
  add("after_look", all.after_look);
  add("warmup_steps", all.warmup_steps);
  add("keep_active", all.keep_active);
  return {{"policy", *all.policy}, {"policy_options", options}};
}

Json compute_json(const dllm_cache::models::ComputeOptions& compute, FeatureType features) {
  namespace models = dllm_cache::models;
  return {{"backend", compute.backend == models::Backend::Eigen ? "eigen" : "onednn"},
          {"precision", compute.precision == models::Precision::Float32 ? "float32" : "bf16"},
          {"features", features == FeatureType::Float32 ? "float32" : "bf16"}};
}

Json rows_json(const dllm_cache::DecodingCounts& rows) {
  return {{"flow", rows.rows},
          {"value", rows.values},
          {"update", rows.recomputed},
          {"head", rows.logits}};
}

}  // namespace programs
