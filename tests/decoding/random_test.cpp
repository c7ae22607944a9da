// SPDX-License-Identifier: Apache-2.0
#include "dllm_cache/decoding/random.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <set>
#include <vector>

using namespace dllm_cache;

namespace {

double draw(const RandomKey& key, RandomUse use = RandomUse::Token, std::uint64_t index = 0) {
  return RowRandom(key, use).uniform(index);
}

// 2^64 wraps: the inverse of the odd number `c` by Newton's iteration.
std::uint64_t inverse(std::uint64_t c) {
  std::uint64_t x = c;
  for (int i = 0; i < 6; ++i) x *= 2 - c * x;
  return x;
}

std::uint64_t undo_xor_shift(std::uint64_t bits, int by) {
  std::uint64_t back = bits;
  for (int i = 0; i < 64 / by + 1; ++i) back = bits ^ (back >> by);
  return back;
}

// The input that SplitMix64's finaliser turns into `bits`.
std::uint64_t unmix(std::uint64_t bits) {
  bits = undo_xor_shift(bits, 31) * inverse(0x94d049bb133111ebULL);
  bits = undo_xor_shift(bits, 27) * inverse(0xbf58476d1ce4e5b9ULL);
  return undo_xor_shift(bits, 30) - 0x9e3779b97f4a7c15ULL;
}

// The index at which a stream's 64 bits are `bits`.
std::uint64_t index_of(std::uint64_t bits, const RandomKey& key, RandomUse use) {
  std::uint64_t base = base::mix_bits(static_cast<std::uint64_t>(use));
  for (const std::uint64_t part : {key.seed, key.sequence, key.step, key.row})
    base = base::mix_bits(base ^ part);
  return (unmix(bits) - base) * inverse(0xd1342543de82ef95ULL);
}

}  // namespace

TEST_CASE("RowRandom: one address gives one number, in whatever order it is asked", "[random]") {
  const RandomKey key{.seed = 3, .sequence = 1, .step = 4, .row = 1};
  const RowRandom forward(key, RandomUse::Token), backward(key, RandomUse::Token);
  std::vector<double> there, back;
  for (std::uint64_t i = 0; i < 9; ++i) there.push_back(forward.uniform(i));
  for (std::uint64_t i = 9; i-- > 0;) back.insert(back.begin(), backward.uniform(i));
  REQUIRE(there == back);
  REQUIRE(there.front() == forward.uniform(0));
}

TEST_CASE("RowRandom: a seed gives the numbers that it always gave", "[random]") {
  // Computed once with the same rule in Python.
  REQUIRE(draw({}) == Approx(0.9848573970972622).epsilon(1e-15));
  REQUIRE(draw({.seed = 7, .sequence = 2, .step = 31, .row = 5}, RandomUse::Order, 12) ==
          Approx(0.7691973390590235).epsilon(1e-15));
}

TEST_CASE("RowRandom: another address gives another number", "[random]") {
  std::set<double> seen;
  std::size_t drawn = 0;
  for (const std::uint64_t seed : {0U, 1U, 2U})
    for (const std::uint64_t sequence : {0U, 1U, 2U})
      for (const std::uint64_t step : {0U, 1U, 2U})
        for (const std::uint64_t row : {0U, 1U, 2U})
          for (const RandomUse use : {RandomUse::Token, RandomUse::Confidence, RandomUse::Order})
            for (const std::uint64_t index : {0U, 1U, 2U}) {
              seen.insert(draw({seed, sequence, step, row}, use, index));
              ++drawn;
            }
  REQUIRE(seen.size() == drawn);
  // Parts far apart, so that no sum or shift of them can be all that counts.
  const std::uint64_t large = 1ULL << 63;
  for (const RandomKey& key :
       {RandomKey{large, 0, 0, 0}, {0, large, 0, 0}, {0, 0, large, 0}, {0, 0, 0, large}})
    seen.insert(draw(key));
  REQUIRE(seen.size() == drawn + 4);
}

TEST_CASE("RowRandom: numbers lie in the open interval (0, 1), at the ends too", "[random]") {
  const RandomKey key{.seed = 5, .sequence = 6, .step = 7, .row = 8};
  const auto use = RandomUse::Token;
  const double least = draw(key, use, index_of(0, key, use));
  const double most = draw(key, use, index_of(~std::uint64_t{0}, key, use));
  REQUIRE(least < 1e-15);  // so the index is the right one
  REQUIRE(least > 0.0);
  REQUIRE(most > 1.0 - 1e-15);
  REQUIRE(most < 1.0);
  const RowRandom stream(key, use);
  for (const std::uint64_t bits : {std::uint64_t{0}, ~std::uint64_t{0}})
    REQUIRE(std::isfinite(stream.gumbel(index_of(bits, key, use))));
}

TEST_CASE("RowRandom: numbers are uniform, along each part of the address", "[random]") {
  constexpr int count = 20000, bins = 20;
  for (const int part : {0, 1, 2, 3, 4}) {
    CAPTURE(part);
    std::vector<int> found(bins, 0);
    double sum = 0.0, product = 0.0, previous = 0.5;
    for (std::uint64_t i = 0; i < count; ++i) {
      RandomKey key{.seed = 11, .sequence = 12, .step = 13, .row = 14};
      if (part == 0) key.seed = i;
      if (part == 1) key.sequence = i;
      if (part == 2) key.step = i;
      if (part == 3) key.row = i;
      const double u = draw(key, RandomUse::Token, part == 4 ? i : 0);
      ++found[static_cast<std::size_t>(u * bins)];
      sum += u;
      product += (u - 0.5) * (previous - 0.5);
      previous = u;
    }
    REQUIRE(sum / count == Approx(0.5).margin(0.01));       // five standard deviations
    REQUIRE(product / count == Approx(0.0).margin(0.003));  // neighbours know nothing of each other
    double chi_square = 0.0;
    for (const int n : found)
      chi_square += (n - 1.0 * count / bins) * (n - 1.0 * count / bins) * bins / count;
    REQUIRE(chi_square < 50.0);  // 19 degrees of freedom: exceeded once in 7000 times
  }
}

TEST_CASE("RowRandom: Gumbel numbers are -log(-log(u)) of the uniform ones", "[random]") {
  const RowRandom stream({.seed = 21}, RandomUse::Order);
  double sum = 0.0;
  for (std::uint64_t i = 0; i < 10000; ++i) {
    REQUIRE(stream.gumbel(i) == -std::log(-std::log(stream.uniform(i))));
    sum += stream.gumbel(i);
  }
  REQUIRE(sum / 10000 == Approx(0.5772).margin(0.06));  // Euler's constant
}
