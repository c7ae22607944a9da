// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "dllm_cache/base/mix_bits.hpp"
#include "dllm_cache/policies/block_cache.hpp"
#include "dllm_cache/policies/block_verify.hpp"
#include "dllm_cache/policies/changed_rows.hpp"
#include "dllm_cache/policies/dkv_decode.hpp"
#include "dllm_cache/policies/dllm_cache.hpp"
#include "dllm_cache/policies/dual_cache.hpp"
#include "dllm_cache/policies/free_cache.hpp"
#include "dllm_cache/policies/prefix_cache.hpp"
#include "dllm_cache/policies/vicinity.hpp"
#include "tests/support/random_numbers.hpp"

namespace dllm_cache::testing {

/// A policy whose plans are any that it may make: every row has an action of its own, any count
/// is selected, any run of layers is cached. Most plans can be carried out, some must be refused.
struct RandomPlans {
  std::uint64_t seed = 0;

  static void visit_options(auto& self, auto&& visit) {
    visit("seed", self.seed, OptionRange<std::uint64_t>{}, "of its random plans");
  }
  [[nodiscard]] PolicyTraits traits(const SequenceShape& shape) const {
    RandomNumbers random(seed);
    const Index a = random.below(shape.rows() + 1), b = random.below(shape.rows() + 1);
    return {.name = "random", .stored_deltas = {std::min(a, b), std::max(a, b)}};
  }
  void plan(const StepContext& context, StepPlan& plan) const {
    RandomNumbers random(base::mix_bits(seed + static_cast<std::uint64_t>(context.step)));
    const Range stored = traits(context.shape).stored_deltas;
    Index verified = 0;
    for (Index row = 0; row < context.live().end; ++row) {
      auto action = static_cast<RowAction>(random.below(4));
      const bool may_reuse = stored.contains(row) || random.below(200) == 0;
      if (action != RowAction::Absent && !may_reuse) action = RowAction::Recompute;
      if (action == RowAction::Verify) ++verified;
      plan.rows[static_cast<std::size_t>(row)] = action;
    }
    plan.verify_count = random.below(verified + 1);
    if (random.below(4) == 0) plan.similarity_threshold = random.unit();
    if (random.below(3) == 0) {
      const Index a = random.below(context.layers + 1), b = random.below(context.layers + 1);
      plan.cached_layers = {std::min(a, b), std::max(a, b)};
    }
  }
};

/// Any policy of the library with any options, or RandomPlans.
inline AnyPolicy random_policy(RandomNumbers& random) {
  const auto of = [&](const std::vector<Index>& values) {
    return values[static_cast<std::size_t>(random.below(static_cast<Index>(values.size())))];
  };
  switch (random.below(14)) {
    case 0:
      return NoCache{};
    case 1:
      return PrefixCachePolicy{};
    case 2:
      return DualCachePolicy{};
    case 3:
      return FreeCachePolicy{};
    case 4:
      return VicinityPolicy{of({0, 1, 2, never}), of({0, 1, 3, never}), of({0, 1, 3}),
                            of({1, 2, 4, never})};
    case 5:
      return DkvDecodePolicy{of({1, 2, 3, never})};
    case 6:
      return ChangedRowsPolicy{of({0, 1, 2, 65534}), of({1, 3, 6, never})};
    case 9:
      return BlockCachePolicy{false};
    case 10:
      return BlockCachePolicy{true};
    case 7:
    case 8:
      return RandomPlans{random.next()};
    default:
      break;
  }
  constexpr double thresholds[] = {no_similarity_threshold, -1.0, 0.5, 0.99};
  constexpr double ratios[] = {0.0, 0.1, 0.25, 0.5, 0.99, 1.0};
  const Index prompt = of({1, 2, 3, 5, never}), response = of({1, 2, 3, 4, never});
  const double ratio = ratios[random.below(6)];
  if (random.below(2) == 0) return DllmCachePolicy{prompt, response, ratio, random.below(2) == 0};
  return BlockVerifyPolicy{prompt,
                           response,
                           ratio,
                           thresholds[random.below(4)],
                           random.below(2) == 0,
                           random.below(2) == 0};
}

}  // namespace dllm_cache::testing
