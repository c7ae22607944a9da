// SPDX-License-Identifier: Apache-2.0
// What happens inside a step: hidden rows, keys of some layers, cuts between layers, rows that end,
// attention that is told, and what of it is refused.
#include <catch2/catch.hpp>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/support/cached_run.hpp"
#include "tests/support/exact_refusal.hpp"
#include "tests/support/scripted_policy.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;

namespace {

constexpr std::uint64_t seed = 60127;
using Model = TinyModel<float>;
using Cache = FeatureCache<float>;
using Memory = ScriptedWatcher::Memory;
using Rows = std::vector<Index>;

// Numbers of a sequence that nothing else gives.
Matrix<float> numbers(Index rows, std::uint64_t which) {
  RandomNumbers random(seed + which);
  Matrix<float> x(rows, 6);
  x.data = random.vector<float>(rows * 6, 2.0);
  return x;
}

void hide(StepPlan& plan, const Rows& rows) {
  for (const Index row : rows) plan.hide({row, row + 1});
}
void recompute_visible(const StepContext& context, StepPlan& plan) {
  for (Index row = 0; row < context.live().end; ++row)
    if (!plan.hides(row)) plan.recompute(row);
}
std::vector<std::uint8_t> flags(Index rows, const Rows& set) {
  std::vector<std::uint8_t> all(static_cast<std::size_t>(rows), 0);
  for (const Index row : set) all[static_cast<std::size_t>(row)] = 1;
  return all;
}

// Hides what `hidden` holds at the time, and recomputes all else.
struct Hider {
  std::shared_ptr<Rows> hidden = std::make_shared<Rows>();
  [[nodiscard]] AnyPolicy policy() const {
    return ScriptedWatcher{
        .held = {.name = "hider", .hides_rows = true},
        .script = [rows = hidden](const StepContext& context, Memory&, StepPlan& plan) {
          hide(plan, *rows);
          recompute_visible(context, plan);
        }};
  }
};

// The same rows, alone in a sequence of their own where they have their places.
Matrix<float> forward_of(const Model& model, const Matrix<float>& x, const Rows& rows) {
  Matrix<float> alone(static_cast<Index>(rows.size()), x.cols);
  std::vector<std::int32_t> positions;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::copy_n(x.row(rows[i]), x.cols, alone.row(static_cast<Index>(i)));
    positions.push_back(static_cast<std::int32_t>(rows[i]));
  }
  const SequenceShape shape{.response = alone.rows, .positions = positions};
  return plain_forward(model, shape, alone);
}
Rows all_but(Index count, const Rows& left_out) {
  Rows rows;
  for (Index row = 0; row < count; ++row)
    if (std::find(left_out.begin(), left_out.end(), row) == left_out.end()) rows.push_back(row);
  return rows;
}

// Rows that each layer computed values, keys and deltas for.
std::vector<Index> deltas_of(const CallLog& log) {
  std::vector<Index> rows;
  for (const LayerRows& layer : log.layers) rows.push_back(layer.delta);
  return rows;
}

std::vector<float> copy_of(MatrixView<const float> view) {
  return {view.data, view.data + view.rows * view.cols};
}
std::vector<float> copy_of(MatrixView<const float> view, Index row) {
  return {view.row(row), view.row(row) + view.cols};
}

constexpr SequenceShape seven{.prompt = 3, .response = 4};

// A watcher of seven rows that computes all in its first step and does `then` in those that follow.
ScriptedWatcher in_second_step(std::function<void(StepPlan&)> then,
                               std::function<void(const LayerFacts&, LayerChange&)> look = {}) {
  return {.held = {.name = "watcher",
                   .stored_deltas = {0, 7},
                   .stored_queries = {0, 7},
                   .hides_rows = true,
                   .watches_attention = true},
          .script =
              [then](const StepContext& context, Memory& memory, StepPlan& plan) {
                memory.number = context.step;
                if (context.step == 0) return plan.recompute(context.live());
                then(plan);
              },
          .look =
              [look](const LayerFacts& facts, Memory& memory, LayerChange& change) {
                if (memory.number > 0 && look) look(facts, change);
              }};
}

// The message with which the second step is refused, in its plan or between its layers.
std::string second_step_refused(const ScriptedWatcher& policy) {
  StepPlanner planner(policy, seven, 3);
  planner.begin_step({});
  for (Index layer = 0; layer < 3; ++layer) planner.layer_done({.layer = layer});
  planner.commit_step();
  return refused_call([&] {
    planner.begin_step({});
    for (Index layer = 0; layer < 3; ++layer) planner.layer_done({.layer = layer});
  });
}
std::string plan_refused(std::function<void(StepPlan&)> then) {
  return second_step_refused(in_second_step(std::move(then)));
}
std::string change_refused(
    std::function<void(const LayerFacts&, LayerChange&)> look,
    std::function<void(StepPlan&)> then = [](StepPlan& plan) {
      plan.recompute({0, 5});
    }) {
  return second_step_refused(in_second_step(std::move(then), std::move(look)));
}

}  // namespace

// Hidden rows.

