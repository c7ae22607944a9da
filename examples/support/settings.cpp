// SPDX-License-Identifier: Apache-2.0
#include "support/settings.hpp"

#include "dllm_cache/policies/dllm_cache.hpp"
#include "support/errors.hpp"

namespace programs {

Settings merge(const Settings& stronger, const Settings& weaker) {
  Settings merged = stronger;
  const auto fill = [&](auto... fields) {
    (((merged.*fields).has_value() ? void() : void(merged.*fields = weaker.*fields)), ...);
  };
  fill(&Settings::gen_length, &Settings::block_length, &Settings::steps, &Settings::temperature,
       &Settings::seed, &Settings::guidance_scale, &Settings::guidance_interval,
       &Settings::remasking, &Settings::early_stop, &Settings::policy, &Settings::prompt_interval,
       &Settings::response_interval, &Settings::ratio, &Settings::refresh_first_layer);
  return merged;
}

dllm_cache::DecodingOptions decoding_options(const Settings& settings) {
  dllm_cache::DecodingOptions options;
  options.response = settings.gen_length.value_or(options.response);
  const auto positive = [](const char* key, const std::optional<Index>& value) {
    if (value && *value < 1)
      throw BadRequest(std::string(key) + " must be at least 1, got " + std::to_string(*value));
  };
  // The library reads 0 as "not given"; somebody who writes 0 means something else.
  positive("gen_length", settings.gen_length);
  positive("block_length", settings.block_length);
  positive("steps", settings.steps);
  options.block_length = settings.block_length.value_or(0);
  options.steps = settings.steps.value_or(0);
  options.temperature = settings.temperature.value_or(0.0);
  options.seed = settings.seed.value_or(0);
  options.guidance_scale = settings.guidance_scale.value_or(0.0);
  options.guidance_interval = settings.guidance_interval.value_or(1);
  options.early_stop = settings.early_stop.value_or(false);
  const std::string remasking = settings.remasking.value_or("low_confidence");
  if (remasking == "random")
    options.remasking = dllm_cache::Remasking::Random;
  else if (remasking != "low_confidence")
    throw BadRequest("remasking must be low_confidence or random, got \"" + remasking + "\"");
  return options;
}

dllm_cache::AnyPolicy make_policy(const Settings& settings) {
  const std::string name = settings.policy.value_or("dllm-cache");
  if (name == "none") return dllm_cache::NoCache{};
  if (name == "dllm-cache") {
    dllm_cache::DllmCachePolicy policy;
    policy.prompt_interval = settings.prompt_interval.value_or(policy.prompt_interval);
    policy.response_interval = settings.response_interval.value_or(policy.response_interval);
    policy.ratio = settings.ratio.value_or(policy.ratio);
    policy.refresh_first_layer = settings.refresh_first_layer.value_or(policy.refresh_first_layer);
    return policy;
  }
  throw BadRequest("policy must be none or dllm-cache, got \"" + name + "\"");
}

}  // namespace programs
