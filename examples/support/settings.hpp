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

/// Everything that a request or an option may say about a generation; what neither says is empty.
struct Settings {
  std::optional<Index> gen_length;
  std::optional<Index> block_length;
  std::optional<Index> steps;
  std::optional<double> temperature;
  std::optional<std::uint64_t> seed;
  std::optional<double> guidance_scale;
  std::optional<Index> guidance_interval;
  std::optional<std::string> remasking;
  std::optional<bool> early_stop;

  std::optional<std::string> policy;  // "none", "dllm-cache"
  std::optional<Index> prompt_interval;
  std::optional<Index> response_interval;
  std::optional<double> ratio;
  std::optional<bool> refresh_first_layer;
};

/// `stronger` where it says something, `weaker` elsewhere.
[[nodiscard]] Settings merge(const Settings& stronger, const Settings& weaker);

/// The library's options for these settings; throws BadRequest naming the key.
[[nodiscard]] dllm_cache::DecodingOptions decoding_options(const Settings& settings);

/// The cache policy for these settings; throws BadRequest naming the key.
[[nodiscard]] dllm_cache::AnyPolicy make_policy(const Settings& settings);

}  // namespace programs
