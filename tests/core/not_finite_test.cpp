// SPDX-License-Identifier: Apache-2.0
// What a NaN or an infinity in a row does to other rows and later steps, and what it does not.
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "dllm_cache/policies/dllm_cache.hpp"
#include "tests/support/cached_run.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;

namespace {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

const TinyModel<float>& model() {
  static const TinyModel<float> one(2, 31);
  return one;
}

void poison(Matrix<float>& x, Index row, float value) { x.row(row)[1] = value; }

// Rows of `in_pass` with a number that is not finite.
std::vector<Index> not_finite(const PassRows<float>& in_pass) {
  std::vector<Index> rows;
  for (Index j = 0; j < in_pass.hidden.rows; ++j)
    if (!std::all_of(in_pass.hidden.row(j), in_pass.hidden.row(j) + in_pass.hidden.cols,
                     [](float one) { return std::isfinite(one); }))
      rows.push_back(in_pass.rows[static_cast<std::size_t>(j)]);
  return rows;
}

Matrix<float> rows_of(const SequenceShape& shape, std::uint64_t seed) {
  RandomNumbers random(seed);
  return model().embed(start_tokens(model(), shape, random));
}

// Sums of a fresh row of 40 values against a cached one, both 1 but for one entry.
SimilaritySums sums_with(float fresh_entry, float cached_entry, std::size_t at) {
  std::vector<float> fresh(40, 1.0F), cached(40, 1.0F);
  fresh[at] = fresh_entry;
  cached[at] = cached_entry;
  SimilaritySums sums;
  VVerifySelector<float>().accumulate(dense_view<const float>(fresh.data(), 1, 40),
                                      dense_view(cached.data(), 1, 40), std::span(&sums, 1));
  return sums;
}

}  // namespace

TEST_CASE("Not finite: a row whose old or new value is no number or infinite is selected first",
          "[not_finite]") {
  const SimilaritySums opposite{-1.0, 1.0, 1.0};  // the least similar that numbers can be
  for (const float bad : {not_a_number, infinity, -infinity})
    for (const std::size_t at : {std::size_t{3}, std::size_t{39}})
      for (const auto& [fresh, cached] :
           {std::pair{bad, 1.0F}, std::pair{1.0F, bad}, std::pair{bad, bad}}) {
        CAPTURE(fresh, cached, at);
        const std::vector<SimilaritySums> sums{opposite, sums_with(fresh, cached, at), opposite,
                                               sums_with(fresh, cached, at)};
        std::vector<Index> selected;
        VVerifySelector<float>().select(sums, 1, selected);
        CHECK(selected == std::vector<Index>{1});
        VVerifySelector<float>().select(sums, 2, selected);
        CHECK(selected == std::vector<Index>{1, 3});
        VVerifySelector<float>().select(sums, 3, selected);
        CHECK(selected == std::vector<Index>{0, 1, 3});
      }
}

TEST_CASE("Not finite: a full forward spreads it to the rows that see its key, and no further",
          "[not_finite]") {
  for (const float bad : {not_a_number, infinity}) {
    const SequenceShape causal{.prompt = 4, .response = 8, .attention_block = 4};
    Workspace<float> workspace;
    FeatureCache<float> cache(model().shape(), causal, NoCache{});
    Matrix<float> x = rows_of(causal, 1);
    const Matrix<float> sane = plain_forward(model(), causal, x);
    poison(x, 6, bad);
    const PassRows<float> in_pass = run_step(workspace, cache, model(), x, {.block = {8, 12}});
    CHECK(not_finite(in_pass) == range(4, 12));  // its own block and the one after it
    for (Index row = 0; row < 4; ++row)
      CHECK(std::equal(sane.row(row), sane.row(row) + sane.cols, in_pass.hidden.row(row)));
  }
}

