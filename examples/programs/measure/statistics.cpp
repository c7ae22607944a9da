// SPDX-License-Identifier: Apache-2.0
#include "programs/measure/statistics.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace programs {
namespace {

constexpr double normal_975 = 1.959963984540054;  // 97.5 % quantile of the standard normal

}  // namespace

Interval wilson(double share, double trials) {
  const double z2 = normal_975 * normal_975;
  const double center = share + z2 / (2.0 * trials);
  const double half =
      normal_975 * std::sqrt(share * (1.0 - share) / trials + z2 / (4.0 * trials * trials));
  const double scale = 1.0 + z2 / trials;
  // At the ends one side is exact; rounding must not move it.
  return {share <= 0.0 ? 0.0 : (center - half) / scale,
          share >= 1.0 ? 1.0 : (center + half) / scale};
}

Share share_of(Index hits, Index trials) {
  const double share = static_cast<double>(hits) / static_cast<double>(trials);
  return {share, wilson(share, static_cast<double>(trials))};
}

Share share_of_groups(std::span<const Index> hits, std::span<const Index> trials) {
  const auto groups = static_cast<double>(trials.size());
  const auto all = static_cast<double>(std::accumulate(trials.begin(), trials.end(), Index{0}));
  const double share =
      static_cast<double>(std::accumulate(hits.begin(), hits.end(), Index{0})) / all;
  double squares = 0.0;
  for (std::size_t i = 0; i < trials.size(); ++i)
    squares += std::pow(static_cast<double>(hits[i]) - share * static_cast<double>(trials[i]), 2.0);
  double effective = groups;
  if (groups > 1.0 && squares > 0.0) {
    const double variance = groups / (groups - 1.0) * squares / (all * all);
    effective = std::min(all, share * (1.0 - share) / variance);
  }
  return {share, wilson(share, effective)};
}

double mcnemar(Index better, Index worse) {
  const Index all = better + worse;
  const auto log_choose = [&](Index chosen) {
    return std::lgamma(static_cast<double>(all) + 1.0) -
           std::lgamma(static_cast<double>(chosen) + 1.0) -
           std::lgamma(static_cast<double>(all - chosen) + 1.0);
  };
  double tail = 0.0;
  for (Index k = 0; k <= std::min(better, worse); ++k)
    tail += std::exp(log_choose(k) - static_cast<double>(all) * std::log(2.0));
  return std::min(1.0, 2.0 * tail);
}

PairedDifference paired_difference(Index better, Index worse, Index count) {
  const double n = static_cast<double>(count) + 2.0;
  const double b = static_cast<double>(better) + 0.5;
  const double w = static_cast<double>(worse) + 0.5;
  const double center = (b - w) / n;
  const double half = normal_975 * std::sqrt((b + w) / n - center * center) / std::sqrt(n);
  return {.better = better,
          .worse = worse,
          .difference = static_cast<double>(better - worse) / static_cast<double>(count),
          .interval = {std::max(-1.0, center - half), std::min(1.0, center + half)},
          .p_value = mcnemar(better, worse)};
}

}  // namespace programs
