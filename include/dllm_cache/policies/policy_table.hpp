// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dllm_cache/options.hpp"
#include "dllm_cache/policies/block_cache.hpp"
#include "dllm_cache/policies/changed_rows.hpp"
#include "dllm_cache/policies/d2_cache.hpp"
#include "dllm_cache/policies/dkv_decode.hpp"
#include "dllm_cache/policies/dllm_cache.hpp"
#include "dllm_cache/policies/dpad.hpp"
#include "dllm_cache/policies/dual_cache.hpp"
#include "dllm_cache/policies/dynamic_dllm.hpp"
#include "dllm_cache/policies/elastic.hpp"
#include "dllm_cache/policies/entropy_cache.hpp"
#include "dllm_cache/policies/free_cache.hpp"
#include "dllm_cache/policies/prefix_cache.hpp"
#include "dllm_cache/policies/presets.hpp"
#include "dllm_cache/policies/spa_cache.hpp"
#include "dllm_cache/policies/sparse_dllm.hpp"
#include "dllm_cache/policies/streaming_dllm.hpp"
#include "dllm_cache/policies/vicinity.hpp"
#include "dllm_cache/policies/window_diffusion.hpp"
#include "dllm_cache/policy.hpp"

namespace dllm_cache::inline v0_1 {

/// Policies and presets by name, their options as text: what programs, a C interface or another
/// language choose policies from. A preset is a policy with other defaults; its options may be
/// given like the policy's own. Copyable; not synchronised.
class PolicyTable {
 public:
  struct Entry {
    std::string name;
    std::string description;  ///< One line.
    std::string policy;       ///< The policy's name: its own, or that which a preset stands for.
    std::vector<OptionInfo> options;  ///< With the defaults of this entry.
    std::function<AnyPolicy(const OptionValues&)> make;
    std::function<std::vector<OptionInfo>(const OptionValues&)> describe;
    [[nodiscard]] bool is_preset() const { return name != policy; }
  };

  /// Adds a policy with its defaults. Throws std::invalid_argument for a name that is taken and for
  /// an option that another policy has with another kind of value.
  template <CachePolicy P>
  PolicyTable& add(std::string name, std::string description, P defaults = {}) {
    return insert(name, std::move(description), name, std::move(defaults));
  }

  /// Adds a preset of the policy `policy`, which must be in the table; throws like add().
  template <CachePolicy P>
  PolicyTable& add_preset(std::string name, std::string description, const std::string& policy,
                          P defaults) {
    static_cast<void>(at(policy));
    return insert(std::move(name), std::move(description), policy, std::move(defaults));
  }

  /// Refuses options with these keys from now on: a program's other words. Throws
  /// std::invalid_argument where a policy of the table has one.
  PolicyTable& reserve_keys(const std::vector<std::string>& keys) {
    m_reserved.insert(m_reserved.end(), keys.begin(), keys.end());
    for (const Entry& entry : m_entries) check_keys(entry);
    return *this;
  }

  /// All entries in the order in which they were added.
  [[nodiscard]] const std::vector<Entry>& entries() const { return m_entries; }

  /// The entry of that name; throws std::invalid_argument that names all.
  [[nodiscard]] const Entry& at(std::string_view name) const {
    const auto found = std::find_if(m_entries.begin(), m_entries.end(),
                                    [&](const Entry& entry) { return entry.name == name; });
    if (found != m_entries.end()) return *found;
    std::string names;
    for (const Entry& entry : m_entries) names += (names.empty() ? "" : ", ") + entry.name;
    base::refuse_argument("policy must be one of ", names, ", got \"", name, "\"");
  }

  /// The policy of that name with these options. Throws std::invalid_argument for an unknown name,
  /// an option that is not the policy's, and a text outside the option's range.
  [[nodiscard]] AnyPolicy make(std::string_view name, const OptionValues& values = {}) const {
    const Entry& entry = checked(name, values);
    return entry.make(values);
  }

  /// The options of the policy of that name with these values, defaults included; throws like
  /// make().
  [[nodiscard]] std::vector<OptionInfo> options(std::string_view name,
                                                const OptionValues& values = {}) const {
    const Entry& entry = checked(name, values);
    return entry.describe(values);
  }

  /// Names of the policies, without presets, that have an option with that key.
  [[nodiscard]] std::vector<std::string> owners(std::string_view key) const {
    std::vector<std::string> names;
    for (const Entry& entry : m_entries)
      if (!entry.is_preset() && has_option(entry, key)) names.push_back(entry.name);
    return names;
  }

  /// Whether an entry has an option with that key.
  [[nodiscard]] static bool has_option(const Entry& entry, std::string_view key) {
    return find_option(entry, key) != nullptr;
  }

  /// Refuses an option that the entry does not have: throws std::invalid_argument naming the
  /// policies that do; `shown` is the key as the caller's user wrote it.
  void check_option(const Entry& entry, std::string_view key, std::string_view shown) const {
    if (has_option(entry, key)) return;
    std::string names;
    for (const std::string& name : owners(key)) names += (names.empty() ? "" : ", ") + name;
    base::refuse_argument(shown, " does not belong to policy ", entry.name,
                          names.empty() ? ", nor to any other" : "; it belongs to ", names);
  }

 private:
  [[nodiscard]] static const OptionInfo* find_option(const Entry& entry, std::string_view key) {
    const auto found = std::find_if(entry.options.begin(), entry.options.end(),
                                    [&](const OptionInfo& one) { return one.key == key; });
    return found == entry.options.end() ? nullptr : &*found;
  }

