// SPDX-License-Identifier: Apache-2.0
// What the study of caches selects rows by, and its foresight.
#include <catch2/catch.hpp>
#include <memory>
#include <vector>

#include "bench/quality/oracle_model.hpp"
#include "bench/quality/selectors.hpp"
#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/models/load_model.hpp"

using namespace dllm_cache;
using study::Criterion;

namespace {

study::Selector selector_of(Criterion criterion) {
  study::Selector selector;
  selector.criterion = criterion;
  return selector;
}

// One verification of rows of width 2: fresh ones against `cached`, which becomes them.
std::vector<Index> verify(study::Selector& selector, std::vector<float> fresh,
                          std::vector<float>& cached, Index count) {
  const auto rows = static_cast<Index>(fresh.size() / 2);
  std::vector<SimilaritySums> sums(fresh.size() / 2);
  std::vector<Index> selected;
  selector.accumulate(dense_view(std::as_const(fresh).data(), rows, 2),
                      dense_view(cached.data(), rows, 2), sums);
  selector.select(sums, count, selected);
  CHECK(cached == fresh);
  return selected;
}

// Recomputes the response, or all but the last layer's, which it verifies without selecting any
// row.
struct LastLayerPolicy {
  bool verifies = false;

  [[nodiscard]] PolicyTraits traits(const SequenceShape& shape) const {
    return {.name = "last-layer", .stored_deltas = {0, shape.rows()}};
  }
  void plan(const StepContext& context, StepPlan& plan) const {
    if (verifies)
      plan.verify(context.response(), 0);
    else
      plan.recompute(context.response());
    plan.cached_layers.begin = context.layers - 1;
  }
};

}  // namespace

TEST_CASE("study: cosine and distance disagree about a row that only grew", "[study]") {
  const std::vector<float> before = {1, 0, 1, 0, 1, 0}, after = {3, 0, 1, 0.5, 1, 0};
  std::vector<float> cached = before;
  study::Selector cosine = selector_of(Criterion::Cosine);
  CHECK(verify(cosine, after, cached, 1) == std::vector<Index>{1});
  cached = before;
  study::Selector distance = selector_of(Criterion::L2);
  CHECK(verify(distance, after, cached, 1) == std::vector<Index>{0});
}

TEST_CASE("study: random rows are ascending, seeded, and others at every call", "[study]") {
  const std::vector<float> values(2 * 64, 1.0F);
  std::vector<float> cached = values;
  study::Selector one = selector_of(Criterion::Random), same = one;
  const std::vector<Index> first = verify(one, values, cached, 9);
  CHECK(first.size() == 9);
  CHECK(std::is_sorted(first.begin(), first.end()));
  CHECK(std::adjacent_find(first.begin(), first.end()) == first.end());
  CHECK(verify(same, values, cached, 9) == first);
  CHECK(verify(one, values, cached, 9) != first);
}

TEST_CASE("study: the oracle takes the rows whose deltas change most", "[study]") {
  const auto changes = std::make_shared<study::TrueChanges>();
  changes->squares = {0.5, 3.0, 0.0, 2.0};
  study::Selector oracle = selector_of(Criterion::Oracle);
  oracle.changes = changes;
  std::vector<float> cached(8, 1.0F);
  CHECK(verify(oracle, std::vector<float>(8, 2.0F), cached, 2) == std::vector<Index>{1, 3});
}

TEST_CASE("study: compared with the last recomputed value, small turns add up", "[study]") {
  // Row 0 turns a little every time, row 1 once and further than any of these turns.
  study::Selector previous = selector_of(Criterion::Cosine),
                  anchored = selector_of(Criterion::LastRecomputed);
  const std::vector<float> start = {1, 0, 1, 0};
  std::vector<float> a = start, b = start;
  const std::vector<float> turned = {1, 0.2F, 1, 0}, further = {1, 0.4F, 1, 0.3F};
  verify(previous, turned, a, 0);
  verify(anchored, turned, b, 0);
  CHECK(verify(previous, further, a, 1) == std::vector<Index>{1});
  CHECK(verify(anchored, further, b, 1) == std::vector<Index>{0});
  // Row 0 has been recomputed, so that row 1 is now further from its own anchor.
  CHECK(verify(anchored, further, b, 1) == std::vector<Index>{1});
}

TEST_CASE("study: a row refreshed outside the verification has a new anchor", "[study]") {
  study::Selector anchored = selector_of(Criterion::LastRecomputed);
  std::vector<float> cached = {1, 0, 1, 0};
  verify(anchored, {1, 0.2F, 1, 0.1F}, cached, 0);
  cached[1] = 0.3F;  // row 0 was recomputed by a refresh
  CHECK(verify(anchored, {1, 0.35F, 1, 0.2F}, cached, 1) == std::vector<Index>{1});
}

TEST_CASE("study: correlation is Pearson's, and sums of parts are the whole", "[study]") {
  study::Correlation all, left, right;
  const std::vector<std::pair<double, double>> points = {{1, 2}, {2, 1}, {3, 5}, {4, 4}};
  for (std::size_t i = 0; i < points.size(); ++i) {
    all.add(points[i].first, points[i].second);
    (i < 2 ? left : right).add(points[i].first, points[i].second);
  }
  CHECK(all.coefficient() == Approx(5.0 / std::sqrt(5.0 * 10.0) * 1.0));
  left += right;
  CHECK(left.coefficient() == Approx(all.coefficient()));
}

TEST_CASE("study: what the oracle foresees is what recomputing gives", "[study]") {
  const auto model = models::load_model(DLLM_CACHE_TEST_DATA "/models/llada-tiny");
  models::TransformerRunner runner(model, 1);
  const std::vector<std::int32_t> prompt = {3, 14, 15, 9, 26};
  const DecodingOptions options{.response = 7};

  study::OracleModel oracle(runner);
  using Loop = DenoisingLoop<study::OracleModel, float, study::Selector>;
  Loop foreseeing(oracle);
  oracle.watch([&]() -> const auto& { return foreseeing.cache(0); });
  foreseeing.add(prompt, options, LastLayerPolicy{.verifies = true});

  DenoisingLoop<models::TransformerRunner> recomputing(runner);
  recomputing.add(prompt, options, LastLayerPolicy{});
  recomputing.step();
  const Index last = runner.shape().layers - 1, width = runner.shape().width;
  const auto deltas = [&] { return recomputing.cache(0).deltas(last).middle_rows(5, 7); };
  std::vector<std::vector<float>> old;
  for (Index row = 0; row < 7; ++row)
    old.emplace_back(deltas().row(row), deltas().row(row) + width);
  recomputing.step();

  foreseeing.step();
  CHECK(oracle.changes()->squares.empty());  // the first step verifies nothing
  foreseeing.step();
  REQUIRE(oracle.changes()->squares.size() == 7);
  for (Index row = 0; row < 7; ++row) {
    double square = 0.0;
    for (Index i = 0; i < width; ++i) {
      const double change =
          deltas().row(row)[i] - old[static_cast<std::size_t>(row)][static_cast<std::size_t>(i)];
      square += change * change;
    }
    CAPTURE(row);
    CHECK(square > 0.0);
    CHECK(oracle.changes()->squares[static_cast<std::size_t>(row)] == Approx(square).epsilon(1e-3));
  }
  CHECK(oracle.statistics()[static_cast<std::size_t>(last)].cosines.count == 7.0);
  CHECK(oracle.statistics().front().cosines.count == 0.0);
}
