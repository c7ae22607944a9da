// SPDX-License-Identifier: Apache-2.0
// The denoising loop over a model that carries out whole steps from lists.
#include "dllm_cache/decoding/step_model.hpp"

#include <catch2/catch.hpp>
#include <sstream>

#include "tests/support/fake_model.hpp"
#include "tests/support/loop_runs.hpp"
#include "tests/support/step_runner.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;

namespace {

using Layered = FakeModel<>;
using Whole = StepRunner<Layered>;

Record run_layered(std::uint64_t seed, Index shift, const Job& job) {
  return run_alone(Layered(seed, 3, shift), job);
}

Job verifying_job() {
  return {{1, 2, 3, 4, 5},
          {.response = 12, .block_length = 4},
          BlockVerifyPolicy{.prompt_interval = 7,
                            .response_interval = 4,
                            .ratio = 0.5,
                            .similarity_threshold = 0.995}};
}

/// A step model whose features cannot be copied.
struct Uncopyable : Whole {
  struct Features : Whole::Features {
    explicit Features(Whole::Features made) : Whole::Features(std::move(made)) {}
    Features(Features&&) = default;
    Features& operator=(Features&&) = default;
  };
  using Whole::Whole;
  [[nodiscard]] Features make_features(const SequenceShape& shape,
                                       const PolicyTraits& traits) const {
    return Features(Whole::make_features(shape, traits));
  }
  void forward(std::span<SequenceStep<Features>> batch, MatrixView<float> logits) {
    std::vector<SequenceStep<Whole::Features>> steps;
    for (const auto& step : batch)
      steps.push_back({step.features, step.lists, step.tokens, step.wanted, step.recomputed});
    Whole::forward(steps, logits);
    for (std::size_t i = 0; i < batch.size(); ++i) batch[i].recomputed = steps[i].recomputed;
  }
};

}  // namespace

static_assert(StepModel<Whole> && StepModel<Uncopyable> && !StepModel<Layered>);

TEST_CASE("Whole steps end in the tokens, logits and counts of layer by layer", "[steps]") {
  for (const Index shift : {0, 1}) {
    const std::vector<Job> jobs = motley(shift);
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      DYNAMIC_SECTION("shift " << shift << ", job " << i) {
        Whole model(Layered(41, 3, shift));
        DenoisingLoop<Whole> loop(model);
        Recorder recorder(loop);
        loop.add(jobs[i].prompt, jobs[i].options, jobs[i].policy);
        loop.run([&](const StepReport& report) { recorder(report); });
        CHECK((recorder.of(0) == run_layered(41, shift, jobs[i])));
      }
    }
  }
}

TEST_CASE("Whole steps of a ragged batch equal single runs", "[steps]") {
  for (const Index shift : {0, 1}) {
    const std::vector<Job> jobs = motley(shift);
    Whole model(Layered(43, 2, shift));
    DenoisingLoop<Whole> loop(model);
    Recorder recorder(loop);
    for (const Job& job : jobs) loop.add(job.prompt, job.options, job.policy);
    loop.run([&](const StepReport& report) { recorder(report); });
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      CAPTURE(shift, i);
      CHECK((recorder.of(static_cast<Index>(i)) == run_alone(Layered(43, 2, shift), jobs[i])));
    }
  }
}

TEST_CASE("Whole steps count the rows that a threshold left alone", "[steps]") {
  const Job job = verifying_job();
  const Record layered = run_layered(3, 0, job);
  Whole model(Layered(3, 3, 0));
  DenoisingLoop<Whole> loop(model);
  loop.add(job.prompt, job.options, job.policy);
  loop.run();
  CHECK(loop.counts(0) == layered.counts);
  Job all = job;
  all.policy = BlockVerifyPolicy{.prompt_interval = 7,
                                 .response_interval = 4,
                                 .ratio = 0.5,
                                 .similarity_threshold = no_similarity_threshold};
  CHECK(run_layered(3, 0, all).counts.recomputed > layered.counts.recomputed);  // it left some
}