TEST_CASE("Inside: hidden rows are as if they were not there, from the first step on", "[inside]") {
  CAPTURE(seed);
  const Model model(3, seed);
  for (const Index count : {1, 2, 7, 16, 17})
    for (const Rows& hidden : {Rows{}, Rows{0}, Rows{1}, Rows{2, 5}, Rows{0, 1, 2, 15}}) {
      if (count == 1 || (!hidden.empty() && hidden.back() >= count)) continue;
      CAPTURE(count, hidden);
      Hider hider;
      *hider.hidden = hidden;
      Cache cache(model.shape(), {.response = count}, hider.policy());
      Workspace<float> workspace;
      const Rows seen = all_but(count, hidden);
      for (const std::uint64_t step : {0, 1}) {
        const Matrix<float> x = numbers(count, step);
        CallLog log;
        const PassRows<float> got = run_step(workspace, cache, model, x, {}, &log);
        CHECK(got.rows == seen);
        CHECK(got.hidden.data == forward_of(model, x, seen).data);
        const auto rows = static_cast<Index>(seen.size());
        CHECK(log.layers == std::vector<LayerRows>(3, {rows, rows, rows}));
        CHECK(log.segment_keys == Rows{rows});
        CHECK(log.broken_rule.empty());
      }
      CHECK(cache.counts().values == 2 * 3 * static_cast<Index>(seen.size()));
    }
}

TEST_CASE("Inside: keys of visible rows lie in front in row order, the others behind", "[inside]") {
  CAPTURE(seed);
  const Model model(2, seed);
  Hider hider;
  *hider.hidden = {2, 5};
  Cache cache(model.shape(), seven, hider.policy());
  Workspace<float> workspace;
  run_step(workspace, cache, model, numbers(7, 0));
  for (const Index layer : {0, 1}) {
    Rows places;
    for (Index row = 0; row < 7; ++row) places.push_back(cache.key_place(layer, row));
    CHECK(places == Rows{0, 1, 5, 2, 3, 6, 4});
  }
  const std::vector<float> key = copy_of(cache.keys(1), cache.key_place(1, 6));
  hider.hidden->clear();
  // What is begun moves rows at once: the keys of a row go with it.
  auto pass = workspace.begin_step(cache);
  CHECK(cache.key_place(1, 6) == 6);
  CHECK(copy_of(cache.keys(1), 6) == key);
}

TEST_CASE("Inside: rows move when other rows are hidden, not from step to step", "[inside]") {
  RandomNumbers random(seed);
  CAPTURE(seed);
  for (const Index rows : {1, 2, 3, 8, 31}) {
    detail::KeyOrder order;
    order.reserve(rows);
    Rows memory(static_cast<std::size_t>(rows));
    std::iota(memory.begin(), memory.end(), 0);  // what lies at each place
    Index aside = -1, moves = 0;
    const auto move = [&](Index from, Index to) {
      ++moves;
      Index& target = to < 0 ? aside : memory[static_cast<std::size_t>(to)];
      target = from < 0 ? aside : memory[static_cast<std::size_t>(from)];
    };
    for (int i = 0; i < 20; ++i) {
      StepPlan plan;
      plan.clear(rows, 1, "test");
      Rows seen, unseen;
      for (Index row = 0; row < rows; ++row)
        if (random.below(3) == 0) {
          plan.hide({row, row + 1});
          unseen.push_back(row);
        } else {
          seen.push_back(row);
        }
      order.arrange(plan, 0, true, move);
      Rows expected = seen;
      expected.insert(expected.end(), unseen.begin(), unseen.end());
      REQUIRE(memory == expected);
      for (Index row = 0; row < rows; ++row)
        REQUIRE(memory[static_cast<std::size_t>(order.place(row))] == row);
      for (Index end = 0; end <= rows; ++end)
        REQUIRE(order.seen_before(end) ==
                std::lower_bound(seen.begin(), seen.end(), end) - seen.begin());
      moves = 0;
      REQUIRE_FALSE(order.arrange(plan, 0, true, move));
      REQUIRE(moves == 0);
    }
    order.straighten(move);
    for (Index row = 0; row < rows; ++row) REQUIRE(memory[static_cast<std::size_t>(row)] == row);
    REQUIRE(order.is_plain());
  }
}

TEST_CASE("Inside: rows of zeros are promised behind all keys, not behind those that are seen",
          "[inside]") {
  CAPTURE(seed);
  const Model model(2, seed);
  ModelShape padded = model.shape();
  padded.row_multiple = 4;
  Hider hider;
  Cache cache(padded, seven, hider.policy());
  Workspace<float> workspace;
  const auto step = [&](std::uint64_t which) {
    const Matrix<float> x = numbers(7, which);
    auto pass = workspace.begin_step(cache);
    Matrix<float> rows(pass.row_count(), 6);
    for (Index i = 0; i < rows.rows; ++i)
      std::copy_n(x.row(pass.rows()[static_cast<std::size_t>(i)]), 6, rows.row(i));
    std::vector<std::pair<Index, Index>> promised;
    for (Index number = 0; number < 2; ++number) {
      const auto layer = model.layer(number);
      pass.layer(
          make_layer([&](auto in, auto v) { layer.value(in, v); },
                     [&](auto in, auto at, auto q, auto k) { layer.query_key(in, at, q, k); },
                     [&](auto in, auto q, std::span<const Segment<float>> segments, auto u) {
                       for (const auto& one : segments) {
                         promised.emplace_back(one.keys.rows, one.padded_rows);
                         for (Index i = one.keys.rows * one.keys.cols;
                              i < one.padded_rows * one.keys.cols; ++i)
                           REQUIRE((one.keys.data[i] == 0.0F && one.values.data[i] == 0.0F));
                       }
                       layer.delta(in, q, segments, u);
                     }),
          rows.view());
    }
    return promised;
  };
  using Promised = std::vector<std::pair<Index, Index>>;
  CHECK(step(0) == Promised{{7, 8}, {7, 8}});
  *hider.hidden = {0, 4};
  CHECK(step(1) == Promised{{5, 5}, {5, 5}});
  hider.hidden->clear();
  CHECK(step(2) == Promised{{7, 8}, {7, 8}});
}

