// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dllm_cache/decoding/sequence_state.hpp"
#include "dllm_cache/policy.hpp"

namespace programs {

using dllm_cache::Index;

/// How a sequence is decoded, as far as a request or an option says it.
struct DecodingSettings {
  std::optional<Index> gen_length;
  std::optional<Index> block_length;
  std::optional<Index> steps;
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<Index> top_k;
  std::optional<std::uint64_t> seed;
  std::optional<double> guidance_scale;
  std::optional<Index> guidance_interval;
  std::optional<std::string> remasking;  // LLaDA: low_confidence, random
  std::optional<std::string> alg;        // Dream: origin, maskgit_plus, topk_margin, entropy
  std::optional<double> eps;
  std::optional<double> alg_temp;
  std::optional<bool> early_stop;
  // At most one of these; none: a counted schedule.
  std::optional<double> threshold;
  std::optional<double> factor;
  std::optional<double> entropy_bound;
  std::optional<Index> tokens_per_step;
};

/// What features are stored in.
enum class FeatureType { Float32, Bfloat16 };

/// Which policy runs and its options, as far as a request or an option says it.
struct PolicySettings {
  std::optional<std::string> policy;  // a name of policies()
  std::optional<Index> prompt_interval;
  std::optional<Index> response_interval;
  std::optional<double> ratio;
  std::optional<bool> refresh_first_layer;
  std::optional<bool> recompute_block;
  std::optional<double> similarity_threshold;
  std::optional<Index> refresh_interval;
  std::optional<Index> prefix_look;
  std::optional<Index> after_look;
  std::optional<Index> warmup_steps;
  std::optional<Index> keep_active;
};

/// Everything that a request or an option may say about a generation; what neither says is empty.
struct Settings {
  DecodingSettings decoding;
  PolicySettings caching;
};

/// `stronger` where it says something, `weaker` elsewhere; a rule of `stronger` (threshold and its
/// kin) replaces the rule of `weaker`, its policy the other policy.
[[nodiscard]] Settings merge(const Settings& stronger, const Settings& weaker);

/// The library's options for these settings; `dream` says whether the model is decoded like Dream
/// where the settings do not say it. Throws BadRequest naming the key.
[[nodiscard]] dllm_cache::DecodingOptions decoding_options(const DecodingSettings& settings,
                                                           bool dream);

/// One cache policy as the programs offer it.
struct PolicyEntry {
  std::string name;
  std::string description;
  std::vector<std::string>
      options;  // names of the PolicySettings that it reads, as on the command line
  dllm_cache::AnyPolicy (*make)(const PolicySettings& settings);
};

/// All policies, in the order in which `--policy list` shows them.
[[nodiscard]] const std::vector<PolicyEntry>& policies();

/// The policy where settings name none.
inline constexpr const char* default_policy = "balanced";

/// The same settings with a goal (exact, balanced, fastest) replaced by the policy and the options
/// that the library recommends for it; the default where they name nothing.
[[nodiscard]] PolicySettings expand_goal(PolicySettings settings);

/// The cache policy for these settings, goals expanded; throws BadRequest for an unknown name.
[[nodiscard]] dllm_cache::AnyPolicy make_policy(const PolicySettings& settings);

/// The same settings with the policy's name and the defaults of its options where they say nothing.
[[nodiscard]] PolicySettings with_defaults(PolicySettings settings);

/// Refuses settings that the policy does not read; throws BadRequest naming the option.
void check_policy_options(const PolicySettings& given, const std::string& policy);

}  // namespace programs
