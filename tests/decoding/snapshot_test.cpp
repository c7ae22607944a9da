// SPDX-License-Identifier: Apache-2.0
// Sequences that are saved, restored, cloned and restarted in the middle of other sequences.
#include "dllm_cache/snapshot.hpp"

#include <catch2/catch.hpp>
#include <memory>
#include <sstream>
#include <vector>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "tests/support/exact_refusal.hpp"
#include "tests/support/fake_model.hpp"
#include "tests/support/loop_runs.hpp"
#include "tests/support/nan_resource.hpp"
#include "tests/support/scripted_policy.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;
using Catch::Contains;

namespace {

using Model = FakeModel<float>;
using Loop = DenoisingLoop<Model>;
using Bytes = std::vector<std::byte>;

constexpr std::uint64_t seed = 2511;

// Tokens of all steps from now on.
std::vector<Tokens> rest_of(Loop& loop, Index id) {
  std::vector<Tokens> steps;
  loop.run([&](const StepReport& report) {
    if (report.id == id) steps.emplace_back(report.tokens.begin(), report.tokens.end());
  });
  return steps;
}

// A loop with one sequence that has taken some steps.
std::unique_ptr<Loop> after_steps(Model& model, const Job& job, Index steps) {
  auto loop = std::make_unique<Loop>(model);
  loop->add(job.prompt, job.options, job.policy);
  for (Index step = 0; step < steps; ++step) loop->step();
  return loop;
}

Bytes saved(const Loop& loop, Index id = 0) {
  Bytes bytes;
  loop.save(id, bytes);
  return bytes;
}

std::string refused_restore(Loop& loop, const Bytes& bytes, const AnyPolicy& policy) {
  const Index before = loop.sequences();
  const std::string message =
      exact_refusal<std::runtime_error>([&] { loop.restore(bytes, policy); });
  CHECK(loop.sequences() == before);
  return message;
}

const Job guided_job{
    {10, 1, 3},
    {.response = 8, .block_length = 4, .guidance_scale = 1.5, .guidance_interval = 6},
    DllmCachePolicy{3, 2, 0.25}};

}  // namespace

TEST_CASE("Snapshot: a sequence restored at any step goes on token for token, logit for logit",
          "[snapshot]") {
  for (const Index shift : {0, 1})
    for (const Job& job : motley(shift)) {
      Model model(seed, 2, shift);
      const Record whole = run_alone<Model>(model, job);
      const auto steps = static_cast<Index>(whole.tokens.size());
      for (const Index at : {Index{0}, Index{1}, steps / 2, steps}) {
        CAPTURE(shift, job.prompt.size(), job.options.response, at);
        Loop before(model);
        before.add(job.prompt, job.options, job.policy);
        for (Index step = 0; step < at; ++step) before.step();
        std::stringstream stream;
        before.save(0, stream);

        // Into a loop of another process, so to speak: fresh memory, others running beside it.
        NanResource memory;
        Model same(seed, 2, shift);
        Loop after(same, &memory);
        after.add(Tokens{1, 2}, {.response = 5}, DualCachePolicy{});
        after.step();
        Recorder recorder(after);
        const Index id = after.restore(stream, job.policy);
        CHECK(id == 1);
        CHECK(after.sequence(id).step() == before.sequence(0).step());
        after.run([&](const StepReport& report) { recorder(report); });
        const Record rest = recorder.of(id);
        CHECK(rest.tokens == std::vector<Tokens>(whole.tokens.begin() + at, whole.tokens.end()));
        CHECK(rest.committed ==
              std::vector<Index>(whole.committed.begin() + at, whole.committed.end()));
        CHECK(rest.counts == whole.counts);
        CHECK(rest.forwards == whole.forwards);
        bool same_logits = true;
        for (const auto& [where, logits] : rest.logits)
          same_logits = same_logits && whole.logits.at(where) == logits;
        CHECK(same_logits);
      }
    }
}

