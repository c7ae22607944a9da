// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

#include "dllm_cache/policy.hpp"

namespace dllm_cache::testing {

/// A policy that does what the test tells it.
struct ScriptedPolicy {
  PolicyTraits held = {.name = "scripted"};
  std::function<void(const StepContext&, StepPlan&)> script =
      [](const StepContext& context, StepPlan& plan) { plan.recompute(context.live()); };

  [[nodiscard]] PolicyTraits traits(const SequenceShape&) const { return held; }
  void plan(const StepContext& context, StepPlan& plan) const { script(context, plan); }
};

/// The same between layers too, with a memory of one number. Its snapshots name no options.
struct ScriptedWatcher {
  struct Memory {
    Index number = 0;
    static void visit_fields(auto& self, auto&& visit) { visit("number", self.number); }
    [[nodiscard]] static bool fits(const SequenceShape&, Index) { return true; }
  };
  PolicyTraits held = {.name = "watcher"};
  std::function<void(const StepContext&, Memory&, StepPlan&)> script =
      [](const StepContext& context, Memory&, StepPlan& plan) { plan.recompute(context.live()); };
  std::function<void(const LayerFacts&, Memory&, LayerChange&)> look = [](const LayerFacts&,
                                                                          Memory&, LayerChange&) {};

  static void visit_options(auto&, auto&&) {}
  [[nodiscard]] PolicyTraits traits(const SequenceShape&) const { return held; }
  void plan(const StepContext& context, Memory& memory, StepPlan& plan) const {
    script(context, memory, plan);
  }
  void after_layer(const StepContext&, const LayerFacts& facts, Memory& memory,
                   LayerChange& change) const {
    look(facts, memory, change);
  }
};

}  // namespace dllm_cache::testing
