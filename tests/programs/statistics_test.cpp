// SPDX-License-Identifier: Apache-2.0
// Intervals and tests against published values and values computed by hand.
#include "programs/measure/statistics.hpp"

#include <array>
#include <catch2/catch.hpp>

using dllm_cache::Index;
using programs::Interval;

TEST_CASE("Wilson's interval has the values of Newcombe 1998, table I", "[programs]") {
  struct Known {
    Index hits, trials;
    double low, high;
  };
  for (const auto& [hits, trials, low, high] :
       {Known{81, 263, 0.2553, 0.3662}, Known{15, 148, 0.0624, 0.1605}, Known{0, 20, 0.0, 0.1611},
        Known{1, 29, 0.0061, 0.1718}}) {
    const programs::Share share = programs::share_of(hits, trials);
    INFO(hits << " of " << trials);
    CHECK(share.value == Approx(static_cast<double>(hits) / static_cast<double>(trials)));
    CHECK(share.interval.low == Approx(low).margin(5e-5));
    CHECK(share.interval.high == Approx(high).margin(5e-5));
  }
  CHECK(programs::share_of(0, 20).interval.low == 0.0);
  CHECK(programs::share_of(20, 20).interval.high == 1.0);
}

TEST_CASE("the share of groups counts what is independent", "[programs]") {
  // Two questions, one all right and one all wrong: as much as one trial. n / (n - 1) * sum of
  // (hits - share * trials)^2 / all^2 = 2 * 8 / 64, and 0.25 / 0.25 = 1.
  const std::array<Index, 2> trials = {4, 4};
  const programs::Share uneven = programs::share_of_groups(std::array<Index, 2>{4, 0}, trials);
  CHECK(uneven.value == 0.5);
  CHECK(uneven.interval.low == Approx(0.05462075552885201));
  CHECK(uneven.interval.high == Approx(0.9453792444711481));
  // All right: nothing varies, two questions are two trials.
  const programs::Share all = programs::share_of_groups(std::array<Index, 2>{4, 4}, trials);
  CHECK(all.value == 1.0);
  CHECK(all.interval.low == Approx(0.3423802275066531));
  CHECK(all.interval.high == 1.0);
  // Groups that vary less than independent trials would never count as more than those.
  const programs::Share even = programs::share_of_groups(std::array<Index, 4>{50, 50, 50, 51},
                                                         std::array<Index, 4>{100, 100, 100, 100});
  const Interval most = programs::wilson(201.0 / 400.0, 400.0);
  CHECK(even.interval.low == Approx(most.low));
  CHECK(even.interval.high == Approx(most.high));
}

TEST_CASE("McNemar's test adds up binomial coefficients", "[programs]") {
  CHECK(programs::mcnemar(0, 0) == 1.0);
  CHECK(programs::mcnemar(0, 1) == Approx(1.0));
  CHECK(programs::mcnemar(3, 3) == Approx(1.0));
  CHECK(programs::mcnemar(0, 6) == Approx(2.0 / 64.0));
  CHECK(programs::mcnemar(1, 8) == Approx(2.0 * (1 + 9) / 512.0));
  CHECK(programs::mcnemar(10, 2) == Approx(2.0 * (1 + 12 + 66) / 4096.0));
  CHECK(programs::mcnemar(2, 10) == programs::mcnemar(10, 2));
  // Beyond what a double holds in single coefficients; from exact fractions.
  CHECK(programs::mcnemar(500, 400) == Approx(0.0009564441369189461).epsilon(1e-9));
  CHECK(programs::mcnemar(1100, 1000) == Approx(0.030720707864242296).epsilon(1e-9));
}

TEST_CASE("a paired difference has half a question added to each cell", "[programs]") {
  // 10.5 and 2.5 of 102: 8 / 102 -+ 1.96 * sqrt(13 / 102 - (8 / 102)^2) / sqrt(102).
  const programs::PairedDifference some = programs::paired_difference(10, 2, 100);
  CHECK(some.difference == Approx(0.08));
  CHECK(some.interval.low == Approx(0.01084214068249871));
  CHECK(some.interval.high == Approx(0.1460206044155405));
  CHECK(some.p_value == Approx(0.03857421875));
  const programs::PairedDifference none = programs::paired_difference(0, 0, 50);
  CHECK(none.difference == 0.0);
  CHECK(none.interval.low == Approx(-0.037691615087308734));
  CHECK(none.interval.high == Approx(0.037691615087308734));
  const programs::PairedDifference worst = programs::paired_difference(0, 1, 1);
  CHECK(worst.difference == -1.0);
  CHECK(worst.interval.low >= -1.0);
}
