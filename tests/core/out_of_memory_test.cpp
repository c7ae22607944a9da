// SPDX-License-Identifier: Apache-2.0
// Every allocation of a call fails in turn; what is left must be usable and right.
#include <catch2/catch.hpp>
#include <memory>
#include <new>
#include <optional>
#include <vector>

#include "dllm_cache/policies/dllm_cache.hpp"
#include "dllm_cache/policies/prefix_cache.hpp"
#include "tests/support/allocation_counter.hpp"
#include "tests/support/cached_run.hpp"
#include "tests/support/fake_model.hpp"
#include "tests/support/loop_runs.hpp"
#include "tests/support/plain_features.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;

namespace {

// Makes a subject, has allocation 0, 1, 2, ... of `attempt(subject)` fail until none does, and
// calls `inspect(subject, failed)` after each. Returns how often it threw.
template <class Make, class Attempt, class Inspect>
Index fail_in_turn(const Make& make, const Attempt& attempt, const Inspect& inspect) {
  Index failures = 0;
  for (long fails = 0;; ++fails) {
    INFO("allocation " << fails << " fails");
    auto subject = make();
    bool failed = false;
    const long made = allocations(
        [&] {
          try {
            attempt(*subject);
          } catch (const std::bad_alloc&) {
            failed = true;
          }
        },
        fails);
    inspect(*subject, failed);
    if (failed) ++failures;
    if (made <= fails) return failures;  // there was no such allocation
  }
}

using Model = TinyModel<float>;
using Plain = PlainFeatures<float, float>;

const Model& model() {
  static const Model one(2, 11);
  return one;
}
constexpr SequenceShape shape{.prompt = 4, .response = 7};
const AnyPolicy policy = DllmCachePolicy{5, 4, 0.5};

// A cache beside plain features, some steps into a sequence, and a second one for batches.
struct Pair {
  Workspace<float> workspace;
  FeatureCache<float> cache{model().shape(), shape, policy},
      other{model().shape(), shape, PrefixCachePolicy{}};
  Plain plain{model(), shape, policy}, other_plain{model(), shape, PrefixCachePolicy{}};
  RandomNumbers random{3};
  std::vector<Index> tokens = start_tokens(model(), shape, random);
  std::vector<std::byte> bytes;

  static std::unique_ptr<Pair> after(Index steps) {
    auto pair = std::make_unique<Pair>();
    for (Index step = 0; step < steps; ++step) pair->step_right();
    return pair;
  }

  static constexpr StepInput input(Index step) { return {.block = {4, 8}, .block_step = step}; }
  std::vector<PassRows<float>> step() {
    const std::vector<FeatureCache<float>*> caches{&cache, &other};
    const std::vector<StepInput> inputs{input(cache.step()), input(other.step())};
    auto pass = workspace.begin_step(caches, inputs);
    const Matrix<float> x = model().embed(tokens);
    return run_pass(pass, model(), {x, x});
  }
  // After a failure plain features go the way of the cache: as before, or a plain forward next.
  void follow() {
    follow(cache, plain);
    follow(other, other_plain);
  }
  void follow(const FeatureCache<float>& one, Plain& twin) const {
    if (one.step() > twin.steps()) {  // the failure came after the last layer
      Matrix<float> x = model().embed(tokens);
      twin.step(twin.plan(input(twin.steps())).value(), x);
    }
    if (one.stale()) twin.forget();
  }
  void step_right() {
    commit_tokens(tokens, shape, random);
    check(step());
  }
  void check(const std::vector<PassRows<float>>& in_pass) {
    check(in_pass[0], plain);
    check(in_pass[1], other_plain);
  }
  void check(const PassRows<float>& in_pass, Plain& twin) const {
    const auto plan = twin.plan(input(twin.steps()));
    REQUIRE(plan);
    Matrix<float> x = model().embed(tokens);
    twin.step(*plan, x);
    REQUIRE(in_pass.rows == Plain::rows_in_pass(*plan));
    REQUIRE(first_difference(in_pass, x) == std::nullopt);
  }
};

void goes_on(Pair& pair) {
  pair.follow();
  for (int step = 0; step < 3; ++step) pair.step_right();
}

}  // namespace

TEST_CASE("Out of memory: a cache that cannot be made leaves nothing behind", "[memory]") {
  NanResource memory;
  const Index failures = fail_in_turn(
      [] { return std::make_unique<int>(); },
      [&](int&) { FeatureCache<float> cache(model().shape(), shape, policy, &memory); },
      [&](int&, bool) { REQUIRE(memory.bytes_held() == 0); });
  CHECK(failures >= 4);
}

TEST_CASE("Out of memory: a step that fails anywhere is followed by right steps", "[memory]") {
  for (const Index before : {0, 1, 5}) {  // a first step, a verified one, a refresh
    CAPTURE(before);
    // The tokens of the failing step are those of the next one: a caller that tries again.
    const Index failures = fail_in_turn([&] { return Pair::after(before); },
                                        [](Pair& pair) { static_cast<void>(pair.step()); },
                                        [](Pair& pair, bool failed) {
                                          if (failed) {
                                            pair.follow();
                                            pair.check(pair.step());
                                            goes_on(pair);
                                          }
                                        });
    CHECK(failures >= 20);
  }
}