TEST_CASE("Inside: a fork that hides rows moves its own, and its parent goes on as it was",
          "[inside]") {
  CAPTURE(seed);
  const Model model(2, seed);
  Hider parent, twin;
  Cache cache(model.shape(), seven, parent.policy()), same(model.shape(), seven, twin.policy());
  Workspace<float> workspace;
  for (Cache* one : {&cache, &same}) run_step(workspace, *one, model, numbers(7, 0));
  Cache fork = cache.fork();
  CHECK(fork.own_bytes() < fork.bytes());
  const std::vector<float> keys = copy_of(cache.keys(1)), values = copy_of(cache.values(1));
  *parent.hidden = {1, 2};
  const Matrix<float> x = numbers(7, 1);
  CHECK(run_step(workspace, fork, model, x).hidden.data ==
        forward_of(model, x, all_but(7, {1, 2})).data);
  CHECK(fork.own_bytes() == fork.bytes());
  CHECK(copy_of(cache.keys(1)) == keys);
  CHECK(copy_of(cache.values(1)) == values);
  CHECK(cache.key_place(1, 6) == 6);
  // A fork of one whose rows lie elsewhere has them there too.
  Cache second = fork.fork();
  CHECK(second.key_place(1, 1) == fork.key_place(1, 1));
  CHECK(copy_of(second.keys(1)) == copy_of(fork.keys(1)));
}

TEST_CASE("Inside: a snapshot taken while rows are hidden has them in their own order",
          "[inside]") {
  CAPTURE(seed);
  const Model model(2, seed);
  Hider hider;
  Cache cache(model.shape(), seven, hider.policy()), other(model.shape(), seven, hider.policy());
  Workspace<float> workspace;
  run_step(workspace, cache, model, numbers(7, 0));
  std::vector<std::vector<float>> before;
  for (Index row = 0; row < 7; ++row) before.push_back(copy_of(cache.keys(1), row));
  *hider.hidden = {0, 3};
  { auto pass = workspace.begin_step(cache); }  // moves rows, then is dropped
  CHECK(cache.key_place(1, 0) != 0);
  // Stale ones hold no features: one that is not has to be hidden in a step that was done.
  Cache kept(model.shape(), seven, hider.policy());
  run_step(workspace, kept, model, numbers(7, 2));
  std::vector<std::byte> bytes, again;
  kept.save(bytes);
  other.restore(bytes);
  other.save(again);
  CHECK(bytes == again);
  CHECK(other.key_place(1, 6) == 6);
  for (const Index row : {1, 2, 4, 5, 6})
    CHECK(copy_of(other.keys(1), row) == copy_of(kept.keys(1), kept.key_place(1, row)));
  const Matrix<float> x = numbers(7, 3);
  *hider.hidden = {0, 3, 6};
  CHECK(run_step(workspace, other, model, x) == run_step(workspace, kept, model, x));
}

TEST_CASE("Inside: a layer that sees some keys counts those before the end of each block",
          "[inside]") {
  CAPTURE(seed);
  const Model model(2, seed);
  const ScriptedWatcher policy = {
      .held = {.name = "limits", .hides_rows = true},
      .script = [](const StepContext& context, Memory&, StepPlan& plan) {
        if (context.step == 0) return plan.recompute(context.live());
        plan.hide({1, 2});
        plan.recompute({2, 3});
        plan.recompute({4, 8});
        plan.limit_keys(1, flags(8, {0, 5}));
      }};
  // Blocks [0, 4) and [4, 8).
  Cache cache(model.shape(), {.prompt = 3, .response = 5, .attention_block = 4}, policy);
  Workspace<float> workspace;
  const StepInput all{.block = {0, 8}};
  run_step(workspace, cache, model, numbers(8, 0), all);
  auto pass = workspace.begin_step(cache, all);
  Matrix<float> x = numbers(5, 1);
  CallLog log;
  using Counting = CountingLayer<TinyLayer<float>, float>;
  pass.layer(Counting(model.layer(0), log), x.view());
  CHECK(log.segment_keys == Rows{3, 7});  // 0 2 3, then 4 to 7 too
  pass.layer(Counting(model.layer(1), log), x.view());
  CHECK(log.segment_keys == Rows{2, 6});  // 0 2, then 4 to 7 too: those in the pass are seen
  CHECK(log.broken_rule.empty());
}

TEST_CASE("Inside: a row in the pass sees itself whatever keys a layer is limited to", "[inside]") {
  CAPTURE(seed);
  const Model model(3, seed);
  // Nothing is to be seen, and nothing is planned to be recomputed: then the step is cut.
  const auto policy = in_second_step(
      [](StepPlan& plan) {
        plan.reuse({2, 4});
        for (Index layer = 0; layer < 3; ++layer) plan.limit_keys(layer, flags(7, {}));
      },
      [](const LayerFacts& facts, LayerChange& change) {
        change.recompute_rest = facts.layer == 0;
      });
  Cache cache(model.shape(), seven, policy);
  Workspace<float> workspace;
  run_step(workspace, cache, model, numbers(7, 0));
  CallLog log;
  run_step(workspace, cache, model, numbers(7, 1), {}, &log);
  CHECK(deltas_of(log) == Rows{0, 2, 2});
  CHECK(log.segment_keys == Rows{2});
  CHECK(log.broken_rule.empty());
}

// Cuts, rows that end, counts.