TEST_CASE("Not finite: the other sequences of a batch stay what they are", "[not_finite]") {
  const SequenceShape shape{.prompt = 2, .response = 5};
  Workspace<float> workspace;
  const AnyPolicy policy = DllmCachePolicy{4, 3, 0.5};
  FeatureCache<float> poisoned(model().shape(), shape, policy),
      sane(model().shape(), shape, policy), alone(model().shape(), shape, policy);
  const std::vector<FeatureCache<float>*> both{&poisoned, &sane};
  const std::vector<StepInput> inputs(2);
  for (std::uint64_t step = 0; step < 5; ++step) {
    CAPTURE(step);
    Matrix<float> bad = rows_of(shape, step);
    if (step == 1) poison(bad, 3, not_a_number);
    const Matrix<float> good = rows_of(shape, 100 + step);
    auto pass = workspace.begin_step(both, inputs);
    const auto in_pass = run_pass(pass, model(), {bad, good});
    CHECK(in_pass[1] == run_step(workspace, alone, model(), good));
  }
}

TEST_CASE(
    "Not finite: in a verified step it is selected, and reaches the rows recomputed beside it",
    "[not_finite]") {
  const SequenceShape shape{.prompt = 3, .response = 8};
  Workspace<float> workspace;
  FeatureCache<float> cache(model().shape(), shape, DllmCachePolicy{never, never, 0.25, false});
  run_step(workspace, cache, model(), rows_of(shape, 1));
  Matrix<float> x = rows_of(shape, 2);
  poison(x, 7, not_a_number);
  auto pass = workspace.begin_step(cache);
  const PassRows<float> in_pass = run_pass(pass, model(), {x}).front();
  const std::vector<Index> selected(pass.recomputed().begin(), pass.recomputed().end());
  CHECK(std::count(selected.begin(), selected.end(), 7) == 1);
  CHECK(selected.size() == 2);
  // Layers may select other rows, but those that were never selected add finite deltas.
  const std::vector<Index> bad = not_finite(in_pass);
  CHECK(std::count(bad.begin(), bad.end(), 7) == 1);
  CHECK(bad.size() < 8);
  CHECK(std::all_of(bad.begin(), bad.end(), [](Index row) { return row >= 3; }));
}

TEST_CASE("Not finite: one sane refresh of the response and every row is sane again",
          "[not_finite]") {
  // The prompt rests meanwhile: its keys are those of before.
  const SequenceShape shape{.prompt = 3, .response = 6};
  Workspace<float> workspace;
  const AnyPolicy policy = DllmCachePolicy{never, 4, 0.5};
  FeatureCache<float> poisoned(model().shape(), shape, policy),
      twin(model().shape(), shape, policy);
  for (std::uint64_t step = 0; step < 9; ++step) {
    CAPTURE(step);
    Matrix<float> x = rows_of(shape, 7);
    for (Index row = 3; row < 9; ++row) x.row(row)[0] += static_cast<float>(step);
    const PassRows<float> expected = run_step(workspace, twin, model(), x);
    if (step == 1) poison(x, 5, infinity);
    const PassRows<float> in_pass = run_step(workspace, poisoned, model(), x);
    if (step == 1) CHECK_FALSE(not_finite(in_pass).empty());
    if (step == 0 || step >= 4) CHECK(in_pass == expected);
  }
}

TEST_CASE("Not finite: after mark_stale the next step is a plain forward, whatever was cached",
          "[not_finite]") {
  const SequenceShape shape{.prompt = 3, .response = 6};
  Workspace<float> workspace;
  FeatureCache<float> cache(model().shape(), shape, DllmCachePolicy{never, never, 0.5});
  Matrix<float> x = rows_of(shape, 5);
  const Matrix<float> sane = plain_forward(model(), shape, x);
  Matrix<float> bad = x;
  poison(bad, 0, not_a_number);
  CHECK(not_finite(run_step(workspace, cache, model(), bad)).size() == 9);
  CHECK_FALSE(not_finite(run_step(workspace, cache, model(), x)).empty());  // the prompt's keys
  cache.mark_stale();
  CHECK(first_difference(run_step(workspace, cache, model(), x), sane) == std::nullopt);
}
