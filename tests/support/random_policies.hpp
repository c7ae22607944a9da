// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dllm_cache/base/mix_bits.hpp"
#include "dllm_cache/policies/block_cache.hpp"
#include "dllm_cache/policies/block_verify.hpp"
#include "dllm_cache/policies/changed_rows.hpp"
#include "dllm_cache/policies/dkv_decode.hpp"
#include "dllm_cache/policies/dllm_cache.hpp"
#include "dllm_cache/policies/dpad.hpp"
#include "dllm_cache/policies/dual_cache.hpp"
#include "dllm_cache/policies/dynamic_dllm.hpp"
#include "dllm_cache/policies/entropy_cache.hpp"
#include "dllm_cache/policies/free_cache.hpp"
#include "dllm_cache/policies/prefix_cache.hpp"
#include "dllm_cache/policies/spa_cache.hpp"
#include "dllm_cache/policies/streaming_dllm.hpp"
#include "dllm_cache/policies/vicinity.hpp"
#include "tests/support/random_numbers.hpp"

namespace dllm_cache::testing {

/// What a policy was told of a layer.
struct Told {
  Index layer = 0;
  bool cached = false;
  std::vector<float> numbers;  ///< All that was said, one after the other.
  double similarity = 0.0;
  std::vector<Index> watched;

  explicit Told(const LayerFacts& facts)
      : layer(facts.layer),
        cached(facts.cached),
        numbers(facts.column_sums.begin(), facts.column_sums.end()),
        similarity(facts.probe_similarity),
        watched(facts.watched.begin(), facts.watched.end()) {
    numbers.insert(numbers.end(), facts.query_scores.begin(), facts.query_scores.end());
    for (const MatrixView<const float>& means : facts.head_means)
      for (Index row = 0; row < means.rows; ++row)
        numbers.insert(numbers.end(), means.row(row), means.row(row) + means.cols);
  }
  /// What is told, for messages.
  [[nodiscard]] std::string text() const {
    std::string said = base::text("layer ", layer, cached ? " cached" : "", ", similarity ",
                                  similarity, ", watched");
    for (const Index row : watched) said += base::text(' ', row);
    said += ':';
    for (const float number : numbers) said += base::text(' ', number);
    return said;
  }
  /// Whether the other says the same, but for what float arithmetic does to it.
  [[nodiscard]] bool agrees(const Told& other) const {
    const auto close = [](double a, double b) {
      return a == b || std::abs(a - b) < 1e-4 || (std::isnan(a) && std::isnan(b));
    };
    return layer == other.layer && cached == other.cached && watched == other.watched &&
           close(similarity, other.similarity) &&
           std::equal(numbers.begin(), numbers.end(), other.numbers.begin(), other.numbers.end(),
                      close);
  }
};

/// Traits of a policy with random plans: what it stores and what it may ask for.
inline PolicyTraits random_traits(std::string_view name, std::uint64_t seed,
                                  const SequenceShape& shape, bool watches) {
  RandomNumbers random(seed);
  const auto range = [&] {
    const Index a = random.below(shape.rows() + 1), b = random.below(shape.rows() + 1);
    return Range{std::min(a, b), std::max(a, b)};
  };
  PolicyTraits traits{.name = name, .stored_deltas = range()};
  traits.hides_rows = random.below(2) == 0;
  traits.verifies_features = random.below(3) == 0;
  traits.stores_verified_keys = random.below(3) == 0;
  traits.watches_attention = watches;
  if (watches) traits.stored_queries = range();
  return traits;
}

/// Fills a plan with anything that it may hold: every row has an action of its own, rows and keys
/// are hidden, any count is selected, in some layers another, any run of layers is cached. Most
/// plans can be carried out, some must be refused. `rests(row)`: its features are known to be
/// there.
template <class Rests>
void plan_randomly(const StepContext& context, const PolicyTraits& traits, RandomNumbers& random,
                   const Rests& rests, StepPlan& plan) {
  Index verified = 0;
  const Index hidden_in = traits.hides_rows ? 2 + random.below(6) : 0;  // one row of so many
  for (Index row = 0; row < context.shape.rows(); ++row) {
    const bool live = row < context.live().end;
    if (hidden_in > 0 && random.below(hidden_in) == 0) {
      plan.hide({row, row + 1});
      if (!live || random.below(200) > 0) continue;
    }
    if (!live) continue;
    auto action = static_cast<RowAction>(random.below(4));
    const bool may_reuse = traits.stored_deltas.contains(row) || random.below(200) == 0;
    if (!rests(row) || (action != RowAction::Absent && !may_reuse)) action = RowAction::Recompute;
    if (action == RowAction::Verify) ++verified;
    plan.rows[static_cast<std::size_t>(row)] = action;
  }
  plan.verify_count = random.below(verified + 1);
  if (random.below(4) == 0) plan.similarity_threshold = random.unit();
  if (random.below(3) == 0) {
    const Index a = random.below(context.layers + 1), b = random.below(context.layers + 1);
    plan.cached_layers = {std::min(a, b), std::max(a, b)};
  }
  if (random.below(3) == 0)
    plan.verify_in_layer(random.below(context.layers),
                         random.below(verified + 1) + (random.below(200) == 0 ? 1 : 0));
  for (Index layer = 0; traits.hides_rows && layer < context.layers; ++layer) {
    if (random.below(3) > 0) continue;
    std::vector<std::uint8_t> seen(plan.rows.size());
    for (std::uint8_t& flag : seen) flag = random.below(3) > 0 ? 1 : 0;
    plan.limit_keys(layer, seen);
  }
}

/// A policy without a memory whose plans are any that it may make.
struct RandomPlans {
  std::uint64_t seed = 0;

