// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "dllm_cache/detail/policy_memory.hpp"
#include "dllm_cache/layer_facts.hpp"
#include "dllm_cache/options.hpp"
#include "dllm_cache/plan.hpp"

namespace dllm_cache::inline v0_1 {

/// What a policy says about itself once, before the first step.
struct PolicyTraits {
  std::string_view name;               ///< Short name for messages; must outlive the policy.
  Range stored_deltas = {};            ///< Rows whose deltas it may ever reuse or verify.
  bool keeps_features = true;          ///< false: it recomputes every row at every step.
  bool needs_block = false;            ///< Wants StepInput::block and block_step.
  bool needs_masked = false;           ///< Wants StepInput::masked.
  bool needs_changed = false;          ///< Wants StepInput::changed.
  bool needs_confidence = false;       ///< Wants StepInput::confidence.
  bool needs_unchanged_steps = false;  ///< Wants StepInput::unchanged_steps.
  bool needs_candidates = false;       ///< Wants StepInput::candidates.
  bool needs_entropy = false;          ///< Wants StepInput::entropy.
  bool needs_gap = false;              ///< Wants StepInput::gap.
  bool needs_change = false;           ///< Wants StepInput::change.
  /// Wants predictions of every masked row in a sequence's first step, not of candidates alone.
  bool predicts_all = false;
  Range stored_queries = {};       ///< Rows that it may ever probe: their queries are stored.
  bool hides_rows = false;         ///< Its plans may hide rows or limit the keys of a layer.
  bool watches_attention = false;  ///< Its plans may watch or probe: wants ModelShape::heads.
  /// Rows are verified by the feature that layers compute for it, not by their values; wants
  /// ModelShape::verify_width and layers that have it (ComputesVerifyFeatures).
  bool verifies_features = false;
  Index verify_width = 0;             ///< Width of that feature; 0: whatever the layers have.
  bool stores_verified_keys = false;  ///< Keys of verified rows are computed and stored as well.
};

/// Part of CachePolicy: write `PolicyTraits traits(const SequenceShape& shape) const`.
template <class P>
concept DescribesItself = requires(const P& policy, const SequenceShape& shape) {
  { policy.traits(shape) } -> std::same_as<PolicyTraits>;
};

/// Part of CachePolicy: write `void plan(const StepContext& context, StepPlan& plan) const`.
template <class P>
concept PlansSteps = requires(const P& policy, const StepContext& context, StepPlan& plan) {
  { policy.plan(context, plan) } -> std::same_as<void>;
};

/// Part of CachePolicy, in place of PlansSteps: name a PolicyMemory `Memory` and write
/// `void plan(const StepContext& context, Memory& memory, StepPlan& plan) const`.
template <class P>
concept PlansWithMemory = PolicyMemory<typename P::Memory> &&
    requires(const P& policy, const StepContext& context, typename P::Memory& memory,
             StepPlan& plan) {
  { policy.plan(context, memory, plan) } -> std::same_as<void>;
};

/// A policy that looks at each layer that is done, and may change what comes: write
/// `void after_layer(const StepContext& context, const LayerFacts& facts, Memory& memory,
/// LayerChange& change) const`.
///
/// Of what the caller knows the context tells `block`, `block_step` and `block_done` alone then;
/// what else is needed goes into the memory.
template <class P>
concept WatchesLayers = PlansWithMemory<P> &&
    requires(const P& policy, const StepContext& context, const LayerFacts& facts,
             typename P::Memory& memory, LayerChange& change) {
  { policy.after_layer(context, facts, memory, change) } -> std::same_as<void>;
};

/// A cache policy: a copyable value that describes itself and plans every step.
///
/// Satisfied by NoCache below and by everything in policies/. A policy with options tells them in
/// `visit_options` (VisitsOptions): their ranges are checked then, and snapshots of features,
/// command lines and requests know them.
///
/// Rules no concept can check: `plan()` depends on its context alone, and on its memory where it
/// has one, and allocates nothing once it has seen its largest step. Without a memory it need not
/// treat the first step or a step after an error specially: the planner recomputes everything there
/// without asking. With one it is asked at every step (see StepContext::stale). The memory belongs
/// to the sequence: a step works on a copy, which is kept when the step is committed and forgotten
/// when it is dropped; it is cloned, saved and restored with the features, and begins anew when the
/// sequence gets another shape.
template <class P>
concept CachePolicy = std::copyable<P> && DescribesItself<P> &&
    (PlansSteps<P> || PlansWithMemory<P>);

/// The policy of an uncached run: every live row is recomputed at every step.
struct NoCache {
  [[nodiscard]] PolicyTraits traits(const SequenceShape&) const {
    return {.name = "none", .keeps_features = false};
  }
  void plan(const StepContext& context, StepPlan& plan) const { plan.recompute(context.live()); }
};

/// Holds any cache policy by value, so that batches can mix them and a flag can choose one.
///
/// A policy decides once a step, so the one virtual call here costs nothing that can be measured.
class AnyPolicy {
 public:
  // The exclusion comes first: clang 14 otherwise asks CachePolicy of AnyPolicy while defining it.
  // NOLINTBEGIN(bugprone-forwarding-reference-overload): which is what it says.
  template <class P>
  requires(!std::same_as<std::remove_cvref_t<P>, AnyPolicy>) &&
      CachePolicy<std::remove_cvref_t<P>> AnyPolicy(
          P&& policy)  // NOLINT(google-explicit-constructor): a policy is an AnyPolicy
      : m_policy(std::make_unique<Model<std::remove_cvref_t<P>>>(std::forward<P>(policy))) {}
  // NOLINTEND(bugprone-forwarding-reference-overload)