TEST_CASE("Inside: a cut recomputes exactly the rest of the layers", "[inside]") {
  CAPTURE(seed);
  const Model model(3, seed);
  for (const Index at : {0, 1, 2}) {
    const auto policy = in_second_step(
        [](StepPlan& plan) {
          plan.reuse({0, 7});
          plan.recompute(2);
        },
        [at](const LayerFacts& facts, LayerChange& change) {
          CHECK(facts.cached == (facts.layer <= at));
          change.recompute_rest = facts.layer == at;
        });
    Cache cache(model.shape(), seven, policy);
    Workspace<float> workspace;
    run_step(workspace, cache, model, numbers(7, 0));
    CallLog log;
    run_step(workspace, cache, model, numbers(7, 1), {}, &log);
    Rows expected(3, 7);
    for (Index layer = 0; layer <= at; ++layer) expected[static_cast<std::size_t>(layer)] = 1;
    CHECK(deltas_of(log) == expected);
    // The next step is cut no more.
    CallLog next;
    auto pass = workspace.begin_step(cache);
    CHECK(cache.planner().plan().cached_layers == Range{0, 3});
  }
}

TEST_CASE("Inside: a row that joins in the middle is its embedding and its stored deltas",
          "[inside]") {
  CAPTURE(seed);
  const Model model(3, seed);
  for (const Index at : {0, 1}) {
    const auto policy = in_second_step(
        [](StepPlan& plan) {
          plan.reuse({0, 7});
        },
        [at](const LayerFacts& facts, LayerChange& change) {
          change.recompute_rest = facts.layer == at;
        });
    Cache cache(model.shape(), seven, policy);
    Workspace<float> workspace;
    run_step(workspace, cache, model, numbers(7, 0));
    Matrix<float> x = numbers(7, 1);
    const Matrix<float> given = x;
    Model rest = model;
    rest.layers.erase(rest.layers.begin(), rest.layers.begin() + at + 1);
    for (Index layer = 0; layer <= at; ++layer)
      for (Index row = 0; row < 7; ++row)
        tiny::add(x.row(row), copy_of(cache.deltas(layer), row).data(), 6);
    const PassRows<float> got = run_step(workspace, cache, model, given);
    CHECK(got.hidden.data == plain_forward(rest, seven, x).data);
  }
}

TEST_CASE("Inside: a fork owns the rows that a cut recomputed", "[inside]") {
  CAPTURE(seed);
  const Model model(2, seed);
  for (const bool cuts : {false, true}) {
    const auto policy = in_second_step(
        [](StepPlan& plan) {
          plan.reuse({0, 7});
          plan.recompute(3);
        },
        [cuts](const LayerFacts&, LayerChange& change) { change.recompute_rest = cuts; });
    Cache cache(model.shape(), seven, policy);
    Workspace<float> workspace;
    run_step(workspace, cache, model, numbers(7, 0));
    Cache fork = cache.fork();
    const Index shared = fork.own_bytes();
    run_step(workspace, fork, model, numbers(7, 1));
    CHECK(fork.own_bytes() > shared);
    CHECK((fork.own_bytes() == fork.bytes()) == cuts);
  }
}

TEST_CASE("Inside: all recomputed in layer 0 and a cut behind it are a plain forward", "[inside]") {
  CAPTURE(seed);
  const Model model(3, seed);
  const auto policy = in_second_step(
      [](StepPlan& plan) {
        plan.verify({0, 7}, 1);
        plan.cached_layers.begin = 1;
      },
      [](const LayerFacts& facts, LayerChange& change) {
        change.recompute_rest = facts.layer == 0;
      });
  Cache cache(model.shape(), seven, policy);
  Workspace<float> workspace;
  run_step(workspace, cache, model, numbers(7, 0));
  const Matrix<float> x = numbers(7, 1);
  CHECK(run_step(workspace, cache, model, x).hidden.data == plain_forward(model, seven, x).data);
}

TEST_CASE("Inside: ended rows keep their deeper features and have no logits", "[inside]") {
  CAPTURE(seed);
  const Model model(3, seed);
  const auto policy = in_second_step(
      [](StepPlan& plan) {
        plan.recompute({0, 7});
      },
      [](const LayerFacts& facts, LayerChange& change) {
        if (facts.layer == 0) change.ended = {1, 3};
        if (facts.layer == 1) change.ended = {3, 6};
      });
  Cache cache(model.shape(), seven, policy);
  Workspace<float> workspace;
  run_step(workspace, cache, model, numbers(7, 0));
  const Cache before = cache.clone();
  CallLog log;
  auto pass = workspace.begin_step(cache);
  run_pass(pass, model, {numbers(7, 1)}, &log);
  CHECK(deltas_of(log) == Rows{7, 5, 4});
  CHECK(log.segment_keys == Rows{7});
  const auto in_pass = pass.rows();
  CHECK(Rows(in_pass.begin(), in_pass.end()) == range(0, 7));
  const auto recomputed = pass.recomputed();
  CHECK(Rows(recomputed.begin(), recomputed.end()) == Rows{0, 2, 4, 5});
  for (Index row = 0; row < 7; ++row) {
    CAPTURE(row);
    const bool ended = row == 1 || row == 3 || row == 6;
    CHECK(pass.ended(row) == ended);
    CHECK(pass.find(row).has_value() == !ended);
    for (const Index layer : {0, 1, 2}) {
      const bool kept = ended && layer > (row == 6 ? 1 : 0);
      CHECK((copy_of(cache.keys(layer), row) == copy_of(before.keys(layer), row)) == kept);
      CHECK((copy_of(cache.values(layer), row) == copy_of(before.values(layer), row)) == kept);
      CHECK((copy_of(cache.deltas(layer), row) == copy_of(before.deltas(layer), row)) == kept);
    }
  }
  CHECK(cache.counts().recomputed == 21 + 7 + 5 + 4);
}