TEST_CASE("Whole steps: a model that throws commits nothing and the next step is a plain forward",
          "[steps]") {
  const Job job = verifying_job();
  Whole model(Layered(5, 3, 0));
  DenoisingLoop<Whole> loop(model);
  loop.add(job.prompt, job.options, job.policy);
  loop.step();
  loop.step();
  const Tokens before(loop.sequence(0).tokens().begin(), loop.sequence(0).tokens().end());
  const DecodingCounts counts = loop.counts(0);
  model.layers.log.throw_at = model.layers.log.calls + 4;
  CHECK_THROWS_AS(loop.step(), CallbackError);
  CHECK(Tokens(loop.sequence(0).tokens().begin(), loop.sequence(0).tokens().end()) == before);
  CHECK(loop.counts(0) == counts);
  CHECK(loop.cache(0).stale());
  loop.step();
  CHECK(loop.counts(0).rows - counts.rows == loop.cache(0).shape().rows());
  CHECK_FALSE(loop.cache(0).stale());
  loop.run();
  CHECK(loop.finished());
}

TEST_CASE("Whole steps: a policy that is refused leaves no step open", "[steps]") {
  Whole model(Layered(5, 2, 0));
  DenoisingLoop<Whole> loop(model);
  loop.add(Tokens{1, 2}, {.response = 4}, NoCache{});
  struct Broken {
    [[nodiscard]] PolicyTraits traits(const SequenceShape& shape) const {
      return {.name = "broken", .stored_deltas = {0, shape.rows()}};
    }
    void plan(const StepContext&, StepPlan& plan) const { plan.verify_count = 9; }
  };
  loop.add(Tokens{1, 2}, {.response = 4}, Broken{});
  loop.step();  // the first is a plain forward for both
  CHECK_THROWS_AS(loop.step(), std::logic_error);
  loop.stop(1);
  loop.run();
  CHECK(loop.sequence(0).finished());
  CHECK(loop.counts(0).recomputed == 4 * 6 * 2);
}

TEST_CASE("Whole steps: a saved sequence goes on with a plain forward", "[steps]") {
  const Job job = verifying_job();
  Whole model(Layered(7, 2, 0));
  DenoisingLoop<Whole> loop(model);
  loop.add(job.prompt, job.options, job.policy);
  loop.step();
  loop.step();
  std::stringstream stream;
  loop.save(0, SnapshotWriter(stream));
  DenoisingLoop<Whole> other(model);
  CHECK(other.restore(SnapshotReader(stream), job.policy) == 0);
  const auto saved = loop.sequence(0).tokens(), restored = other.sequence(0).tokens();
  CHECK(Tokens(saved.begin(), saved.end()) == Tokens(restored.begin(), restored.end()));
  CHECK(other.counts(0) == loop.counts(0));
  CHECK(other.cache(0).step() == 2);
  CHECK(other.cache(0).stale());
  // As one that was marked stale between two steps.
  other.run();
  CHECK(other.finished());
}

TEST_CASE("Whole steps: copies go on as the original would", "[steps]") {
  const Job job = verifying_job();
  Whole model(Layered(9, 2, 0));
  DenoisingLoop<Whole> loop(model);
  loop.add(job.prompt, job.options, job.policy);
  loop.step();
  const Index copy = loop.clone(0, 0), forked = loop.fork(0, 0);
  loop.run();
  const Record whole = run_alone(Layered(9, 2, 0), job);
  for (const Index id : {Index{0}, copy, forked}) {
    const auto tokens = loop.sequence(id).tokens();
    CHECK(Tokens(tokens.begin(), tokens.end()) == whole.tokens.back());
    CHECK(loop.counts(id) == whole.counts);
  }
}