  AnyPolicy(const AnyPolicy& other) : m_policy(other.m_policy->clone()) {}
  AnyPolicy(AnyPolicy&&) noexcept = default;
  AnyPolicy& operator=(const AnyPolicy& other) {
    if (this != &other) m_policy = other.m_policy->clone();
    return *this;
  }
  AnyPolicy& operator=(AnyPolicy&&) noexcept = default;
  ~AnyPolicy() = default;

  /// See CachePolicy; throws std::invalid_argument naming an option of the held policy that is
  /// outside its range, the range and the value.
  [[nodiscard]] PolicyTraits traits(const SequenceShape& shape) const {
    return m_policy->traits(shape);
  }
  /// See CachePolicy; the memory is one that make_memory() gave.
  void plan(const StepContext& context, detail::AnyMemory& memory, StepPlan& plan) const {
    m_policy->plan(context, memory, plan);
  }
  /// The same with an empty memory.
  void plan(const StepContext& context, StepPlan& plan) const {
    detail::AnyMemory memory = make_memory();
    m_policy->plan(context, memory, plan);
  }
  /// An empty memory of the held policy; none where it keeps none.
  [[nodiscard]] detail::AnyMemory make_memory() const { return m_policy->make_memory(); }
  /// Whether the held policy looks at layers that are done.
  [[nodiscard]] bool watches_layers() const { return m_policy->watches_layers(); }
  /// See WatchesLayers; nothing where the held policy does not.
  void after_layer(const StepContext& context, const LayerFacts& facts, detail::AnyMemory& memory,
                   LayerChange& change) const {
    m_policy->after_layer(context, facts, memory, change);
  }
  /// Options of the held policy as text, empty for one that has no members; nothing where it has
  /// members and does not tell them (see VisitsOptions).
  [[nodiscard]] std::optional<std::string> options() const { return m_policy->options(); }

 private:
  struct Interface {
    virtual ~Interface() = default;
    [[nodiscard]] virtual std::unique_ptr<Interface> clone() const = 0;
    [[nodiscard]] virtual PolicyTraits traits(const SequenceShape& shape) const = 0;
    virtual void plan(const StepContext& context, detail::AnyMemory& memory,
                      StepPlan& plan) const = 0;
    [[nodiscard]] virtual detail::AnyMemory make_memory() const = 0;
    [[nodiscard]] virtual bool watches_layers() const = 0;
    virtual void after_layer(const StepContext& context, const LayerFacts& facts,
                             detail::AnyMemory& memory, LayerChange& change) const = 0;
    [[nodiscard]] virtual std::optional<std::string> options() const = 0;
  };
  template <class P>
  struct Model final : Interface {
    static_assert(
        VisitsOptions<P> ||
            !requires(P & held) { held.visit_options(held, detail::ignore_option); },
        "write it as `static void visit_options(auto& self, auto&& visit)`");
    explicit Model(P held) : policy(std::move(held)) {}
    [[nodiscard]] std::unique_ptr<Interface> clone() const override {
      return std::make_unique<Model>(policy);
    }
    [[nodiscard]] PolicyTraits traits(const SequenceShape& shape) const override {
      const PolicyTraits traits = policy.traits(shape);
      if constexpr (VisitsOptions<P>) check_options(policy, "policy ", traits.name);
      return traits;
    }
    void plan(const StepContext& context, [[maybe_unused]] detail::AnyMemory& memory,
              StepPlan& plan) const override {
      if constexpr (PlansWithMemory<P>)
        policy.plan(context, memory.as<typename P::Memory>(), plan);
      else
        policy.plan(context, plan);
    }
    [[nodiscard]] detail::AnyMemory make_memory() const override {
      if constexpr (PlansWithMemory<P>)
        return detail::AnyMemory(std::type_identity<typename P::Memory>());
      else
        return {};
    }
    [[nodiscard]] bool watches_layers() const override { return WatchesLayers<P>; }
    void after_layer([[maybe_unused]] const StepContext& context,
                     [[maybe_unused]] const LayerFacts& facts,
                     [[maybe_unused]] detail::AnyMemory& memory,
                     [[maybe_unused]] LayerChange& change) const override {
      if constexpr (WatchesLayers<P>)
        policy.after_layer(context, facts, memory.as<typename P::Memory>(), change);
    }
    [[nodiscard]] std::optional<std::string> options() const override {
      if constexpr (VisitsOptions<P>)
        return options_text(policy);
      else if constexpr (std::is_empty_v<P>)
        return std::string();
      else
        return std::nullopt;
    }
    P policy;
  };

  std::unique_ptr<Interface> m_policy;
};

/// Traits of a policy for a shape, with what they say checked; throws std::invalid_argument naming
/// the shape's, the policy's or the traits' field.
[[nodiscard]] inline PolicyTraits checked_traits(const AnyPolicy& policy,
                                                 const SequenceShape& shape) {
  check_shape(shape);
  const PolicyTraits traits = policy.traits(shape);
  const auto check = [&](const char* field, Range rows) {
    if (rows.begin < 0 || rows.end > shape.rows() || rows.begin > rows.end)
      base::refuse_argument("PolicyTraits of ", traits.name, ": ", field, " must lie in [0, ",
                            shape.rows(), "), got [", rows.begin, ", ", rows.end, ")");
  };
  check("stored_deltas", traits.stored_deltas);
  check("stored_queries", traits.stored_queries);
  return traits;
}

}  // namespace dllm_cache::inline v0_1