TEST_CASE("Inside: each layer selects as many verified rows as it was told, of those there are",
          "[inside]") {
  CAPTURE(seed);
  const Model model(3, seed);
  const auto count = [&](std::function<void(StepPlan&)> more,
                         std::function<void(const LayerFacts&, LayerChange&)> look = {}) {
    const auto policy = in_second_step(
        [more](StepPlan& plan) {
          plan.verify({0, 7}, 4);
          more(plan);
        },
        look);
    Cache cache(model.shape(), seven, policy);
    Workspace<float> workspace;
    run_step(workspace, cache, model, numbers(7, 0));
    CallLog log;
    run_step(workspace, cache, model, numbers(7, 1), {}, &log);
    return deltas_of(log);
  };
  CHECK(count([](StepPlan&) {}) == Rows{4, 4, 4});
  CHECK(count([](StepPlan& plan) {
          plan.verify_in_layer(0, 0);
          plan.verify_in_layer(2, 7);
        }) == Rows{0, 4, 7});
  const auto nothing = [](StepPlan&) {};
  CHECK(count(nothing, [](const LayerFacts& facts, LayerChange& change) {
          change.verify_count = facts.layer == 0 ? 1 : 6;
        }) == Rows{4, 1, 6});
  // All but two have ended: a count of four is both.
  CHECK(count(nothing, [](const LayerFacts& facts, LayerChange& change) {
          if (facts.layer == 0) change.ended = {0, 1, 2, 3, 4};
        }) == Rows{4, 2, 2});
}

TEST_CASE("Inside: nothing is told of the attention of rows that have ended", "[inside]") {
  CAPTURE(seed);
  const Model model(3, seed);
  std::vector<Rows> watched;
  std::vector<std::size_t> means;
  std::vector<bool> probed;
  const auto policy = in_second_step(
      [](StepPlan& plan) {
        plan.recompute({0, 7});
        plan.watch(Rows{0, 5, 6}, AttentionFact::HeadMeans);
        plan.probe(Rows{6});
      },
      [&](const LayerFacts& facts, LayerChange& change) {
        watched.emplace_back(facts.watched.begin(), facts.watched.end());
        means.push_back(facts.head_means.size());
        probed.push_back(!std::isnan(facts.probe_similarity));
        for (const MatrixView<const float>& one : facts.head_means)
          for (Index row = 0; row < one.rows; ++row)
            CHECK(std::accumulate(one.row(row), one.row(row) + one.cols, 0.0F) ==
                  Approx(1.0F).margin(1e-5));
        if (facts.layer == 0) change.ended = {6};
        if (facts.layer == 1) change.ended = {0, 5};
      });
  Cache cache(model.shape(), seven, policy);
  Workspace<float> workspace;
  run_step(workspace, cache, model, numbers(7, 0));
  run_step(workspace, cache, model, numbers(7, 1));
  CHECK(watched == std::vector<Rows>{{0, 5, 6}, {0, 5}, {}});
  CHECK(means == std::vector<std::size_t>{1, 2, 2});
  CHECK(probed == std::vector<bool>{true, false, false});
}

TEST_CASE("Inside: keys behind the block are not scored, nor do they count against a probe",
          "[inside]") {
  CAPTURE(seed);
  const Model model(2, seed);
  // Blocks [0, 2), [2, 4), [4, 6); the second is decoded, the third does not exist yet.
  std::vector<float> scores;
  double similarity = 0.0;
  const ScriptedWatcher policy = {
      .held = {.name = "watcher", .stored_queries = {0, 6}, .watches_attention = true},
      .script =
          [](const StepContext& context, Memory&, StepPlan& plan) {
            plan.recompute({0, 4});
            plan.watch(Rows{2, 3}, AttentionFact::QueryScores);
            if (!context.stale) plan.probe(Rows{3});
          },
      .look =
          [&](const LayerFacts& facts, Memory&, LayerChange&) {
            scores.assign(facts.query_scores.begin(), facts.query_scores.end());
            similarity = facts.probe_similarity;
          }};
  NanResource memory;
  Cache cache(model.shape(), {.prompt = 2, .response = 4, .attention_block = 2}, policy, &memory);
  Workspace<float> workspace;
  const StepInput second{.block = {2, 4}};
  // The same twice: the attention of the probe is what it was.
  for (int i = 0; i < 2; ++i) run_step(workspace, cache, model, numbers(6, 0), second);
  REQUIRE(scores.size() == 6);
  for (const std::size_t row : {0, 1, 2, 3}) CHECK(std::isfinite(scores[row]));
  for (const std::size_t row : {4, 5}) CHECK(scores[row] == -INFINITY);
  CHECK(similarity == Approx(1.0));
}

// What of it is refused.

