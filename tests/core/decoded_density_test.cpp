// SPDX-License-Identifier: Apache-2.0
#include "dllm_cache/base/decoded_density.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "tests/support/exact_refusal.hpp"
#include "tests/support/random_numbers.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;

namespace {

using Flags = std::vector<std::uint8_t>;

std::vector<double> density_of(const Flags& masked, double sigma) {
  std::vector<double> density(masked.size(), -1.0);
  base::decoded_density(masked, sigma, density);
  return density;
}

// The definition, term by term.
double plain_density(const Flags& masked, double sigma, Index row) {
  const auto rows = static_cast<Index>(masked.size());
  const auto weight = [sigma](Index n) {
    return std::exp(-static_cast<double>(n * n) / (2.0 * sigma * sigma));
  };
  double sum = 0.0, whole = 0.0;
  for (Index other = -rows; other < 2 * rows; ++other) {
    const bool is_masked = other < 0 ? false : masked[std::min(other, rows - 1)] != 0;
    if (!is_masked) sum += weight(row - other);
  }
  for (Index n = -3 * rows; n < 3 * rows; ++n) whole += weight(n);
  return sum / whole;
}

}  // namespace

TEST_CASE("Decoded density: known before the response, behind it what its last row is",
          "[decoded_density]") {
  // From the formula in Python, in double.
  const std::vector<double> narrow = density_of({1, 0, 1, 1, 0}, 1.0);
  const std::vector<double> narrow_wanted{0.5426349010355851, 0.4620675873176335,
                                          0.3050960322843622, 0.35465515011131277,
                                          0.7039044742411624};
  const std::vector<double> wide = density_of({1, 0, 1, 1, 0}, 40.0);
  const std::vector<double> wide_wanted{0.40595691258277866, 0.40635350831793066,
                                        0.40649997761100926, 0.40639604936725543,
                                        0.4060419150706464};
  const std::vector<double> all_masked = density_of({1, 1, 1}, 2.0);
  const std::vector<double> all_masked_wanted{0.3617802939027462, 0.21274168410347685,
                                              0.100519395582688};
  for (std::size_t row = 0; row < 5; ++row) {
    CHECK(narrow[row] == Approx(narrow_wanted[row]).epsilon(1e-14));
    CHECK(wide[row] == Approx(wide_wanted[row]).epsilon(1e-14));
  }
  for (std::size_t row = 0; row < 3; ++row)
    CHECK(all_masked[row] == Approx(all_masked_wanted[row]).epsilon(1e-14));
  CHECK(density_of({1}, 10.0)[0] == Approx(0.16846287854632444).epsilon(1e-14));
  CHECK(density_of({0}, 10.0)[0] == Approx(0.5062330593317216).epsilon(1e-14));
  CHECK(density_of({}, 1.0).empty());
}

TEST_CASE("Decoded density: of any width and any rows it is the plain sum",
          "[decoded_density][property]") {
  constexpr std::uint64_t seed = 2509;
  RandomNumbers random(seed);
  for (const double sigma : {1e-3, 0.4, 3.0, 10.0, 59.9, 61.0, 1e6})
    for (const Index rows : {1, 2, 17, 60}) {
      Flags masked(static_cast<std::size_t>(rows));
      for (std::uint8_t& flag : masked) flag = static_cast<std::uint8_t>(random.below(2));
      CAPTURE(seed, sigma, rows);
      const std::vector<double> density = density_of(masked, sigma);
      for (Index row = 0; row < rows; ++row)
        CHECK(density[static_cast<std::size_t>(row)] ==
              Approx(plain_density(masked, sigma, row)).epsilon(1e-13));
    }
}

TEST_CASE("Decoded density: widths and sizes that make no sense are refused",
          "[decoded_density][refusal]") {
  CHECK(refused_argument([] { density_of({1}, 0.0); }) ==
        "decoded_density: sigma must be above 0, got 0");
  CHECK(refused_argument([] { density_of({1}, std::numeric_limits<double>::quiet_NaN()); }) ==
        "decoded_density: sigma must be above 0, got nan");
  CHECK(refused_argument([] {
          std::vector<double> density(1);
          base::decoded_density(Flags{1, 0}, 1.0, density);
        }) == "decoded_density: density must have one entry a row = 2, got 1");
}
