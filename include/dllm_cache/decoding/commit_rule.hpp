// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <concepts>
#include <span>
#include <string_view>
#include <variant>

#include "dllm_cache/decoding/sampler.hpp"
#include "dllm_cache/options.hpp"

namespace dllm_cache::inline v0_1 {

/// Where a sequence stands within its active block.
struct BlockProgress {
  Index step = 0;          ///< Steps done in this block.
  Index steps = 1;         ///< Steps planned for this block.
  Index first_masked = 0;  ///< Masked rows of the block when it began.
  Index masked = 0;        ///< Rows that may be committed now: masked, before the block's end.
  Index length = 0;        ///< Rows of the block, masked or not.
};

/// Decides how many predictions a step commits, surest first: a copyable value with
/// `Index count(std::span<const Prediction> ordered, const BlockProgress& block) const`.
///
/// `counted` says when a block ends: true, after its planned steps whatever happened; false, when
/// nothing in it is masked any more (the rule then commits one row at least).
template <class R>
concept CommitsPredictions = std::copyable<R> &&
    requires(const R& rule, std::span<const Prediction> ordered, const BlockProgress& block) {
  { rule.count(ordered, block) } -> std::same_as<Index>;
  { R::counted } -> std::convertible_to<bool>;
};

/// LLaDA's counted schedule: the block's masked rows are spread evenly over its steps, the
/// remainder over the first ones. Source: `get_num_transfer_tokens` of LLaDA.
struct CountedCommit {
  static constexpr std::string_view name = "CountedCommit";
  static constexpr bool counted = true;
  [[nodiscard]] Index count(std::span<const Prediction>, const BlockProgress& block) const {
    const Index base = block.first_masked / block.steps;
    return base + (block.step < block.first_masked % block.steps ? 1 : 0);
  }
};

/// The schedule of ZHZisZZ/dllm, which spreads a block's masked rows over its steps by the masked
/// share of a linear schedule of times; see linear_commits(). CountedCommit gives way to it where
/// the prompt holds masks.
struct LinearCommit {
  static constexpr std::string_view name = "LinearCommit";
  static constexpr bool counted = true;
  [[nodiscard]] Index count(std::span<const Prediction>, const BlockProgress& block) const {
    return block.masked;  // BlockSchedule plans it
  }
};

namespace detail {

/// Last time of a schedule.
inline constexpr OptionRange<double> time{
    .least = 0.0, .most = 1.0, .above_least = true, .below_most = true};

/// Time `index` of Dream's schedule: torch.linspace(1, epsilon, steps + 1) in float32, to the bit
/// (it counts up from the start in its first half and down from the end in the second).
[[nodiscard]] inline float dream_time(Index index, Index steps, double epsilon) {
  const auto end = static_cast<float>(epsilon);
  const float stride = (end - 1.0F) / static_cast<float>(steps);
  return index < (steps + 1) / 2 ? 1.0F + stride * static_cast<float>(index)
                                 : end - stride * static_cast<float>(steps - index);
}

/// Share of the masked rows that Dream's schedule unmasks in a step; all of them in the last.
[[nodiscard]] inline float dream_share(const BlockProgress& block, double epsilon) {
  if (block.step + 1 >= block.steps) return 1.0F;
  return 1.0F - dream_time(block.step + 1, block.steps, epsilon) /
                    dream_time(block.step, block.steps, epsilon);
}

}  // namespace detail

/// Dream's schedule of times from 1 to `epsilon`: a step commits trunc(masked * (1 - s / t)) rows,
/// the last one all. Source: Dream's `diffusion_generate` (in float32), algorithms maskgit_plus,
/// topk_margin and entropy.
struct TimestepCommit {
  static constexpr std::string_view name = "TimestepCommit";
  static constexpr bool counted = true;
  double epsilon = 1e-3;  ///< Last time, in (0, 1); `eps`.
  static void visit_options(auto& self, auto&& visit) {
    visit("epsilon", self.epsilon, detail::time, "Dream: last time of the schedule", "eps");
  }
  [[nodiscard]] Index count(std::span<const Prediction>, const BlockProgress& block) const {
    return static_cast<Index>(static_cast<float>(block.masked) *
                              detail::dream_share(block, epsilon));
  }
};

/// Dream's algorithm `origin`: each masked row is committed with probability 1 - s / t, the last
/// step takes all. Wants Confidence::Random, uniform in (0, 1).
struct BernoulliCommit {
  static constexpr std::string_view name = "BernoulliCommit";
  static constexpr bool counted = true;
  double epsilon = 1e-3;  ///< Last time, in (0, 1); `eps`.
  static void visit_options(auto& self, auto&& visit) {
    visit("epsilon", self.epsilon, detail::time, "Dream: last time of the schedule", "eps");
  }
  [[nodiscard]] Index count(std::span<const Prediction> ordered, const BlockProgress& block) const {
    const double least = 1.0 - static_cast<double>(detail::dream_share(block, epsilon));
    return std::count_if(ordered.begin(), ordered.end(),
                         [&](const Prediction& one) { return one.confidence > least; });
  }
};

/// Fast-dLLM's parallel decoding: the surest row always, every other one unless its confidence is
/// below the threshold. Source: arXiv 2505.22618; `get_transfer_index` in NVlabs/Fast-dLLM at
/// 24cc59e, `threshold` (default 0.9).
struct ThresholdCommit {
  static constexpr std::string_view name = "ThresholdCommit";
  static constexpr bool counted = false;
  double threshold = 0.9;  ///< In [0, 1].
  static void visit_options(auto& self, auto&& visit) {
    visit(
        "threshold", self.threshold, from_0_to_1,
        "parallel decoding: commit every token at least this sure (SDAR and Fast-dLLM v2: surer), "
        "and the best");
  }
  [[nodiscard]] Index count(std::span<const Prediction> ordered, const BlockProgress&) const {
    Index taken = 1;
    while (taken < static_cast<Index>(ordered.size()) &&
           !(ordered[static_cast<std::size_t>(taken)].confidence < threshold))
      ++taken;
    return taken;
  }
};

/// Fast-dLLM's factor rule in the form of the paper: the largest n with (n + 1) (1 - c_n) < factor,
/// one row at least. The repository at f6b35ec takes one row more when only the last candidate
/// fails (`get_transfer_index_dynamic`); this rule does not.
struct FactorCommit {
  static constexpr std::string_view name = "FactorCommit";
  static constexpr bool counted = false;
  double factor = 1.0;  ///< Above 0.
  static void visit_options(auto& self, auto&& visit) {
    visit("factor", self.factor, OptionRange<double>{.least = 0.0, .above_least = true},
          "parallel decoding: the largest n with (n + 1) (1 - confidence) < factor");
  }
  [[nodiscard]] Index count(std::span<const Prediction> ordered, const BlockProgress&) const {
    Index taken = 0;
    while (taken < static_cast<Index>(ordered.size()) &&
           static_cast<double>(taken + 2) *
                   (1.0 - ordered[static_cast<std::size_t>(taken)].confidence) <
               factor)
      ++taken;
    return std::max<Index>(taken, 1);
  }
};

/// Entropy-bounded unmasking: the longest run of surest rows whose entropies, the largest left out,
/// add up to the bound at most. Source: EB-sampler (arXiv 2505.24857), as in Kamichanw/d2Cache at
/// 72feb60 (src/generation/vanilla.py), `gamma` (0.001), without its mistake over batches.
struct EntropyBoundCommit {
  static constexpr std::string_view name = "EntropyBoundCommit";
  static constexpr bool counted = false;
  double bound = 1e-3;  ///< In nats, at least 0.
  static void visit_options(auto& self, auto&& visit) {
    visit("bound", self.bound, not_negative,
          "parallel decoding: tokens whose entropies add up to this at most, in nats",
          "entropy_bound");
  }
  [[nodiscard]] Index count(std::span<const Prediction> ordered, const BlockProgress&) const {
    double sum = 0.0, largest = 0.0;
    Index taken = 0;
    for (const Prediction& one : ordered) {
      sum += one.entropy;
      largest = std::max(largest, one.entropy);
      if (sum - largest > bound) break;
      ++taken;
    }
    return std::max<Index>(taken, 1);
  }
};

/// The same number of rows in every step until the block is done.
struct FixedCommit {
  static constexpr std::string_view name = "FixedCommit";
  static constexpr bool counted = false;
  Index rows = 1;  ///< At least 1.
  static void visit_options(auto& self, auto&& visit) {
    visit("rows", self.rows, at_least(1), "commit this many tokens a step", "tokens_per_step");
  }
  [[nodiscard]] Index count(std::span<const Prediction>, const BlockProgress&) const {
    return rows;
  }
};

/// The rows of a block are spread evenly over its steps, the remainder over the first, whether they
/// are masked or given; a step commits its number, or all rows surer than the threshold where these
/// are more.
///
/// Source: `block_diffusion_generate` of JetAstra/SDAR at c2041a8 (`low_confidence_dynamic`, and
/// with a threshold of 1 `low_confidence_static`); with one row a step the rule of Fast-dLLM v2.
/// Differs: never more rows than are masked, where SDAR's top-k overwrites others.
struct EvenCommit {
  static constexpr std::string_view name = "EvenCommit";
  static constexpr bool counted = false;
  double threshold = 1.0;  ///< In [0, 1]; nothing is surer than 1.
  static void visit_options(auto& self, auto&& visit) {
    visit("threshold", self.threshold, from_0_to_1,
          "parallel decoding: commit every token surer than this, where these are enough");
  }
  [[nodiscard]] Index count(std::span<const Prediction> ordered, const BlockProgress& block) const {
    const Index steps = block.steps;
    const Index share = block.length / steps + (block.step < block.length % steps ? 1 : 0);
    const Index surer = std::count_if(ordered.begin(), ordered.end(), [&](const Prediction& one) {
      return one.confidence > threshold;
    });
    return std::max({surer, share, Index{1}});
  }
};

/// Any of the rules above.
using CommitRule =
    std::variant<CountedCommit, TimestepCommit, BernoulliCommit, ThresholdCommit, FactorCommit,
                 EntropyBoundCommit, FixedCommit, LinearCommit, EvenCommit>;

/// Whether blocks end after a fixed number of steps under this rule.
[[nodiscard]] inline bool is_counted(const CommitRule& rule) {
  return std::visit([]<CommitsPredictions R>(const R&) { return R::counted; }, rule);
}

/// Refuses numbers outside their range; throws std::invalid_argument naming rule, field, range and
/// value.
inline void check_rule(const CommitRule& rule) {
  std::visit(
      []<class R>(const R& held) {
        if constexpr (VisitsOptions<R>) check_options(held, R::name);
      },
      rule);
}

/// How many of the predictions, ordered surest first, the rule commits: 0 to all.
[[nodiscard]] inline Index count_commits(std::span<const Prediction> ordered,
                                         const CommitRule& rule, const BlockProgress& block) {
  if (ordered.empty()) return 0;
  const Index wanted =
      std::visit([&](const auto& held) { return held.count(ordered, block); }, rule);
  return std::clamp<Index>(wanted, 0, static_cast<Index>(ordered.size()));
}

}  // namespace dllm_cache::inline v0_1
