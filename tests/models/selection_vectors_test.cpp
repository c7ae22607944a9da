// SPDX-License-Identifier: Apache-2.0
// The rule that selects rows, against answers in exact arithmetic (tests/selection/reference.py).
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "dllm_cache/vverify_selector.hpp"

using namespace dllm_cache;

namespace {

using Json = nlohmann::json;

float number(const Json& value) {
  return value.is_string() ? std::stof(value.get<std::string>()) : value.get<float>();
}

template <class T>
std::vector<T> matrix(const Json& rows) {
  std::vector<T> all;
  for (const Json& row : rows)
    for (const Json& value : row) all.push_back(static_cast<T>(number(value)));
  return all;
}

template <class Stored>
void check(const Json& vector) {
  const std::vector<float> fresh = matrix<float>(vector.at("fresh"));
  std::vector<Stored> cached = matrix<Stored>(vector.at("cached"));
  const auto rows = static_cast<Index>(vector.at("fresh").size());
  const Index cols = rows > 0 ? static_cast<Index>(fresh.size()) / rows : 0;
  VVerifySelector<float, Stored> selector;
  std::vector<SimilaritySums> sums(static_cast<std::size_t>(rows));
  selector.accumulate(dense_view(fresh.data(), rows, cols), dense_view(cached.data(), rows, cols),
                      sums);
  const auto stored = matrix<Stored>(vector.at("stored_values"));
  for (std::size_t i = 0; i < stored.size(); ++i) {
    CAPTURE(i);
    if (std::isnan(static_cast<float>(stored[i])))
      CHECK(std::isnan(static_cast<float>(cached[i])));
    else
      CHECK(cached[i] == stored[i]);
  }
  for (std::size_t row = 0; row < sums.size(); ++row) {
    CAPTURE(row);
    const Json& expected = vector.at("similarity")[row];
    if (expected.is_null())
      CHECK(std::isnan(similarity(sums[row])));
    else
      CHECK(similarity(sums[row]) == Approx(expected.get<double>()).margin(1e-6));
  }
  const Json& threshold = vector.at("threshold");
  std::vector<Index> selected;
  LeastSimilarRows().select(sums, vector.at("count"),
                            threshold.is_null() ? no_similarity_threshold : threshold.get<double>(),
                            selected);
  CHECK(selected == vector.at("selected").get<std::vector<Index>>());
}

}  // namespace

TEST_CASE("Selection: every test vector is answered as in exact arithmetic", "[selection]") {
  std::ifstream file(DLLM_CACHE_TEST_DATA "/../selection/vectors.json");
  const Json vectors = Json::parse(file);
  REQUIRE(vectors.size() >= 30);
  for (const Json& vector : vectors) {
    DYNAMIC_SECTION(vector.at("name").get<std::string>()) {
      const auto stored = vector.at("stored").get<std::string>();
      if (stored == "float32") check<float>(vector);
      if (stored == "bfloat16") check<Eigen::bfloat16>(vector);
      if (stored == "float16") check<Eigen::half>(vector);
    }
  }
}

TEST_CASE("Selection: a threshold that is no number and a wrong count are refused", "[selection]") {
  std::vector<SimilaritySums> sums(2);
  std::vector<Index> selected;
  LeastSimilarRows rule;
  CHECK_THROWS_AS(rule.select(sums, 1, std::numeric_limits<double>::quiet_NaN(), selected),
                  std::invalid_argument);
  CHECK_THROWS_AS(rule.select(sums, 3, 0.5, selected), std::invalid_argument);
  CHECK_THROWS_AS(rule.select(sums, -1, 0.5, selected), std::invalid_argument);
}
