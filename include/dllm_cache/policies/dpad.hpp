// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <string_view>

#include "dllm_cache/base/mix_bits.hpp"
#include "dllm_cache/policies/kept_suffix.hpp"

namespace dllm_cache::inline v0_1 {

/// DPad (Chen et al., arXiv 2508.14148; repository Crys-Chen/DPad at 461b36e, `generate` and its
/// two cached forms in llada/generate_dropout.py, llada/sampler.py).
///
/// Of the rows behind the block a few are drawn when it begins, the nearer the likelier; the others
/// do not exist until it is finished: they are not computed and nobody sees them. What exists is
/// served by one of Fast-dLLM's caches. Row j behind the block is kept where a uniform number is
/// below `suffix_scale` times the normal density at j * `suffix_sigma` / (`suffix_window` - 1),
/// none from `suffix_window` on.
/// Differs: numbers are drawn by seed and row, so that a step done again draws the same, whatever
/// runs beside it; or the rows are given as data. `preserved_tokens`, another sampler there, is not
/// offered. Its Dream form commits the block's first row from the full forward: ours does not.
struct DPadPolicy {
  static constexpr std::array<std::string_view, 3> hosts = {"none", "prefix", "dual"};

  Index host_cache = 1;  ///< Cache of what exists, in [0, 2]: see `hosts`.
  Index suffix_window =
      256;  ///< Rows behind the block that may be kept, at least 1; `window` (256).
  double suffix_sigma = 4.0;  ///< Where the window ends on the normal density, at least 0; `sigma`.
  double suffix_scale = 2.0;  ///< Factor of the density, at least 0; `scale`.
  std::uint64_t suffix_seed = 0;  ///< Of the numbers drawn.
  /// Rows of the sequence to keep, for each block of the response; empty: they are drawn.
  RowLists kept_suffix = {};

  static void visit_options(auto& self, auto&& visit) {
    visit("host_cache", self.host_cache, one_of(hosts), "cache of the rows that exist");
    visit("suffix_window", self.suffix_window, at_least(0), "rows behind the block that may exist");
    visit("suffix_sigma", self.suffix_sigma, finite_not_negative,
          "where the window ends on the normal density");
    visit("suffix_scale", self.suffix_scale, finite_not_negative, "factor of the density");
    visit("suffix_seed", self.suffix_seed, OptionRange<std::uint64_t>{.least = 0},
          "seed of the rows that are drawn");
    visit("kept_suffix", self.kept_suffix, OptionRange<RowLists>{},
          "rows to keep behind each block, in place of drawn ones");
  }

  struct Memory {};  // rows are hidden in stale steps too

  [[nodiscard]] PolicyTraits traits(const SequenceShape& shape) const {
    for (const auto& rows : kept_suffix.blocks)
      if (!rows.empty() && rows.back() >= shape.rows())
        base::refuse_argument("policy dpad: kept_suffix must hold rows in [0, ", shape.rows(),
                              "), got ", rows.back());
    return {
        .name = "dpad", .keeps_features = host_cache != 0, .needs_block = true, .hides_rows = true};
  }

  void plan(const StepContext& context, Memory&, StepPlan& plan) const {
    const Range block = context.block;
    if (kept_suffix.blocks.empty()) {
      const auto drawn = [&](Index row) { return draw(block, row) < density(row - block.end); };
      return detail::plan_kept_suffix(context, detail::SuffixHost{host_cache}, drawn, plan);
    }
    const auto number =
        static_cast<std::size_t>((block.begin - context.shape.prompt) / block.size());
    if (number >= kept_suffix.blocks.size())
      base::refuse_call("policy dpad: kept_suffix must have a list for block ", number, ", has ",
                        kept_suffix.blocks.size());
    const auto& rows = kept_suffix.blocks[number];
    const auto given = [&](Index row) { return std::binary_search(rows.begin(), rows.end(), row); };
    detail::plan_kept_suffix(context, detail::SuffixHost{host_cache}, given, plan);
  }

  /// Probability that the row with this distance from the block's end, at least 0, is kept.
  [[nodiscard]] double density(Index distance) const {
    if (distance >= suffix_window) return 0.0;
    const double x = suffix_window < 2 ? 0.0
                                       : static_cast<double>(distance) * suffix_sigma /
                                             static_cast<double>(suffix_window - 1);
    return suffix_scale * std::exp(-0.5 * x * x) / std::sqrt(2.0 * std::numbers::pi);
  }

 private:
  // Uniform in (0, 1).
  [[nodiscard]] double draw(Range block, Index row) const {
    std::uint64_t bits = base::mix_bits(suffix_seed ^ 0x647061642d726f77ULL);
    for (const Index part : {block.begin, row})
      bits = base::mix_bits(bits ^ static_cast<std::uint64_t>(part));
    return (static_cast<double>(bits >> 12) + 0.5) * 0x1.0p-52;
  }
};

}  // namespace dllm_cache::inline v0_1