  static void visit_options(auto& self, auto&& visit) {
    visit("seed", self.seed, OptionRange<std::uint64_t>{}, "of its random plans");
  }
  [[nodiscard]] PolicyTraits traits(const SequenceShape& shape) const {
    return random_traits("random", seed, shape, false);
  }
  void plan(const StepContext& context, StepPlan& plan) const {
    RandomNumbers random(base::mix_bits(seed + static_cast<std::uint64_t>(context.step)));
    // What it hid in one of its steps may be missing: it hides nothing then.
    PolicyTraits traits = this->traits(context.shape);
    if (seed % 4 != 0) traits.hides_rows = false;
    plan_randomly(
        context, traits, random, [](Index) { return true; }, plan);
  }
};

/// The same with a memory, on which all that comes depends, and with eyes: it watches and probes,
/// cuts a step between layers, ends rows and changes counts. What it is told of attention is put
/// down in `told` and changes nothing.
struct RandomMemories {
  std::uint64_t seed = 0;
  /// What it was told, in order; nowhere where this is null.
  static inline std::vector<Told>* told = nullptr;

  static void visit_options(auto& self, auto&& visit) {
    visit("seed", self.seed, OptionRange<std::uint64_t>{}, "of its random plans");
  }

  struct Memory {
    Index hash = 0;                      ///< Of all that it has seen.
    std::vector<std::uint8_t> computed;  ///< Rows with features; empty: none.
    std::vector<Index> walked;           ///< Layers that were done in each step.
    std::vector<float> numbers;          ///< One a step.
    std::vector<std::uint8_t> may_end;   // scratch: rows in the pass that were there before
    Index verified = 0;
    bool cut = false, ended = false;

    static void visit_fields(auto& self, auto&& visit) {
      visit("hash", self.hash);
      visit("computed", self.computed);
      visit("walked", self.walked);
      visit("numbers", self.numbers);
    }
    [[nodiscard]] bool fits(const SequenceShape& shape, Index layers) const {
      return (computed.empty() || static_cast<Index>(computed.size()) == shape.rows()) &&
             std::all_of(walked.begin(), walked.end(), [&](Index n) { return n <= layers; });
    }
    void see(std::uint64_t what) {
      const std::uint64_t bits = base::mix_bits(what ^ static_cast<std::uint64_t>(hash) * 3);
      hash = static_cast<Index>(bits >> 4);
    }
  };

  [[nodiscard]] PolicyTraits traits(const SequenceShape& shape) const {
    PolicyTraits traits = random_traits("random-memory", seed, shape, true);
    traits.needs_masked = true;
    return traits;
  }

