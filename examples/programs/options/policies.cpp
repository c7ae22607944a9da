// SPDX-License-Identifier: Apache-2.0
// The table of policies that the programs offer.
#include <algorithm>
#include <array>
#include <utility>

#include "dllm_cache/policies/changed_rows.hpp"
#include "dllm_cache/policies/dkv_decode.hpp"
#include "dllm_cache/policies/dllm_cache.hpp"
#include "dllm_cache/policies/dual_cache.hpp"
#include "dllm_cache/policies/free_cache.hpp"
#include "dllm_cache/policies/prefix_cache.hpp"
#include "dllm_cache/policies/recommended.hpp"
#include "dllm_cache/policies/vicinity.hpp"
#include "programs/options/settings.hpp"
#include "programs/text/errors.hpp"

namespace programs {

namespace d = dllm_cache;

namespace {

// A field of the policy keeps its default where the settings say nothing.
template <class T>
void set(T& field, const std::optional<T>& value) {
  if (value) field = *value;
}

d::AnyPolicy make_dllm_cache(const PolicySettings& settings) {
  d::DllmCachePolicy policy;
  set(policy.prompt_interval, settings.prompt_interval);
  set(policy.response_interval, settings.response_interval);
  set(policy.ratio, settings.ratio);
  set(policy.refresh_first_layer, settings.refresh_first_layer);
  set(policy.recompute_block, settings.recompute_block);
  set(policy.similarity_threshold, settings.similarity_threshold);
  return policy;
}

d::AnyPolicy make_vicinity(const PolicySettings& settings) {
  d::VicinityPolicy policy;
  set(policy.prefix_look, settings.prefix_look);
  set(policy.after_look, settings.after_look);
  set(policy.warmup_steps, settings.warmup_steps);
  set(policy.refresh_interval, settings.refresh_interval);
  return policy;
}

d::AnyPolicy make_dkv(const PolicySettings& settings) {
  d::DkvDecodePolicy policy;
  set(policy.refresh_interval, settings.refresh_interval);
  return policy;
}

d::AnyPolicy make_changed_rows(const PolicySettings& settings) {
  d::ChangedRowsPolicy policy;
  set(policy.keep_active, settings.keep_active);
  set(policy.refresh_interval, settings.refresh_interval);
  return policy;
}

template <class Policy>
d::AnyPolicy make_plain(const PolicySettings&) {
  return Policy{};
}

template <auto Goal>
d::AnyPolicy make_goal(const PolicySettings&) {
  return Goal();
}

void set_options(PolicySettings& settings, const d::DllmCachePolicy& policy) {
  settings.prompt_interval = policy.prompt_interval;
  settings.response_interval = policy.response_interval;
  settings.ratio = policy.ratio;
  settings.refresh_first_layer = policy.refresh_first_layer;
  settings.recompute_block = policy.recompute_block;
  settings.similarity_threshold = policy.similarity_threshold;
}

std::string names() {
  std::string all;
  for (const PolicyEntry& entry : policies()) all += (all.empty() ? "" : ", ") + entry.name;
  return all;
}

}  // namespace

const std::vector<PolicyEntry>& policies() {
  static const std::vector<PolicyEntry> all = {
      {"exact", "goal: the uncached answers; the same as none", {}, make_goal<d::exact_policy>},
      {"balanced",
       "goal: nearly all uncached answers, several times fewer operations; dllm-cache with "
       "recompute-block (the default)",
       {},
       make_goal<d::balanced_policy>},
      {"fastest",
       "goal: most uncached answers, fewest operations; the same as dual",
       {},
       make_goal<d::fastest_policy>},
      {"none", "everything is recomputed at every step", {}, make_plain<d::NoCache>},
      {"dllm-cache",
       "dLLM-Cache: prompt and response refreshed at intervals; in between the response rows whose "
       "values turned most",
       {"prompt-interval", "response-interval", "ratio", "refresh-first-layer", "recompute-block",
        "similarity-threshold"},
       make_dllm_cache},
      {"prefix",
       "Fast-dLLM prefix cache: full forward per block, then the block and all after it",
       {},
       make_plain<d::PrefixCachePolicy>},
      {"dual",
       "Fast-dLLM dual cache: full forward per block, then the block alone",
       {},
       make_plain<d::DualCachePolicy>},
      {"vicinity",
       "dInfer vicinity refresh: warm-up, full forward per block, then the block and its "
       "neighbourhood",
       {"prefix-look", "after-look", "warmup-steps", "refresh-interval"},
       make_vicinity},
      {"freecache",
       "FreeCache: one full forward, then the block and all after it; what lies before is frozen",
       {},
       make_plain<d::FreeCachePolicy>},
      {"dkv",
       "dKV-Cache decode: masked rows and those just decoded; a full forward at intervals",
       {"refresh-interval"},
       make_dkv},
      {"changed-rows",
       "diffuse-cpp: masked rows and those changed in the last steps",
       {"keep-active", "refresh-interval"},
       make_changed_rows},
  };
  return all;
}

PolicySettings expand_goal(PolicySettings settings) {
  const std::string name = settings.policy.value_or(default_policy);
  if (name == "balanced") set_options(settings, d::balanced_policy());
  settings.policy = name == "balanced"  ? "dllm-cache"
                    : name == "fastest" ? "dual"
                    : name == "exact"   ? "none"
                                        : name;
  return settings;
}

d::AnyPolicy make_policy(const PolicySettings& settings) {
  const std::string name = settings.policy.value_or(default_policy);
  for (const PolicyEntry& entry : policies())
    if (entry.name == name) return entry.make(settings);
  throw BadRequest("policy must be one of " + names() + ", got \"" + name + "\"");
}

PolicySettings with_defaults(PolicySettings settings) {
  const auto fill = [](auto& option, auto value) {
    if (!option) option = value;
  };
  settings = expand_goal(std::move(settings));
  if (settings.policy == "dllm-cache") {
    const d::DllmCachePolicy policy;
    fill(settings.prompt_interval, policy.prompt_interval);
    fill(settings.response_interval, policy.response_interval);
    fill(settings.ratio, policy.ratio);
    fill(settings.refresh_first_layer, policy.refresh_first_layer);
    fill(settings.recompute_block, policy.recompute_block);
    fill(settings.similarity_threshold, policy.similarity_threshold);
  } else if (settings.policy == "vicinity") {
    const d::VicinityPolicy policy;
    fill(settings.prefix_look, policy.prefix_look);
    fill(settings.after_look, policy.after_look);
    fill(settings.warmup_steps, policy.warmup_steps);
    fill(settings.refresh_interval, policy.refresh_interval);
  } else if (settings.policy == "dkv") {
    fill(settings.refresh_interval, d::DkvDecodePolicy{}.refresh_interval);
  } else if (settings.policy == "changed-rows") {
    const d::ChangedRowsPolicy policy;
    fill(settings.keep_active, policy.keep_active);
    fill(settings.refresh_interval, policy.refresh_interval);
  }
  return settings;
}

void check_policy_options(const PolicySettings& given, const std::string& policy) {
  const std::array<std::pair<const char*, bool>, 11> all = {{
      {"prompt-interval", given.prompt_interval.has_value()},
      {"response-interval", given.response_interval.has_value()},
      {"ratio", given.ratio.has_value()},
      {"refresh-first-layer", given.refresh_first_layer.has_value()},
      {"recompute-block", given.recompute_block.has_value()},
      {"similarity-threshold", given.similarity_threshold.has_value()},
      {"refresh-interval", given.refresh_interval.has_value()},
      {"prefix-look", given.prefix_look.has_value()},
      {"after-look", given.after_look.has_value()},
      {"warmup-steps", given.warmup_steps.has_value()},
      {"keep-active", given.keep_active.has_value()},
  }};
  const auto entry = std::find_if(policies().begin(), policies().end(),
                                  [&](const PolicyEntry& one) { return one.name == policy; });
  if (entry == policies().end()) return;  // make_policy names it
  for (const auto& [name, set] : all)
    if (set &&
        std::find(entry->options.begin(), entry->options.end(), name) == entry->options.end())
      throw BadRequest("--" + std::string(name) + " does not belong to policy " + policy);
}

}  // namespace programs