TEST_CASE("Snapshot: several sequences follow each other in one stream", "[snapshot]") {
  Model model(seed);
  Loop loop(model);
  const std::vector<Job> jobs = motley(0);
  for (const Job& job : jobs) loop.add(job.prompt, job.options, job.policy);
  loop.step();
  std::stringstream stream;
  SnapshotWriter out(stream);
  for (Index id = 0; id < loop.sequences(); ++id) loop.save(id, out);
  Loop other(model);
  SnapshotReader in(stream);
  for (const Job& job : jobs) other.restore(in, job.policy);
  loop.run();
  other.run();
  for (Index id = 0; id < loop.sequences(); ++id)
    CHECK(std::ranges::equal(loop.sequence(id).tokens(), other.sequence(id).tokens()));
}

TEST_CASE("Snapshot: saving changes nothing, and saving what was restored gives the same bytes",
          "[snapshot]") {
  Model model(seed);
  const auto held = after_steps(model, guided_job, 3);
  Loop& loop = *held;
  const Bytes bytes = saved(loop);
  CHECK(saved(loop) == bytes);
  Loop other(model);
  other.restore(bytes, guided_job.policy);
  CHECK(saved(other) == bytes);
}

TEST_CASE("Snapshot: a stale sequence is saved without features", "[snapshot]") {
  Model model(seed);
  const auto fresh = after_steps(model, guided_job, 0), warm = after_steps(model, guided_job, 1);
  // Keys and values of 11 rows and deltas of 8, of both sequences of the guidance, and nothing of
  // what lies between them.
  const ModelShape shape = model.shape();
  const Index bytes = 2 * shape.layers * (2 * 11 * shape.kv_width + 8 * shape.width) * 4;
  CHECK(warm->cache_bytes(0) > bytes);
  CHECK(saved(*fresh).size() + static_cast<std::size_t>(bytes) == saved(*warm).size());
}

TEST_CASE("Snapshot: every damaged byte is noticed and nothing is added", "[snapshot]") {
  Model model(seed);
  const Job job{{1, 2}, {.response = 2}, DllmCachePolicy{2, 2, 0.5}};
  const auto held = after_steps(model, job, 1);
  Loop& loop = *held;
  const Bytes bytes = saved(loop);
  Loop other(model);
  for (std::size_t at = 0; at < bytes.size(); at += at < 700 ? 1 : 97) {
    CAPTURE(at);
    Bytes damaged = bytes;
    damaged[at] ^= std::byte{0x40};
    bool refused = false;
    try {
      other.restore(damaged, job.policy);
    } catch (const std::runtime_error&) {
      refused = true;
    } catch (const std::invalid_argument&) {
      refused = true;  // options out of range
    }
    CHECK(refused);
    CHECK(other.sequences() == 0);
  }
}

TEST_CASE("Snapshot: one that ends too early is refused wherever it ends", "[snapshot]") {
  Model model(seed);
  const Job job{{1, 2}, {.response = 2}, DllmCachePolicy{2, 2, 0.5}};
  const Bytes bytes = saved(*after_steps(model, job, 1));
  Loop other(model);
  for (std::size_t size = 0; size < bytes.size(); size += size < 700 ? 1 : 97) {
    CAPTURE(size);
    CHECK_THAT(refused_restore(
                   other, Bytes(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size)),
                   job.policy),
               Contains("snapshot: ends too early"));
  }
}