  void plan(const StepContext& context, Memory& memory, StepPlan& plan) const {
    const auto rows = static_cast<std::size_t>(context.shape.rows());
    const PolicyTraits traits = this->traits(context.shape);
    for (const std::uint8_t masked : context.masked) memory.see(masked + 2U);
    memory.see(static_cast<std::uint64_t>(context.step));
    memory.numbers.resize(std::min<std::size_t>(memory.numbers.size(), rows / 2));
    memory.numbers.push_back(static_cast<float>(memory.hash % 1000));
    for (const float number : memory.numbers) memory.see(static_cast<std::uint64_t>(number));
    memory.walked.resize(std::min<std::size_t>(memory.walked.size(), rows / 2));
    memory.walked.push_back(0);
    for (const Index layers : memory.walked) memory.see(static_cast<std::uint64_t>(layers));
    if (context.stale) memory.computed.clear();
    memory.computed.resize(rows);
    RandomNumbers random(base::mix_bits(seed) ^ static_cast<std::uint64_t>(memory.hash));
    const auto is_stored = [&](Index row) {
      return memory.computed[static_cast<std::size_t>(row)] != 0 &&
             !context.to_settle().contains(row);
    };
    plan_randomly(context, traits, random, is_stored, plan);
    // A stale step recomputes all that is not hidden.
    const auto recomputes = [&](Index row) {
      return context.stale ? context.live().contains(row) && !plan.hides(row)
                           : plan.rows[static_cast<std::size_t>(row)] == RowAction::Recompute;
    };
    std::vector<Index> watched, probes;
    memory.may_end.assign(rows, 0);
    memory.verified = 0;
    memory.cut = memory.ended = false;
    bool all_known = true;
    for (Index row = 0; row < context.live().end; ++row)
      if (memory.computed[static_cast<std::size_t>(row)] == 0 && !plan.hides(row))
        all_known = false;
    const Index watches = random.below(4), probe_in = 1 + random.below(3);
    for (Index row = 0; row < context.shape.rows(); ++row) {
      const auto at = static_cast<std::size_t>(row);
      if (!context.stale && plan.rows[at] == RowAction::Verify) ++memory.verified;
      if (!context.stale && plan.rows[at] != RowAction::Absent)
        memory.may_end[at] = memory.computed[at];
      if (!recomputes(row)) continue;
      if (watches > 0 && random.below(watches) == 0) watched.push_back(row);
      if (memory.computed[at] != 0 && traits.stored_queries.contains(row) &&
          random.below(probe_in) == 0)
        probes.push_back(row);
      memory.computed[at] = 1;
    }
    constexpr AttentionFact facts[] = {AttentionFact::ColumnSums, AttentionFact::HeadMeans,
                                       AttentionFact::QueryScores};
    if (watches > 0) plan.watch(watched, facts[random.below(3)]);
    // Where one of the keys is new, there is nothing to compare with.
    if (random.below(2) == 0 && (all_known || random.below(50) == 0)) plan.probe(probes);
  }

  void after_layer(const StepContext& context, const LayerFacts& facts, Memory& memory,
                   LayerChange& change) const {
    memory.see(static_cast<std::uint64_t>(facts.layer) * 2 + (facts.cached ? 1 : 0));
    ++memory.walked.back();
    if (told != nullptr) told->push_back(Told(facts));
    RandomNumbers random(base::mix_bits(seed + 1) ^ static_cast<std::uint64_t>(memory.hash));
    if (!memory.ended && random.below(6) == 0) change.recompute_rest = memory.cut = true;
    if (random.below(4) == 0) change.verify_count = random.below(memory.verified + 1);
    if (memory.cut || context.stale || random.below(4) > 0) return;
    for (std::size_t row = 0; row < memory.may_end.size(); ++row)
      if (memory.may_end[row] != 0 && random.below(3) == 0) {
        change.ended.push_back(static_cast<Index>(row));
        memory.ended = true;
      }
  }
};

/// Any policy of the library with any options but those whose decisions hang on rounding, or random
/// plans.
inline AnyPolicy random_policy(RandomNumbers& random) {
  const auto of = [&](const std::vector<Index>& values) {
    return values[static_cast<std::size_t>(random.below(static_cast<Index>(values.size())))];
  };
  switch (random.below(22)) {
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
    case 14:
    case 15:
    case 16:
      return RandomMemories{random.next()};
    case 17:
      return DPadPolicy{.host_cache = random.below(3),
                        .suffix_window = of({0, 1, 5}),
                        .suffix_seed = random.next()};
    case 18:
      return StreamingDllmPolicy{of({0, 1, 3}), of({0, 1, 2})};
    case 19:
      return SpaCachePolicy{.prompt_interval = of({2, 5, never}),
                            .response_interval = of({2, 3, never}),
                            .proxy_rank = 0,
                            .warmup_steps = of({0, 0, 1}),
                            .peak_share = 0.9};
    case 20:
      return DynamicDllmPolicy{of({0, 1, 4}), of({0, 1, 2, 5})};
    case 21:
      return EntropyCachePolicy{0.7, of({0, 1, 3})};
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
