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

}  // namespace dllm_cache::testing
