// SPDX-License-Identifier: Apache-2.0
#include "programs/options/policies.hpp"

#include "programs/options/option_names.hpp"
#include "programs/options/request.hpp"

namespace programs {

dllm_cache::PolicyTable& policies() {
  static dllm_cache::PolicyTable table = [] {
    dllm_cache::PolicyTable made = dllm_cache::bundled_policies();
    made.reserve_keys(request_keys());
    return made;
  }();
  return table;
}

std::string policy_name(const PolicyChoice& choice) {
  return choice.name.value_or(choice.options.empty() ? default_policy : "dllm-cache");
}

void choose_policy(Settings& settings) {
  if (settings.policy.name) return;
  const auto options = dllm_cache::decoding_options(settings.decoding, settings.model);
  if (options.attention_block > 0) settings.policy.name = "block";
}

dllm_cache::AnyPolicy make_policy(const PolicyChoice& choice) {
  return policies().make(policy_name(choice), choice.options);
}

void check_given(const OptionValues& given, const std::string& policy) {
  const auto& entry = policies().at(policy);
  for (const auto& [key, text] : given) policies().check_option(entry, key, command_name(key));
}

}  // namespace programs