TEST_CASE("Inside: plans that cannot be carried out are refused by policy and row",
          "[inside][refusal]") {
  const std::string of = "StepPlan of policy watcher: ";
  CHECK(plan_refused([](StepPlan& plan) {
          plan.recompute({0, 7});
          plan.hide({2, 4});
        }) == of + "row 2 is in the pass, but hidden");
  CHECK(plan_refused([](StepPlan& plan) {
          plan.hide({2, 8});
        }) == of + "hide() range must lie in [0, 7), got [2, 8)");
  CHECK(plan_refused([](StepPlan& plan) { plan.hidden.assign(6, 0); }) ==
        of + "hidden must be empty or have 7 entries, got 6");
  CHECK(plan_refused([](StepPlan& plan) { plan.limit_keys(3, flags(7, {})); }) ==
        of + "limit_keys() layer must be in [0, 3), got 3");
  CHECK(plan_refused([](StepPlan& plan) { plan.limit_keys(0, flags(6, {})); }) ==
        of + "limit_keys() wants one flag a row = 7, got 6");
  CHECK(plan_refused([](StepPlan& plan) { plan.layer_keys.assign(20, 1); }) ==
        of + "layer_keys must be empty or have 21 entries, got 20");
  CHECK(plan_refused([](StepPlan& plan) { plan.layer_counts.assign(2, 0); }) ==
        of + "layer_counts must be empty or have 3 entries, got 2");
  CHECK(plan_refused([](StepPlan& plan) { plan.row_ends.assign(7, 3); }) ==
        of + "row_ends is written between layers alone");
  CHECK(plan_refused([](StepPlan& plan) { plan.verify_in_layer(-1, 0); }) ==
        of + "verify_in_layer() layer must be in [0, 3), got -1");
  CHECK(plan_refused([](StepPlan& plan) { plan.verify_in_layer(0, -1); }) ==
        of + "verify_in_layer() count must be at least 0, got -1");
  CHECK(plan_refused([](StepPlan& plan) {
          plan.verify({1, 3}, 2);
          plan.verify_in_layer(1, 3);
        }) == of + "verify_in_layer() count must be in [0, verified rows = 2], got 3");
  CHECK(plan_refused([](StepPlan& plan) { plan.watch(Rows{1}, AttentionFact::ColumnSums); }) ==
        of + "watched row 1 is not recomputed");
  CHECK(plan_refused([](StepPlan& plan) {
          plan.recompute({0, 7});
          plan.watch(Rows{1, 1}, AttentionFact::ColumnSums);
        }) == of + "watched rows must be ascending in [0, 7), got 1 after 1");
  CHECK(plan_refused([](StepPlan& plan) {
          plan.recompute({0, 7});
          plan.watch(Rows{7}, AttentionFact::ColumnSums);
        }) == of + "watched rows must be ascending in [0, 7), got 7 after -1");
  CHECK(plan_refused([](StepPlan& plan) {
          plan.watch({}, AttentionFact::HeadMeans);
          plan.watch({}, AttentionFact::HeadMeans);
        }) == of + "watch() may be called once a plan");
  CHECK(plan_refused([](StepPlan& plan) {
          plan.recompute(1);
          plan.probe(Rows{1, 2});
        }) == of + "probe row 2 is not recomputed");
}

TEST_CASE("Inside: what its traits do not say a policy may not ask for", "[inside][refusal]") {
  const auto refused = [](const PolicyTraits& traits, std::function<void(StepPlan&)> then) {
    ScriptedWatcher policy = in_second_step(std::move(then));
    policy.held = traits;
    return second_step_refused(policy);
  };
  const std::string of = "StepPlan of policy watcher: ";
  CHECK(refused({.name = "watcher"}, [](StepPlan& plan) {
          plan.hide({0, 1});
        }) == of + "rows are hidden, but its traits do not say so (hides_rows)");
  CHECK(refused({.name = "watcher"}, [](StepPlan& plan) { plan.limit_keys(0, flags(7, {0})); }) ==
        of + "rows are hidden, but its traits do not say so (hides_rows)");
  const auto watches = [](StepPlan& plan) {
    plan.recompute({0, 7});
    plan.watch(Rows{0}, AttentionFact::ColumnSums);
  };
  CHECK(refused({.name = "watcher"}, watches) ==
        of + "attention is watched, but its traits do not say so (watches_attention)");
  CHECK(refused({.name = "watcher", .watches_attention = true}, watches) == "nothing was thrown");
  const auto probes = [](StepPlan& plan) {
    plan.recompute({0, 7});
    plan.probe(Rows{2, 4});
  };
  CHECK(refused({.name = "watcher", .stored_queries = {0, 7}}, probes) ==
        of + "attention is watched, but its traits do not say so (watches_attention)");
  CHECK(refused({.name = "watcher", .stored_queries = {2, 4}, .watches_attention = true}, probes) ==
        of + "row 4 is probed, but lies outside stored_queries");
  CHECK(refused({.name = "watcher", .stored_queries = {2, 5}, .watches_attention = true}, probes) ==
        "nothing was thrown");
  CHECK(refused_argument([&] {
          StepPlanner planner(ScriptedWatcher{.held = {.name = "w", .stored_queries = {0, 8}}},
                              seven, 1);
        }) == "PolicyTraits of w: stored_queries must lie in [0, 7), got [0, 8)");
}

TEST_CASE("Inside: a probe whose keys or features are new is refused", "[inside][refusal]") {
  // Row 6 is hidden in the first step.
  const auto refused = [](const Rows& probes) {
    ScriptedWatcher policy = in_second_step([](StepPlan&) {});
    policy.script = [probes](const StepContext& context, Memory&, StepPlan& plan) {
      if (context.step == 0) plan.hide({6, 7});
      plan.recompute({0, context.step == 0 ? 6 : 7});
      if (context.step > 0) plan.probe(probes);
    };
    return second_step_refused(policy);
  };
  CHECK(refused({6}) == "StepPlan of policy watcher: row 6 is probed, but has no stored features");
  CHECK(refused({1}) ==
        "StepPlan of policy watcher: row 6 is seen by a row that is probed, but had no key in the "
        "last step");
  CHECK(refused({}) == "nothing was thrown");
}

