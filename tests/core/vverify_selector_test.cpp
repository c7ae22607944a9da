// SPDX-License-Identifier: Apache-2.0
#include "dllm_cache/vverify_selector.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "tests/support/exact_refusal.hpp"
#include "tests/support/random_numbers.hpp"
#include "tests/support/scalars.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;
using Catch::Contains;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

// The rule, said plainly: order by cosine, NaN first, ties to the lower row; take `count`. Cosines
// d / sqrt(f * c) are compared as d1 |d1| f2 c2 < d2 |d2| f1 c1: for whole numbers this is exact.
std::vector<Index> naive_select(const std::vector<SimilaritySums>& sums, Index count) {
  const auto less = [&](Index i, Index j) {
    const SimilaritySums &a = sums[static_cast<std::size_t>(i)],
                         &b = sums[static_cast<std::size_t>(j)];
    if (std::isnan(a.dot) || std::isnan(b.dot)) return std::isnan(a.dot) && !std::isnan(b.dot);
    const auto norms = [](const SimilaritySums& s) {
      return s.dot == 0.0 ? 1.0 : s.fresh_square * s.cached_square;  // a zero row scores 0
    };
    return a.dot * std::abs(a.dot) * norms(b) < b.dot * std::abs(b.dot) * norms(a);
  };
  std::vector<Index> rows;
  for (std::size_t row = 0; row < sums.size(); ++row) rows.push_back(static_cast<Index>(row));
  std::stable_sort(rows.begin(), rows.end(), less);
  rows.resize(static_cast<std::size_t>(count));
  std::sort(rows.begin(), rows.end());
  return rows;
}

std::vector<Index> select(const std::vector<SimilaritySums>& sums, Index count) {
  VVerifySelector<float> selector;
  std::vector<Index> selected{7, 7, 7};  // whatever stood there before
  selector.select(sums, count, selected);
  return selected;
}

// Rows whose cosines are known without rounding: (dot, 1, 1).
std::vector<SimilaritySums> with_cosines(const std::vector<double>& cosines) {
  std::vector<SimilaritySums> sums;
  sums.reserve(cosines.size());
  for (const double c : cosines) sums.push_back({c, 1.0, 1.0});
  return sums;
}

// Two matrices with padding around them whose base lies `offset` elements after an aligned address.
template <class Scalar, class Stored>
struct Fixture {
  Index rows, cols, fresh_stride, cached_stride, offset;
  std::vector<Scalar> fresh_memory;
  std::vector<Stored> cached_memory;

  Fixture(Index row_count, Index col_count, Index padding, Index shift)
      : rows(row_count),
        cols(col_count),
        fresh_stride(col_count + padding),
        cached_stride(col_count + 2 * padding),
        offset(shift),
        fresh_memory(static_cast<std::size_t>(shift + rows * fresh_stride), Scalar(99)),
        cached_memory(static_cast<std::size_t>(shift + rows * cached_stride), Stored(77)) {}
  [[nodiscard]] MatrixView<Scalar> fresh() {
    return {fresh_memory.data() + offset, rows, cols, fresh_stride};
  }
  [[nodiscard]] MatrixView<Stored> cached() {
    return {cached_memory.data() + offset, rows, cols, cached_stride};
  }
};

}  // namespace

TEMPLATE_TEST_CASE("VVerifySelector: sums equal a naive loop in double after rounding",
                   "[vverify_selector]", FloatInFloat, DoubleInDouble, FloatInBfloat16, FloatInHalf,
                   DoubleInFloat) {
  using Scalar = typename TestType::Compute;
  using Stored = typename TestType::Stored;
  const std::uint64_t seed = 11;
  RandomNumbers random(seed);
  for (const Index cols : {1, 3, 31, 32, 33, 512, 513, 1000, 1057}) {
    for (const Index shift : {0, 1, 3}) {
      const Index padding = shift == 0 ? 0 : 5;
      INFO("seed " << seed << ", width " << cols << ", offset " << shift);
      Fixture<Scalar, Stored> data(4, cols, padding, shift);
      std::vector<SimilaritySums> expected;
      std::vector<Stored> rounded;
      for (Index row = 0; row < data.rows; ++row) {
        SimilaritySums sums;
        for (Index col = 0; col < cols; ++col) {
          data.fresh().row(row)[col] = static_cast<Scalar>(random.signed_unit());
          data.cached().row(row)[col] =
              static_cast<Stored>(static_cast<Scalar>(random.signed_unit()));
          rounded.push_back(static_cast<Stored>(data.fresh().row(row)[col]));
          const auto a = static_cast<double>(rounded.back());
          const auto b = static_cast<double>(data.cached().row(row)[col]);
          sums += {a * b, a * a, b * b};
        }
        expected.push_back(sums);
      }
      const std::vector<Scalar> fresh_before = data.fresh_memory;
      std::vector<SimilaritySums> sums(4, SimilaritySums{not_a_number, not_a_number, not_a_number});
      VVerifySelector<Scalar, Stored>().accumulate(data.fresh(), data.cached(), sums);

      std::size_t next = 0;
      bool stored = true;
      for (Index row = 0; row < data.rows; ++row) {
        const auto i = static_cast<std::size_t>(row);
        // Lanes of the compute scalar run over at most 16 terms: far less than this.
        const double most = static_cast<double>(cols) * (sizeof(Scalar) == 4 ? 1e-6 : 1e-15);
        REQUIRE(sums[i].dot == Approx(expected[i].dot).margin(most));
        REQUIRE(sums[i].fresh_square == Approx(expected[i].fresh_square).epsilon(1e-6));
        REQUIRE(sums[i].cached_square == Approx(expected[i].cached_square).epsilon(1e-6));
        for (Index col = 0; col < cols; ++col)
          stored = stored && data.cached().row(row)[col] == rounded[next++];
      }
      REQUIRE(stored);
      REQUIRE(data.fresh_memory == fresh_before);
      // Nothing outside the matrix was written.
      for (std::size_t i = 0; i < data.cached_memory.size(); ++i) {
        const Index at = static_cast<Index>(i) - data.offset;
        if (at < 0 || at % data.cached_stride >= cols)
          stored = stored && data.cached_memory[i] == Stored(77);
      }
      REQUIRE(stored);
    }
  }
}