TEST_CASE("Whole steps: features that cannot be copied are refused clearly", "[steps]") {
  Uncopyable model(Layered(9, 2, 0));
  DenoisingLoop<Uncopyable> loop(model);
  loop.add(Tokens{1, 2}, {.response = 4}, NoCache{});
  CHECK_THROWS_WITH(loop.clone(0, 1), Catch::Contains("features that cannot be copied"));
  loop.run();
  CHECK(loop.finished());
}

TEST_CASE("Whole steps: restart, release and extend keep their promises", "[steps]") {
  Whole model(Layered(11, 2, 0));
  DenoisingLoop<Whole> loop(model);
  const Job first{{1, 2, 3}, {.response = 6}, DllmCachePolicy{4, 3, 0.5}};
  const Job second{{4, 5, 6, 7, 8}, {.response = 9, .block_length = 3}, first.policy};
  loop.add(first.prompt, first.options, first.policy);
  loop.run();
  CHECK(loop.cache_bytes(0) > 0);
  loop.restart(0, second.prompt, second.options);
  loop.run();
  const auto tokens = loop.sequence(0).tokens();
  const Record alone = run_alone(Layered(11, 2, 0), second);
  CHECK(Tokens(tokens.begin(), tokens.end()) == alone.tokens.back());
  CHECK(loop.counts(0) == alone.counts);
  loop.extend(0, 3);
  loop.run();
  CHECK(loop.sequence(0).tokens().size() == 17);
  loop.release(0);
  CHECK(loop.cache_bytes(0) == 0);
}

TEST_CASE("Lists name the rows of each kind of layer, verified ones first", "[steps]") {
  struct Asks {
    [[nodiscard]] PolicyTraits traits(const SequenceShape& shape) const {
      return {.name = "asks", .stored_deltas = {0, shape.rows()}};
    }
    void plan(const StepContext&, StepPlan& plan) const {
      plan.reuse({1, 2});
      plan.verify({2, 6}, 1, 0.75);
      plan.recompute({4, 5});
      plan.recompute({7, 8});
      plan.cached_layers = {1, 3};
    }
  };
  const std::vector<std::int32_t> positions{5, 6, 7, 8, 9, 10, 11, 12};
  StepPlanner planner(Asks{}, {.prompt = 3, .response = 5, .positions = positions}, 3);
  StepLists lists;
  CHECK_THROWS_AS(lists.assign(planner), std::logic_error);
  planner.begin_step({});
  lists.assign(planner);
  CHECK(lists.rows == std::vector<std::int32_t>{0, 1, 2, 3, 4, 5, 6, 7});
  CHECK(lists.counts() == RowCounts{8, 24, 24});
  planner.commit_step();
  planner.begin_step({});
  lists.assign(planner);
  using List = std::vector<std::int32_t>;
  CHECK(lists.rows == List{1, 2, 3, 4, 5, 7});
  CHECK(lists.positions == List{6, 7, 8, 9, 10, 12});
  CHECK(lists.key_ends == List{8, 8, 8, 8, 8, 8});
  CHECK(lists.cached.rows == List{2, 3, 5, 4, 7});
  CHECK(lists.cached.places == List{1, 2, 4, 3, 5});
  CHECK(lists.cached.verified == 3);
  CHECK(List(lists.cached.recomputed_rows().begin(), lists.cached.recomputed_rows().end()) ==
        List{4, 7});
  CHECK(lists.plain.rows == lists.rows);
  CHECK(lists.plain.places == List{0, 1, 2, 3, 4, 5});
  CHECK(&lists.of(0) == &lists.plain);
  CHECK(&lists.of(1) == &lists.cached);
  CHECK(lists.counts() == RowCounts{6, 6 + 5 + 5, 6 + 3 + 3});
  const StepSizes sizes{.rows = 6,
                        .verified = 3,
                        .verify_count = 1,
                        .recomputed = 2,
                        .first_cached = 1,
                        .end_cached = 3,
                        .keys = 8,
                        .threshold = true};
  CHECK(lists.sizes() == sizes);
}
