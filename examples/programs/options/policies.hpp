// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "dllm_cache/policies/policy_table.hpp"
#include "programs/options/settings.hpp"

namespace programs {

/// The policies of this program: those of the library, and yours after
/// `policies().add<MyPolicy>("my-policy", "what it does")` in main(), before the command line is
/// declared. Its options are then on the command line, in requests and in JSON. Throws
/// std::invalid_argument for an option whose name is a key of requests.
[[nodiscard]] dllm_cache::PolicyTable& policies();

/// The policy where nothing is said.
inline constexpr const char* default_policy = "balanced";

/// The policy or preset that a choice names; options alone mean dllm-cache, nothing the default.
[[nodiscard]] std::string policy_name(const PolicyChoice& choice);

/// Names the policy of settings that name none, where attention is block-causal: `block`, the exact
/// one, whose options then may stand alone. Throws std::invalid_argument for options of decoding
/// that make no sense.
void choose_policy(Settings& settings);

/// The policy of a choice; throws std::invalid_argument for an unknown name, an option that is not
/// the policy's and a value outside its range.
[[nodiscard]] dllm_cache::AnyPolicy make_policy(const PolicyChoice& choice);

/// Refuses options from the command line that are not the policy's, naming them as they were given.
void check_given(const OptionValues& given, const std::string& policy);

}  // namespace programs