  [[nodiscard]] const Entry& checked(std::string_view name, const OptionValues& values) const {
    const Entry& entry = at(name);
    for (const auto& [key, text] : values) check_option(entry, key, key);
    return entry;
  }

  void check_keys(const Entry& entry) const {
    for (const OptionInfo& option : entry.options)
      if (std::find(m_reserved.begin(), m_reserved.end(), option.key) != m_reserved.end())
        base::refuse_argument("PolicyTable: option ", option.key, " of ", entry.name,
                              " must have another name: it means something else already");
  }

  template <class P>
  static P with_values(const std::string& name, const P& defaults, const OptionValues& values) {
    P policy = defaults;
    if constexpr (VisitsOptions<P>)
      for (const auto& [key, text] : values) set_option(policy, key, text, "policy " + name);
    return policy;
  }

  template <class P>
  PolicyTable& insert(std::string name, std::string description, const std::string& policy,
                      P defaults) {
    Entry made;
    made.name = std::move(name);
    made.description = std::move(description);
    made.policy = policy;
    if constexpr (VisitsOptions<P>) made.options = describe_options(defaults);
    check_keys(made);
    for (const Entry& entry : m_entries) {
      if (entry.name == made.name)
        base::refuse_argument("PolicyTable: policy ", made.name, " is there already");
      for (const OptionInfo& option : made.options)
        if (const OptionInfo* same = find_option(entry, option.key);
            same != nullptr && same->kind != option.kind)
          base::refuse_argument("PolicyTable: option ", option.key, " of ", made.name,
                                " must have the kind of value that it has in ", entry.name);
    }
    made.make = [name = made.policy, defaults](const OptionValues& values) -> AnyPolicy {
      return with_values(name, defaults, values);
    };
    made.describe = [name = made.policy, defaults](const OptionValues& values) {
      const P held = with_values(name, defaults, values);
      if constexpr (VisitsOptions<P>)
        return describe_options(held);
      else
        return std::vector<OptionInfo>();
    };
    m_entries.push_back(std::move(made));
    return *this;
  }

  std::vector<Entry> m_entries;
  std::vector<std::string> m_reserved;
};

/// The table of everything in policies/ and its presets.
[[nodiscard]] inline PolicyTable bundled_policies() {
  PolicyTable table;
  table.add<NoCache>("none", "everything is recomputed at every step")
      .add<BlockCachePolicy>("block",
                             "exact, for block-causal attention: finished blocks are kept, the "
                             "active one is recomputed")
      .add<BlockVerifyPolicy>("block-verify",
                              "ours: the active block recomputed at every step; of the other "
                              "response rows those whose values changed most")
      .add<DllmCachePolicy>("dllm-cache",
                            "dLLM-Cache: prompt and response refreshed at intervals; in between "
                            "the response rows whose values changed most")
      .add<PrefixCachePolicy>("prefix",
                              "Fast-dLLM prefix cache: full forward per block, then the block and "
                              "all after it")
      .add<DualCachePolicy>("dual",
                            "Fast-dLLM dual cache: full forward per block, then the block alone")
      .add<VicinityPolicy>("vicinity",
                           "dInfer vicinity refresh: warm-up, full forward per block, then the "
                           "block and its neighbourhood")
      .add<FreeCachePolicy>("freecache",
                            "FreeCache: one full forward, then the block and all after it; what "
                            "lies before is frozen")
      .add<DkvDecodePolicy>("dkv",
                            "dKV-Cache decode: masked rows and those just decoded; a full forward "
                            "at intervals")
      .add<ChangedRowsPolicy>("changed-rows",
                              "diffuse-cpp: masked rows and those changed in the last steps")
      .add<ElasticPolicy>("elastic",
                          "Elastic-Cache: rows to be found and the most attended; all layers above "
                          "one whose attention drifted")
      .add<D2CachePolicy>("d2cache",
                          "d2Cache: the surest masked rows, rows just decoded and those that carry "
                          "most attention")
      .add<SparseDllmPolicy>(
          "sparse",
          "Sparse-dLLM: the block alone, which sees of all other keys those that "
          "each layer chose")
      .add<DPadPolicy>("dpad",
                       "DPad: a Fast-dLLM cache over a response of which a few rows behind the "
                       "block exist, drawn")
      .add<StreamingDllmPolicy>("streaming",
                                "Streaming-dLLM: prefix cache over a response of which the next "
                                "rows behind the block exist, and the last")
      .add<WindowDiffusionPolicy>("window",
                                  "Window-Diffusion: full forwards at intervals; in between the "
                                  "first masked rows in a window of rows that exist")
      .add<SpaCachePolicy>("spa",
                           "SPA-Cache: dLLM-Cache with values projected to be compared, and more "
                           "rows in deeper layers")
      .add<DynamicDllmPolicy>("dynamic",
                              "Dynamic-dLLM: rows around the last decoded one and those whose "
                              "values changed most")
      .add<EntropyCachePolicy>("entropy",
                               "EntropyCache, by its paper: all where an unsure token was "
                               "committed, else masked rows and the last decoded")
      .add_preset("exact", "the uncached answers", "none", exact_policy())
      .add_preset("balanced", "nearly all uncached answers, several times fewer operations",
                  "block-verify", balanced_policy())
      .add_preset("balanced-fixed",
                  "the same with a count of rows known before a step, for devices and graphs",
                  "block-verify", balanced_fixed_policy())
      .add_preset("fastest", "most uncached answers, fewest operations", "dual", fastest_policy());
  return table;
}

}  // namespace dllm_cache::inline v0_1
