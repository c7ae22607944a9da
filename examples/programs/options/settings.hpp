// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dllm_cache/decoding/decoding_keys.hpp"
#include "dllm_cache/options.hpp"

namespace programs {

using dllm_cache::Index;
using dllm_cache::ModelDecoding;
using dllm_cache::OptionValues;

/// What features are stored in.
enum class FeatureType { Float32, Bfloat16 };

/// Which policy or preset runs and its options, as far as a request or an option says it.
struct PolicyChoice {
  std::optional<std::string> name;
  OptionValues options;
};

/// Tokens that a checkpoint does not name, or not as they should be.
struct TokenSettings {
  std::optional<std::int32_t> mask;     ///< `mask_token`, in place of the checkpoint's.
  std::vector<std::int32_t> ends = {};  ///< `end_token`, besides the checkpoint's.
  bool ends_alone = false;              ///< `eos_token_ids`: in place of the checkpoint's.
};

/// Everything that a request or the command line says about a generation, as text by key.
struct Settings {
  OptionValues decoding;
  PolicyChoice policy;
  TokenSettings tokens = {};
  ModelDecoding model = {};  ///< How the model is decoded where nothing is said; see decoding_of().
};

/// `stronger` where it says something, `weaker` elsewhere. A rule of `stronger` (threshold and its
/// kin) replaces the rule of `weaker`, an `alg` its `remasking`, another policy the policy with its
/// options. Options without a policy vary the policy of `weaker` where they belong to it, and mean
/// dllm-cache otherwise.
[[nodiscard]] Settings merge(const Settings& stronger, const Settings& weaker);

}  // namespace programs