TEST_CASE("Inside: changes that cannot be are refused, and the step is dropped by its pass",
          "[inside][refusal]") {
  const std::string of = "LayerChange of policy watcher: ";
  const auto in_layer_1 = [](auto what) {
    return [what](const LayerFacts& facts, LayerChange& change) {
      if (facts.layer == 1) what(change);
    };
  };
  CHECK(change_refused(in_layer_1([](LayerChange& change) {
          change.ended = {1};
          change.recompute_rest = true;
        })) == of + "recompute_rest does not go with rows that ended");
  CHECK(change_refused([](const LayerFacts& facts, LayerChange& change) {
          if (facts.layer == 0) change.ended = {1};
          change.recompute_rest = facts.layer == 1;
        }) == of + "recompute_rest does not go with rows that ended");
  CHECK(change_refused(in_layer_1([](LayerChange& change) { change.ended = {6}; })) ==
        of + "row 6 ends, but is not in the pass");
  for (const Index row : {Index{-1}, Index{7}})
    CHECK(change_refused(in_layer_1([row](LayerChange& change) { change.ended = {row}; })) ==
          of + "row " + std::to_string(row) + " ends, but is not in the pass");
  CHECK(change_refused(in_layer_1([](LayerChange& change) { change.verify_count = 1; })) ==
        of + "verify_count must be in [0, verified rows = 0], got 1");
  CHECK(change_refused(in_layer_1([](LayerChange& change) { change.verify_count = -1; })) ==
        of + "verify_count must be in [0, verified rows = 0], got -1");
  // Rows that were never computed, or whose features may not be read.
  ScriptedWatcher first = in_second_step([](StepPlan&) {});
  first.look = [](const LayerFacts&, Memory&, LayerChange& change) { change.ended = {2}; };
  StepPlanner planner(first, seven, 3);
  planner.begin_step({});
  CHECK(refused_call([&] { planner.layer_done({.layer = 0}); }) ==
        of + "row 2 ends, but deeper layers have stored nothing of it");
  CHECK(refused_call([&] { StepPlanner(first, seven, 3).layer_done({}); }) ==
        "StepPlanner: layer_done() without an open step");
}

TEST_CASE(
    "Inside: a policy that throws between layers leaves the cache stale and its memory as "
    "it was",
    "[inside][refusal]") {
  CAPTURE(seed);
  const Model model(3, seed);
  std::vector<Index> remembered;
  bool throws = false;
  const ScriptedWatcher policy = {
      .script =
          [&](const StepContext& context, Memory& memory, StepPlan& plan) {
            remembered.push_back(memory.number);
            memory.number += 100;
            plan.recompute(context.live());
          },
      .look =
          [&](const LayerFacts& facts, Memory& memory, LayerChange&) {
            ++memory.number;
            if (throws && facts.layer == 1) throw std::runtime_error("looked away");
          }};
  Cache cache(model.shape(), seven, policy);
  Workspace<float> workspace;
  const auto step = [&] { run_step(workspace, cache, model, numbers(7, 0)); };
  step();
  throws = true;
  CHECK_THROWS_AS(step(), std::runtime_error);
  CHECK(cache.stale());
  CHECK(cache.step() == 1);
  throws = false;
  { auto dropped = workspace.begin_step(cache); }
  step();
  step();
  CHECK_FALSE(cache.stale());
  // In each first, thrown, dropped and done step: what the last that was done left.
  CHECK(remembered == std::vector<Index>{0, 103, 103, 103, 206});
  cache.reset(seven);
  step();
  CHECK(remembered.back() == 0);
}

TEST_CASE("Inside: shapes that a watching or verifying policy cannot use are refused by field",
          "[inside][refusal]") {
  const auto refused = [](auto&& change, const PolicyTraits& traits = {.name = "none"}) {
    ModelShape shape{.layers = 1, .width = 8, .query_width = 24, .kv_width = 12};
    change(shape);
    return refused_argument([&] { Cache cache(shape, seven, ScriptedPolicy{.held = traits}); });
  };
  const auto nothing = [](ModelShape&) {};
  CHECK(refused(nothing) == "nothing was thrown");
  CHECK(refused(nothing, {.name = "w", .watches_attention = true}) ==
        "ModelShape: heads must be at least 1 for policy w, which watches attention, got 0");
  CHECK(refused(nothing, {.name = "v", .verifies_features = true}) ==
        "ModelShape: verify_width must be at least 1 for policy v, which verifies features of "
        "layers, got 0");
  CHECK(refused([](ModelShape& shape) { shape.heads = -1; }) ==
        "ModelShape: heads must be in [0, 65536], got -1");
  CHECK(refused([](ModelShape& shape) { shape.heads = 5; }) ==
        "ModelShape: heads must divide query_width = 24, got 5");
  CHECK(refused([](ModelShape& shape) { shape.heads = 3; }) ==
        "ModelShape: kv_width must be a multiple of the head width = 8, got 12");
  CHECK(refused([](ModelShape& shape) {
          shape.heads = 4;
          shape.kv_width = 18;
        }) == "ModelShape: heads must be a multiple of the key heads = 3, got 4");
  CHECK(refused([](ModelShape& shape) { shape.heads = 6; }) == "nothing was thrown");
  CHECK(refused([](ModelShape& shape) { shape.verify_width = -1; }) ==
        "ModelShape: verify_width must be in [0, 16777216], got -1");
  CHECK(refused([](ModelShape& shape) { shape.attention_scale = -0.5; }) ==
        "ModelShape: attention_scale must be in [0, 10^6], got -0.5");
}