TEST_CASE("Snapshot: what does not fit is refused by field, wanted and found value",
          "[snapshot][refusal]") {
  Model model(seed);
  const Bytes bytes = saved(*after_steps(model, guided_job, 2));
  Loop same(model);
  CHECK_THAT(refused_restore(same, bytes, DualCachePolicy{}),
             Contains("policy must be \"dual\", got \"dllm-cache\""));
  CHECK_THAT(refused_restore(same, bytes, DllmCachePolicy{3, 2, 0.5}),
             Contains("policy options must be \"prompt_interval 3, response_interval 2, ratio 0.5, "
                      "refresh_first_layer true\", got "
                      "\"prompt_interval 3, "
                      "response_interval 2, ratio 0.25"));
  Model deeper(seed, 3);
  Loop deep(deeper);
  CHECK_THAT(refused_restore(deep, bytes, guided_job.policy), Contains("layers must be 3, got 2"));
  Model shifted(seed, 2, 1);
  Loop shift(shifted);
  CHECK_THAT(refused_restore(shift, bytes, guided_job.policy),
             Contains("prediction_shift must be 1, got 0"));
  Model masked(seed);
  masked.special.mask = 5;
  Loop other_mask(masked);
  CHECK_THAT(refused_restore(other_mask, bytes, guided_job.policy),
             Contains("mask must be 5, got 12"));
  FakeModel<Eigen::bfloat16> narrow(seed);
  DenoisingLoop<FakeModel<Eigen::bfloat16>, Eigen::bfloat16> bf16(narrow);
  CHECK_THAT(exact_refusal<std::runtime_error>([&] { bf16.restore(bytes, guided_job.policy); }),
             Contains("scalar must be \"bfloat16\", got \"float32\""));
  CHECK_THAT(refused_restore(same, Bytes(40, std::byte{'x'}), guided_job.policy),
             Contains("begins with other bytes than \"dllmsnap\""));
  Bytes newer = bytes;
  newer[8] = std::byte{9};
  CHECK_THAT(refused_restore(same, newer, guided_job.policy), Contains("version must be 5, got 9"));
}

TEST_CASE("Snapshot: a text that no reader would take is not written", "[snapshot][refusal]") {
  Bytes bytes;
  SnapshotWriter out(bytes);
  out.text("name", std::string(65536, 'x'));
  CHECK(refused_argument([&] { out.text("name", std::string(65537, 'x')); }) ==
        "snapshot: name must have at most 65536 bytes, got 65537");
}

TEST_CASE("Snapshot: features of a policy that keeps none are refused", "[snapshot][refusal]") {
  // What NoCache writes, but for a flag that says that a row is stored.
  Model model(seed);
  FeatureCache<float> cache(model.shape(), {.prompt = 1, .response = 2}, NoCache{});
  Bytes bytes;
  cache.save(bytes);
  const std::size_t tail = 3 * sizeof(Index) + sizeof(std::uint64_t);  // counts and checksum
  bytes[bytes.size() - tail - 1] = std::byte{1};
  CHECK_THAT(exact_refusal<std::runtime_error>([&] { cache.restore(bytes); }),
             Contains("computed must be 0 for a policy that keeps no features"));
}

TEST_CASE("Snapshot: a policy that has members and names no options is refused",
          "[snapshot][refusal]") {
  Model model(seed);
  const auto held = after_steps(model, {{1}, {.response = 2}, ScriptedPolicy{}}, 0);
  const Loop& loop = *held;
  Bytes bytes;
  CHECK_THAT(exact_refusal<std::logic_error>([&] { loop.save(0, bytes); }),
             Contains("has members and no `visit_options`"));
  CHECK(bytes.empty());
  CHECK_THROWS_AS(loop.cache(0).save(bytes), std::logic_error);
  CHECK(bytes.empty());
}

TEST_CASE("Snapshot: a sequence in the middle of a step, or released, is refused",
          "[snapshot][refusal]") {
  Model model(seed);
  const auto held = after_steps(model, guided_job, 1);
  Loop& loop = *held;
  loop.observer.on_logits = [](Index, Index, std::span<const float>) { throw CallbackError(); };
  CHECK_THROWS_AS(loop.step(), CallbackError);
  CHECK_THAT(exact_refusal<std::logic_error>([&] { saved(loop); }),
             Contains("save() of sequence 0, in the middle of a step"));
  CHECK_THAT(exact_refusal<std::logic_error>([&] { loop.clone(0, 1); }),
             Contains("clone() of sequence 0, in the middle of a step"));
  loop.observer.on_logits = {};
  loop.run();
  CHECK_NOTHROW(saved(loop));
  loop.release(0);
  CHECK_THAT(exact_refusal<std::logic_error>([&] { saved(loop); }),
             Contains("save() of sequence 0, released"));
  CHECK_THAT(exact_refusal<std::logic_error>([&] { loop.restart(0, Tokens{1}, {}); }),
             Contains("restart() of sequence 0, released"));
}