TEMPLATE_TEST_CASE("VVerifySelector: an unchanged row scores exactly 1 at any width",
                   "[vverify_selector]", FloatInFloat, DoubleInDouble, FloatInBfloat16,
                   FloatInHalf) {
  using Scalar = typename TestType::Compute;
  using Stored = typename TestType::Stored;
  RandomNumbers random(12);
  for (const Index cols : {1, 3, 31, 32, 33, 512, 1000}) {
    Fixture<Scalar, Stored> data(8, cols, 3, 1);
    for (Index row = 0; row < data.rows; ++row)
      for (Index col = 0; col < cols; ++col) {
        data.fresh().row(row)[col] = static_cast<Scalar>(random.signed_unit() * 3.0);
        data.cached().row(row)[col] = static_cast<Stored>(data.fresh().row(row)[col]);
      }
    std::vector<SimilaritySums> sums(8);
    VVerifySelector<Scalar, Stored>().accumulate(data.fresh(), data.cached(), sums);
    for (const SimilaritySums& s : sums) {
      REQUIRE(signed_square_cosine(s) == 1.0);
      REQUIRE(similarity(s) == 1.0);
    }
  }
}

TEST_CASE("VVerifySelector: rows that differ by rounding noise alone tie and the lowest wins",
          "[vverify_selector]") {
  using Stored = Eigen::bfloat16;
  for (const Index cols : {8, 64}) {
    Fixture<float, Stored> data(4, cols, 0, 0);
    for (Index row = 0; row < 4; ++row)
      for (Index col = 0; col < cols; ++col) {
        data.cached().row(row)[col] = Stored(1.0f + static_cast<float>(col % 4));
        // Rows 2 and 3 carry noise below bfloat16's resolution: it must not make them stand out.
        data.fresh().row(row)[col] =
            1.0f + static_cast<float>(col % 4) + (row >= 2 && col % 2 == 0 ? 1e-3f : 0.0f);
      }
    std::vector<SimilaritySums> sums(4);
    std::vector<Index> selected;
    VVerifySelector<float, Stored> selector;
    selector.accumulate(data.fresh(), data.cached(), sums);
    selector.select(sums, 2, selected);
    REQUIRE(selected == std::vector<Index>{0, 1});
  }
}

TEST_CASE("VVerifySelector: both stages together equal the naive sort of cosines",
          "[vverify_selector][property]") {
  const std::uint64_t seed = 13;
  RandomNumbers random(seed);
  for (const Index rows : {0, 1, 2, 17, 256})
    for (const Index cols : {1, 3, 33, 64}) {
      INFO("seed " << seed << ", " << rows << " rows of width " << cols);
      // Small whole numbers: every sum is exact in float, so ties are real ties.
      Fixture<float, float> data(rows, cols, 1, 1);
      std::vector<SimilaritySums> expected;
      for (Index row = 0; row < rows; ++row) {
        SimilaritySums sums;
        for (Index col = 0; col < cols; ++col) {
          const bool zero_row = row % 7 == 3;
          data.fresh().row(row)[col] = zero_row ? 0.0f : static_cast<float>(random.below(5) - 2);
          data.cached().row(row)[col] =
              row % 3 == 0 ? data.fresh().row(row)[col] : static_cast<float>(random.below(5) - 2);
          const double a = data.fresh().row(row)[col], b = data.cached().row(row)[col];
          sums += {a * b, a * a, b * b};
        }
        expected.push_back(sums);
      }
      if (rows > 10) data.fresh().row(10)[cols - 1] = std::numeric_limits<float>::quiet_NaN();
      if (rows > 10) expected[10] = {not_a_number, not_a_number, 1.0};
      std::vector<SimilaritySums> sums(static_cast<std::size_t>(rows));
      VVerifySelector<float> selector;
      selector.accumulate(data.fresh(), data.cached(), sums);
      for (const Index count : {Index{0}, Index{1}, rows / 4, rows / 2, rows - 1, rows}) {
        if (count < 0 || count > rows) continue;
        std::vector<Index> selected;
        selector.select(sums, count, selected);
        REQUIRE(selected == naive_select(expected, count));
      }
    }
}