TEST_CASE(
    "Inside: layers without the feature that a policy verifies by are refused, and it is "
    "named",
    "[inside][refusal]") {
  CAPTURE(seed);
  const Model model(1, seed);
  const ScriptedPolicy verifies = {
      .held = {.name = "by-feature", .stored_deltas = {0, 7}, .verifies_features = true}};
  Cache plain(model.shape(), seven, NoCache{}), cache(model.shape(), seven, verifies);
  Workspace<float> workspace;
  const std::vector<Cache*> both{&plain, &cache};
  auto pass = workspace.begin_step(both, std::vector<StepInput>(2));
  Matrix<float> x = numbers(14, 0);
  const auto layer = model.layer(0);
  CHECK(refused_call([&] {
          pass.layer(
              make_layer(
                  [&](auto in, auto v) { layer.value(in, v); },
                  [&](auto in, auto at, auto q, auto k) { layer.query_key(in, at, q, k); },
                  [&](auto in, auto q, auto segments, auto u) { layer.delta(in, q, segments, u); }),
              x.view());
        }) ==
        "Workspace: policy by-feature verifies features, which layer 0 does not have: write "
        "verify_feature()");
  CHECK(cache.stale());
}

// Side by side.

TEST_CASE("Inside: sequences that hide, watch, cut and do nothing of it are alone in a batch",
          "[inside]") {
  CAPTURE(seed);
  const Model model(3, seed);
  std::vector<float> sums;
  const auto make = [&](std::vector<Cache>& caches) {
    Hider hider;
    *hider.hidden = {1, 5};
    caches.emplace_back(model.shape(), seven, hider.policy());
    caches.emplace_back(model.shape(), seven,
                        in_second_step(
                            [](StepPlan& plan) {
                              plan.reuse({0, 7});
                              plan.recompute({2, 5});
                              plan.watch(Rows{2, 4}, AttentionFact::ColumnSums);
                              plan.probe(Rows{3});
                            },
                            [&](const LayerFacts& facts, LayerChange& change) {
                              sums.insert(sums.end(), facts.column_sums.begin(),
                                          facts.column_sums.end());
                              sums.push_back(static_cast<float>(facts.layer));
                              if (facts.layer == 1) change.recompute_rest = true;
                            }));
    caches.emplace_back(model.shape(), SequenceShape{.response = 5}, NoCache{});
    caches.emplace_back(model.shape(), seven,
                        in_second_step(
                            [](StepPlan& plan) {
                              plan.recompute({0, 7});
                            },
                            [](const LayerFacts& facts, LayerChange& change) {
                              if (facts.layer == 0) change.ended = {0, 6};
                            }));
  };
  std::vector<Cache> together, alone;
  make(together);
  make(alone);
  Workspace<float> workspace;
  for (const std::uint64_t step : {0, 1, 2}) {
    std::vector<Matrix<float>> x;
    std::vector<Cache*> batch;
    for (std::size_t i = 0; i < together.size(); ++i) {
      x.push_back(numbers(together[i].shape().rows(), 10 * i + step));
      batch.push_back(&together[i]);
    }
    sums.clear();
    auto pass = workspace.begin_step(batch, std::vector<StepInput>(4));
    const auto got = run_pass(pass, model, x);
    const std::vector<float> told = std::exchange(sums, {});
    for (std::size_t i = 0; i < alone.size(); ++i) {
      CAPTURE(step, i);
      CHECK(run_step(workspace, alone[i], model, x[i]) == got[i]);
      CHECK(alone[i].counts() == together[i].counts());
    }
    CHECK(sums == told);
    CHECK(sums.size() == (step == 0 ? 0 : 3 * 8));
  }
}

TEST_CASE("Inside: a reshape that has deltas to store which were not stored before is stale",
          "[inside]") {
  // Blocks stay where they are: kept rows would keep their features.
  struct Policy {
    [[nodiscard]] PolicyTraits traits(const SequenceShape& shape) const {
      return {.name = "growing", .stored_deltas = {shape.prompt, shape.rows()}};
    }
    void plan(const StepContext& context, StepPlan& plan) const { plan.recompute(context.live()); }
  };
  const auto stale_after = [](Index prompt, Index response) {
    StepPlanner planner(Policy{}, {.prompt = 4, .response = 4, .attention_block = 2}, 1);
    planner.begin_step({});
    planner.commit_step();
    planner.reshape({.prompt = prompt, .response = response, .attention_block = 2}, 6);
    return planner.stale();
  };
  CHECK_FALSE(stale_after(4, 6));
  CHECK_FALSE(stale_after(6, 2));
  CHECK(stale_after(2, 6));
}

TEST_CASE("Inside: a stale step computes the live rows that are not hidden, whatever is planned",
          "[inside]") {
  const ScriptedWatcher policy = {
      .held = {.name = "eager", .hides_rows = true},
      .script = [](const StepContext& context, Memory&, StepPlan& plan) {
        CHECK(context.stale);
        plan.hide({1, 2});
        plan.recompute({0, 6});
        plan.verify({2, 3}, 1);
        plan.cached_layers = {1, 1};
      }};
  StepPlanner planner(policy, {.prompt = 2, .response = 4, .attention_block = 2}, 2);
  const StepPlan& plan = planner.begin_step({.block = {2, 4}});
  constexpr auto recompute = RowAction::Recompute, absent = RowAction::Absent;
  CHECK(plan.rows ==
        std::vector<RowAction>{recompute, absent, recompute, recompute, absent, absent});
  CHECK(plan.verify_count == 0);
  CHECK(plan.cached_layers == Range{0, 2});
}
