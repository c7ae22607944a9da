// SPDX-License-Identifier: Apache-2.0
#include "programs/options/settings.hpp"

#include <algorithm>

#include "programs/options/policies.hpp"

namespace programs {
namespace {

OptionValues merge_decoding(const OptionValues& stronger, OptionValues weaker) {
  const std::vector<std::string> rules = dllm_cache::parallel_rule_keys();
  const bool has_rule = std::any_of(rules.begin(), rules.end(),
                                    [&](const std::string& key) { return stronger.contains(key); });
  if (has_rule) {
    for (const std::string& key : rules) weaker.erase(key);
    weaker.erase("eps");
  }
  if (stronger.contains("alg")) weaker.erase("remasking");
  for (const auto& [key, text] : stronger) weaker.insert_or_assign(key, text);
  return weaker;
}

PolicyChoice merge_policy(PolicyChoice stronger, const PolicyChoice& weaker) {
  if (!stronger.name && stronger.options.empty()) return weaker;
  if (!weaker.name && weaker.options.empty()) return stronger;
  const std::string below = policy_name(weaker);
  if (!stronger.name) {
    const auto& entry = policies().at(below);
    const bool varies =
        std::all_of(stronger.options.begin(), stronger.options.end(), [&](const auto& option) {
          return dllm_cache::PolicyTable::has_option(entry, option.first);
        });
    stronger.name = varies ? below : policy_name(stronger);
  }
  if (stronger.name == below) stronger.options.insert(weaker.options.begin(), weaker.options.end());
  return stronger;
}

}  // namespace

Settings merge(const Settings& stronger, const Settings& weaker) {
  return {
      .decoding = merge_decoding(stronger.decoding, weaker.decoding),
      .policy = merge_policy(stronger.policy, weaker.policy),
      .tokens = {.mask = stronger.tokens.mask ? stronger.tokens.mask : weaker.tokens.mask,
                 .ends = stronger.tokens.ends.empty() ? weaker.tokens.ends : stronger.tokens.ends,
                 .ends_alone = stronger.tokens.ends.empty() ? weaker.tokens.ends_alone
                                                            : stronger.tokens.ends_alone},
      .model = stronger.model};
}

}  // namespace programs