TEST_CASE("Out of memory: a reset that fails changes nothing", "[memory]") {
  const SequenceShape larger{.prompt = 30, .response = 40};
  const Index failures =
      fail_in_turn([] { return Pair::after(3); }, [&](Pair& pair) { pair.cache.reset(larger); },
                   [](Pair& pair, bool failed) {
                     if (!failed) return;
                     REQUIRE_FALSE(pair.cache.stale());
                     goes_on(pair);
                   });
  CHECK(failures >= 4);
}

TEST_CASE("Out of memory: a clone that fails leaves the original as it was", "[memory]") {
  const Index failures = fail_in_turn([] { return Pair::after(3); },
                                      [](Pair& pair) { pair.cache = pair.cache.clone(); },
                                      [](Pair& pair, bool) {
                                        REQUIRE_FALSE(pair.cache.stale());
                                        goes_on(pair);
                                      });
  CHECK(failures >= 4);
}

TEST_CASE("Out of memory: saving that fails changes nothing", "[memory]") {
  const Index failures =
      fail_in_turn([] { return Pair::after(3); }, [](Pair& pair) { pair.cache.save(pair.bytes); },
                   [](Pair& pair, bool) {
                     REQUIRE_FALSE(pair.cache.stale());
                     goes_on(pair);
                   });
  CHECK(failures >= 4);
}

TEST_CASE("Out of memory: a cache whose restoring fails is as it was or stale", "[memory]") {
  const Index failures = fail_in_turn(
      [] {
        auto pair = Pair::after(3);
        pair->cache.save(pair->bytes);
        return pair;
      },
      [](Pair& pair) { pair.cache.restore(pair.bytes); }, [](Pair& pair, bool) { goes_on(pair); });
  CHECK(failures >= 4);
}

namespace {

using Fake = FakeModel<float>;
using Loop = DenoisingLoop<Fake>;

struct Running {
  Fake fake{21};
  Loop loop{fake};
  std::vector<std::byte> bytes;

  static std::unique_ptr<Running> after(const std::vector<Job>& jobs, Index steps) {
    auto running = std::make_unique<Running>();
    for (const Job& job : jobs) running->loop.add(job.prompt, job.options, job.policy);
    for (Index step = 0; step < steps; ++step) running->loop.step();
    return running;
  }
  std::vector<Tokens> finish() {
    loop.run();
    std::vector<Tokens> all;
    for (Index id = 0; id < loop.sequences(); ++id) {
      const auto tokens = loop.sequence(id).tokens();
      all.emplace_back(tokens.begin(), tokens.end());
    }
    return all;
  }
};

const std::vector<Job> jobs{
    {{1, 2, 3}, {.response = 6, .block_length = 3}, DllmCachePolicy{4, 3, 0.5}},
    {{10, 1},
     {.response = 4, .guidance_scale = 1.5, .guidance_interval = 2},
     DllmCachePolicy{3, 2, 0.25}},
    {{7}, {.response = 2}, NoCache{}}};

}  // namespace

TEST_CASE("Out of memory: a sequence that cannot be added, cloned or restored is not there",
          "[memory]") {
  const std::vector<Tokens> whole = Running::after(jobs, 0)->finish();
  const std::vector<std::byte> bytes = [] {
    std::vector<std::byte> saved;
    Running::after(jobs, 1)->loop.save(1, saved);
    return saved;
  }();
  const auto test = [&](const auto& attempt, Index before) {
    const Index failures = fail_in_turn([&] { return Running::after(jobs, before); }, attempt,
                                        [&](Running& running, bool failed) {
                                          REQUIRE(running.loop.sequences() == (failed ? 3 : 4));
                                          std::vector<Tokens> all = running.finish();
                                          all.resize(3);
                                          REQUIRE(all == whole);
                                        });
    CHECK(failures >= 10);
  };
  test([](Running& running) { running.loop.add(jobs[1].prompt, jobs[1].options, jobs[1].policy); },
       0);
  test([](Running& running) { running.loop.clone(1, 0); }, 1);
  test([&](Running& running) { running.loop.restore(bytes, jobs[1].policy); }, 1);
}

TEST_CASE("Out of memory: a loop's step that fails anywhere is tried again as a whole",
          "[memory]") {
  for (const Index before : {0, 1, 3}) {
    CAPTURE(before);
    const std::vector<Tokens> whole = Running::after(jobs, before)->finish();
    // What comes out where the caches broke in the middle: the model failed instead of the memory.
    const std::vector<Tokens> broken = [&] {
      auto running = Running::after(jobs, before);
      running->fake.log.throw_at = running->fake.log.calls;
      CHECK_THROWS_AS(running->loop.step(), CallbackError);
      return running->finish();
    }();
    const Index failures = fail_in_turn([&] { return Running::after(jobs, before); },
                                        [](Running& running) { running.loop.step(); },
                                        [&](Running& running, bool failed) {
                                          const Index step = running.loop.sequence(0).step();
                                          REQUIRE(step == before + (failed ? 0 : 1));
                                          const bool stale = running.loop.cache(0).stale();
                                          REQUIRE(running.finish() == (stale ? broken : whole));
                                        });
    CHECK(failures >= 20);
  }
}