TEST_CASE("Snapshot: a sink or source that throws passes its exception and harms nothing",
          "[snapshot]") {
  Model model(seed);
  const auto held = after_steps(model, guided_job, 2);
  Loop& loop = *held;
  const Bytes bytes = saved(loop);
  std::size_t calls = 0;
  loop.save(0, SnapshotWriter([&](std::span<const std::byte>) { ++calls; }));
  REQUIRE(calls > 50);
  for (std::size_t at = 0; at < calls; at += 7) {
    std::size_t call = 0;
    const auto fail = [&] {
      if (call++ == at) throw CallbackError();
    };
    CHECK_THROWS_AS(loop.save(0, SnapshotWriter([&](std::span<const std::byte>) { fail(); })),
                    CallbackError);
    std::span<const std::byte> rest = bytes;
    call = 0;
    CHECK_THROWS_AS(loop.restore(SnapshotReader([&](std::span<std::byte> into) {
                                   fail();
                                   std::copy_n(rest.begin(), into.size(), into.begin());
                                   rest = rest.subspan(into.size());
                                 }),
                                 guided_job.policy),
                    CallbackError);
    CHECK(loop.sequences() == 1);
  }
  CHECK(saved(loop) == bytes);
}

TEST_CASE("FeatureCache: a damaged snapshot leaves it stale, one that does not fit unchanged",
          "[snapshot]") {
  Model model(seed);
  const auto held = after_steps(model, guided_job, 2);
  Loop& loop = *held;
  Bytes bytes;
  loop.cache(0).save(bytes);
  FeatureCache<float> cache = loop.cache(0).clone();
  REQUIRE_FALSE(cache.stale());
  FeatureCache<float> other(model.shape(), {.prompt = 3, .response = 9}, guided_job.policy);
  CHECK_THAT(exact_refusal<std::runtime_error>([&] { other.restore(bytes); }),
             Contains("response must be 9, got 8"));
  bytes.back() ^= std::byte{1};
  CHECK_THAT(exact_refusal<std::runtime_error>([&] { cache.restore(bytes); }),
             Contains("is damaged: its checksum is wrong"));
  CHECK(cache.stale());
  CHECK(cache.step() == 2);
  bytes.back() ^= std::byte{1};
  cache.restore(bytes);
  CHECK_FALSE(cache.stale());
}

TEST_CASE("DenoisingLoop: a clone with the same random numbers goes on alike, with others not",
          "[snapshot]") {
  for (const bool guided : {false, true}) {
    Model model(seed);
    Job job{{8, 0, 8},
            {.response = 16, .block_length = 8, .temperature = 1.0, .seed = 6, .sequence = 3},
            DllmCachePolicy{4, 2, 0.5}};
    if (guided) job.options.guidance_scale = 0.7;
    const Record whole = run_alone<Model>(model, job);
    const auto held = after_steps(model, job, 5);
    Loop& loop = *held;
    const Index same = loop.clone(0, 3), other = loop.clone(0, 4);
    CHECK(same == 1);
    CHECK(other == 2);
    CHECK(loop.sequence(other).step() == 5);
    const DecodingCounts before = loop.counts(0);
    CHECK(loop.counts(other) == before);
    loop.run();
    CHECK(std::ranges::equal(loop.sequence(0).tokens(), whole.tokens.back()));
    CHECK(std::ranges::equal(loop.sequence(same).tokens(), whole.tokens.back()));
    CHECK_FALSE(std::ranges::equal(loop.sequence(other).tokens(), whole.tokens.back()));
  }
}

