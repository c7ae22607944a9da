// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "dllm_cache/models/checkpoint/checkpoint_folder.hpp"
#include "dllm_cache/models/tensor_names.hpp"

namespace dllm_cache::inline v0_1::models::detail {

/// What is said about a group of biases.
struct BiasRule {
  /// True: they must be there. False: they must not. None: the files decide.
  std::optional<bool> wanted;
  std::string reason;  ///< What says so, for messages.
};

/// Reads a rule from the first of the keys that is there.
[[nodiscard]] inline BiasRule bias_rule(const ConfigReader& reader,
                                        std::initializer_list<const char*> keys) {
  for (const char* key : keys)
    if (const auto wanted = reader.optional_bool(key))
      return {wanted,
              "key " + in_quotes(key) + " of config.json is " + (*wanted ? "true" : "false")};
  return {};
}

/// The rules of a checkpoint: by default the files decide.
struct BiasRules {
  BiasRule norms, query_key_value, output, feed_forward, head;
};

/// Which norms and linear maps of a checkpoint have a bias.
struct Biases {
  bool norms = false;
  bool query_key_value = false;
  bool output = false;
  bool feed_forward = false;
  bool head = false;
};

/// Whether a group of biases is read. Absent ones are zero: of a group all or none must be there.
///
/// Throws std::runtime_error naming the tensor: one that is there against the rule, and one that is
/// missing where others of the group, or the rule, want it.
[[nodiscard]] inline bool has_biases(const CheckpointFolder& folder, const BiasRule& rule,
                                     const std::vector<std::string>& names) {
  std::string there, missing;
  for (const std::string& name : names) {
    std::string& first = folder.find(name + ".bias") != nullptr ? there : missing;
    if (first.empty()) first = name + ".bias";
  }
  if (rule.wanted == false && !there.empty())
    refuse_tensor(folder.path(), there, "expected no such bias, since ", rule.reason, ", got one");
  if (missing.empty() || (rule.wanted != true && there.empty())) return missing.empty();
  refuse_tensor(folder.path(), missing, "expected this bias, since ",
                rule.wanted == true ? rule.reason : in_quotes(there) + " is there", ", got none");
}

/// Finds which biases a checkpoint with so many layers has; see has_biases().
[[nodiscard]] inline Biases find_biases(const CheckpointFolder& folder, const TensorNames& names,
                                        Index layers, const BiasRules& rules, bool tied) {
  const auto of_layers = [&](std::initializer_list<const char*> parts) {
    std::vector<std::string> all;
    for (Index i = 0; i < layers; ++i)
      for (const char* part : parts) all.push_back(names.of_layer(i) + part);
    return all;
  };
  std::vector<std::string> norms = of_layers({names.attention_norm, names.feed_forward_norm});
  norms.emplace_back(names.final_norm);
  return {.norms = has_biases(folder, rules.norms, norms),
          .query_key_value = has_biases(folder, rules.query_key_value,
                                        of_layers({names.query, names.key, names.value})),
          .output = has_biases(folder, rules.output, of_layers({names.output})),
          .feed_forward =
              has_biases(folder, rules.feed_forward, of_layers({names.gate, names.up, names.down})),
          .head = !tied && has_biases(folder, rules.head, {names.head})};
}

}  // namespace dllm_cache::inline v0_1::models::detail