TEST_CASE("VVerifySelector: selects the least similar rows in row order", "[vverify_selector]") {
  const auto sums = with_cosines({0.9, -0.5, 0.1, 1.0, 0.2});
  REQUIRE(select(sums, 0).empty());
  REQUIRE(select(sums, 1) == std::vector<Index>{1});
  REQUIRE(select(sums, 3) == std::vector<Index>{1, 2, 4});
  REQUIRE(select(sums, 5) == std::vector<Index>{0, 1, 2, 3, 4});
  REQUIRE(select({}, 0).empty());
}

TEST_CASE("VVerifySelector: ties go to the lower row", "[vverify_selector]") {
  REQUIRE(select(with_cosines(std::vector<double>(256, 1.0)), 3) == std::vector<Index>{0, 1, 2});
  REQUIRE(select(with_cosines({1.0, 0.5, 1.0, 0.5, 0.5}), 2) == std::vector<Index>{1, 3});
}

TEST_CASE("VVerifySelector: a NaN row is the least similar of all", "[vverify_selector]") {
  auto sums = with_cosines({-1.0, 0.5, 0.0, 1.0, 0.2});
  sums[3] = {not_a_number, 1.0, 1.0};
  REQUIRE(select(sums, 1) == std::vector<Index>{3});
  sums[3] = {1.0, not_a_number, 1.0};
  REQUIRE(select(sums, 2) == std::vector<Index>{0, 3});
  sums[3] = {1.0, 1.0, not_a_number};
  REQUIRE(select(sums, 1) == std::vector<Index>{3});
}

TEST_CASE("VVerifySelector: a zero row scores 0, between the unlike and the like",
          "[vverify_selector]") {
  REQUIRE(signed_square_cosine({0.0, 0.0, 0.0}) == 0.0);
  REQUIRE(signed_square_cosine({0.0, 4.0, 0.0}) == 0.0);
  const std::vector<SimilaritySums> sums{{0.5, 1, 1}, {0, 0, 0}, {-0.5, 1, 1}};
  REQUIRE(select(sums, 1) == std::vector<Index>{2});
  REQUIRE(select(sums, 2) == std::vector<Index>{1, 2});
}

TEST_CASE("VVerifySelector: similarity is the cosine with its sign", "[vverify_selector]") {
  REQUIRE(similarity({-6.0, 9.0, 16.0}) == Approx(-0.5));
  REQUIRE(similarity({6.0, 9.0, 16.0}) == Approx(0.5));
  REQUIRE(signed_square_cosine({-6.0, 9.0, 16.0}) == Approx(-0.25));
  // Norms count as 1e-8 at least, as in the reference.
  REQUIRE(signed_square_cosine({1e-20, 1e-20, 1e-20}) == Approx(1e-8));
}

TEST_CASE("VVerifySelector: sums of parts of a row add up to the whole row's",
          "[vverify_selector]") {
  SimilaritySums sums{1, 2, 3};
  sums += {10, 20, 30};
  REQUIRE(sums.dot == 11);
  REQUIRE(sums.fresh_square == 22);
  REQUIRE(sums.cached_square == 33);
}

TEST_CASE("VVerifySelector: shapes and counts that do not fit are refused",
          "[vverify_selector][refusal]") {
  VVerifySelector<float> selector;
  std::vector<float> memory(12);
  std::vector<SimilaritySums> sums(2);
  const auto view = [&](Index rows, Index cols) { return dense_view(memory.data(), rows, cols); };
  REQUIRE_THAT(refused_argument([&] { selector.accumulate(view(2, 3), view(3, 3), sums); }),
               Contains("VVerifySelector: cached must be [2, 3] like fresh, got [3, 3]"));
  REQUIRE_THAT(refused_argument([&] { selector.accumulate(view(2, 3), view(2, 4), sums); }),
               Contains("VVerifySelector: cached must be [2, 3] like fresh, got [2, 4]"));
  REQUIRE_THAT(refused_argument([&] { selector.accumulate(view(3, 3), view(3, 3), sums); }),
               Contains("VVerifySelector: sums must have one entry a row (3), got 2"));
  std::vector<Index> selected;
  REQUIRE_THAT(refused_argument([&] { selector.select(sums, 3, selected); }),
               Contains("LeastSimilarRows: count must be in [0, rows = 2], got 3"));
  REQUIRE_THAT(refused_argument([&] { selector.select(sums, -1, selected); }),
               Contains("LeastSimilarRows: count must be in [0, rows = 2], got -1"));
}