TEST_CASE("DenoisingLoop: a restarted sequence is a fresh one in the same memory", "[snapshot]") {
  Model model(seed);
  const Job first{{1, 2, 3, 4}, {.response = 12}, DllmCachePolicy{4, 3, 0.5}},
      second{{9, 8, 7}, {.response = 6, .steps = 3, .seed = 2}, DllmCachePolicy{4, 3, 0.5}};
  const auto held = after_steps(model, first, 2);
  Loop& loop = *held;
  CHECK_THAT(
      exact_refusal<std::logic_error>([&] { loop.restart(0, second.prompt, second.options); }),
      Contains("restart() of sequence 0, which still runs"));
  loop.stop(0);
  const float* const memory = loop.cache(0).keys(0).data;
  CHECK_THROWS_AS(loop.restart(0, second.prompt, {.response = 0}), std::invalid_argument);
  CHECK(loop.sequence(0).step() == 2);
  loop.restart(0, second.prompt, second.options);
  CHECK(loop.cache(0).keys(0).data == memory);
  CHECK(loop.counts(0) == DecodingCounts{});
  CHECK(rest_of(loop, 0) == run_alone<Model>(model, second).tokens);
  // With guidance too, and without it again.
  Job guided = second;
  guided.options.guidance_scale = 1.0;
  loop.restart(0, guided.prompt, guided.options);
  CHECK(rest_of(loop, 0) == run_alone<Model>(model, guided).tokens);
  loop.restart(0, second.prompt, second.options);
  CHECK(rest_of(loop, 0) == run_alone<Model>(model, second).tokens);
}

namespace {

// Counts the selections that it made.
struct CountingSelector : VVerifySelector<float> {
  Index calls = 0;
  void select(std::span<const SimilaritySums> sums, Index count, std::vector<Index>& selected) {
    ++calls;
    VVerifySelector<float>::select(sums, count, selected);
  }
};

}  // namespace

TEST_CASE("DenoisingLoop: a restarted sequence has a new copy of the selector", "[snapshot]") {
  Model model(seed);
  DenoisingLoop<Model, float, CountingSelector> loop(model);
  const Job job{{1, 2}, {.response = 6}, DllmCachePolicy{4, 3, 0.5}};
  loop.add(job.prompt, job.options, job.policy);
  const auto selections = [&] { return loop.cache(0).clone().selector().calls; };
  loop.run();
  const Index calls = selections();
  CHECK(calls > 0);
  loop.restart(0, job.prompt, job.options);
  CHECK(selections() == 0);
  loop.run();
  CHECK(selections() == calls);
}

TEST_CASE("StepPlanner: progress moves to another planner of the same sequence", "[snapshot]") {
  const SequenceShape shape{.prompt = 2, .response = 4};
  StepPlanner one(DllmCachePolicy{3, 2, 0.5}, shape, 2),
      other(DllmCachePolicy{3, 2, 0.5}, shape, 2);
  for (int step = 0; step < 3; ++step) {
    one.begin_step({});
    one.commit_step();
  }
  other.resume(one.progress());
  CHECK(other.step() == 3);
  CHECK(other.begin_step({}).rows == one.begin_step({}).rows);
  CHECK_THAT(exact_refusal<std::logic_error>([&] { one.resume(other.progress()); }),
             Contains("resume() while a step is open"));
  other.cancel_step();
  const std::vector<std::uint8_t> short_by_one(5);
  CHECK_THAT(exact_refusal<std::invalid_argument>(
                 [&] { other.resume({.step = 1, .stale = false, .computed = short_by_one}); }),
             Contains("computed must have one entry a row (6), got 5"));
  CHECK_THAT(exact_refusal<std::invalid_argument>(
                 [&] { other.resume({.step = -1, .computed = one.progress().computed}); }),
             Contains("step must be in [0, 2305843009213693951], got -1"));
  CHECK_THAT(exact_refusal<std::invalid_argument>(
                 [&] { other.resume({.step = never, .computed = one.progress().computed}); }),
             Contains("step must be in [0, 2305843009213693951], got 9223372036854775807"));
}
