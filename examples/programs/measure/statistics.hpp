// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "dllm_cache/base/matrix_view.hpp"

namespace programs {

using dllm_cache::Index;

/// A confidence interval of 95 %.
struct Interval {
  double low = 0.0;
  double high = 0.0;
};

/// A share in [0, 1] with its interval.
struct Share {
  double value = 0.0;
  Interval interval;
};

/// Wilson's interval of a share in [0, 1] seen in `trials > 0` trials, which may be a fraction.
[[nodiscard]] Interval wilson(double share, double trials);

/// `hits` of `trials > 0` independent trials, with Wilson's interval.
[[nodiscard]] Share share_of(Index hits, Index trials);

/// All hits over all trials of groups whose trials depend on each other, `[groups]` each, with
/// Wilson's interval of the effective number of trials (the variance between groups decides it;
/// the number of groups where there is none).
[[nodiscard]] Share share_of_groups(std::span<const Index> hits, std::span<const Index> trials);

/// McNemar's exact test, two-sided: the chance, were better and worse equally likely, of a split
/// at least as uneven as `better` to `worse`; 1 when both are 0.
[[nodiscard]] double mcnemar(Index better, Index worse);

/// How the shares of two runs over the same questions differ.
struct PairedDifference {
  Index better = 0;         ///< Questions that only the run in question answers right.
  Index worse = 0;          ///< Questions that only the other run answers right.
  double difference = 0.0;  ///< (better - worse) / count.
  Interval interval;        ///< Paired normal with half a question added to each of the four cells
                            ///< (Agresti and Min 2005), so that no difference has a width too.
  double p_value = 1.0;     ///< mcnemar().
};

/// The difference over `count > 0` questions, `better` and `worse` of them decided differently.
[[nodiscard]] PairedDifference paired_difference(Index better, Index worse, Index count);

}  // namespace programs
