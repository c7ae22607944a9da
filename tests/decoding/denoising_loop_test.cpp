// SPDX-License-Identifier: Apache-2.0
#include "dllm_cache/decoding/denoising_loop.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "dllm_cache/policies/changed_rows.hpp"
#include "dllm_cache/policies/dkv_decode.hpp"
#include "dllm_cache/policies/dllm_cache.hpp"
#include "dllm_cache/policies/dual_cache.hpp"
#include "dllm_cache/policies/free_cache.hpp"
#include "dllm_cache/policies/prefix_cache.hpp"
#include "dllm_cache/policies/vicinity.hpp"
#include "tests/support/exact_refusal.hpp"
#include "tests/support/fake_model.hpp"
#include "tests/support/loop_runs.hpp"
#include "tests/support/scripted_policy.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;
using Catch::Contains;

namespace {

using Model = FakeModel<float>;
using Loop = DenoisingLoop<Model>;

constexpr std::uint64_t seed = 2506;
constexpr std::int32_t mask = Model::mask, end_of_text = Model::end_of_text;

Index masked_rows(const Tokens& tokens, Index from = 0) {
  return std::count(tokens.begin() + from, tokens.end(), mask);
}

// Logits of a row of hidden states, by the model alone.
std::vector<float> logits_of(Model& model, const Matrix<float>& hidden, Index row) {
  std::vector<float> logits(static_cast<std::size_t>(model.vocabulary()));
  model.logits({hidden.row(row), 1, hidden.cols, hidden.cols},
               dense_view(logits.data(), 1, model.vocabulary()));
  return logits;
}

// The whole forward of some tokens, without any part of the library's cache.
Matrix<float> forward_of(const Model& model, const Tokens& tokens) {
  const std::vector<Index> ids(tokens.begin(), tokens.end());
  return plain_forward(model.tiny, {.prompt = static_cast<Index>(tokens.size())},
                       model.tiny.embed(ids));
}

// A policy that recomputes everything at one step and is another policy at all others.
struct RefreshAt {
  AnyPolicy inner;
  Index at = -1;
  [[nodiscard]] PolicyTraits traits(const SequenceShape& shape) const {
    return inner.traits(shape);
  }
  void plan(const StepContext& context, StepPlan& plan) const {
    if (context.step == at)
      plan.recompute(context.live());
    else
      inner.plan(context, plan);
  }
};

}  // namespace

TEST_CASE("DenoisingLoop: without a cache a run is LLaDA's loop over plain forwards",
          "[denoising_loop][property]") {
  for (const Index shift : {0, 1}) {
    INFO("seed " << seed << ", shift " << shift);
    Model model(seed, 2, shift);
    const Tokens prompt{4, 1, 9};
    const Record record = run_alone<Model>(
        model, {prompt, {.response = 9, .block_length = 3, .steps = 6}, NoCache{}});
    Tokens tokens = prompt;
    tokens.resize(12, mask);
    for (Index step = 0; step < 6; ++step) {
      CAPTURE(step);
      const Matrix<float> hidden = forward_of(model, tokens);
      const Index begin = 3 + step / 2 * 3;
      for (Index commit = 0; commit < (step % 2 == 0 ? 2 : 1); ++commit) {
        Index best_row = -1;
        double best = -1.0;
        std::int32_t best_token = -1;
        for (Index row = begin; row < begin + 3; ++row) {
          if (tokens[static_cast<std::size_t>(row)] != mask) continue;
          const std::vector<float> logits = logits_of(model, hidden, row - shift);
          if (commit == 0) REQUIRE(record.logits.at({step, row}) == logits);
          const auto most = std::max_element(logits.begin(), logits.end());
          double sum = 0.0;
          for (const float logit : logits) sum += std::exp(static_cast<double>(logit - *most));
          if (1.0 / sum > best) {
            best = 1.0 / sum;
            best_row = row;
            best_token = static_cast<std::int32_t>(most - logits.begin());
          }
        }
        tokens[static_cast<std::size_t>(best_row)] = best_token;
      }
      REQUIRE(record.tokens[static_cast<std::size_t>(step)] == tokens);
    }
    REQUIRE(record.tokens.size() == 6);
    REQUIRE(record.counts == DecodingCounts{{.rows = 72, .values = 144, .recomputed = 144}, 12});
  }
}

TEST_CASE("DenoisingLoop: sequences of every kind in one batch are what they are alone",
          "[denoising_loop][property]") {
  for (const Index shift : {0, 1}) {
    INFO("seed " << seed << ", shift " << shift);
    const Model fresh(seed, 3, shift);
    const std::vector<Job> jobs = motley(shift);
    Model model = fresh;
    Loop loop(model);
    Recorder recorder(loop);
    for (std::size_t i = 0; i < jobs.size(); ++i)
      REQUIRE(loop.add(jobs[i].prompt, jobs[i].options, jobs[i].policy) == static_cast<Index>(i));
    loop.run([&](const StepReport& report) { recorder(report); });
    REQUIRE(loop.finished());
    REQUIRE(model.log.broken_rule.empty());
    DecodingCounts sum;
    std::set<Index> lengths;
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      INFO("sequence " << i);
      const Record together = recorder.of(static_cast<Index>(i));
      REQUIRE(together == run_alone<Model>(fresh, jobs[i]));
      sum += together.counts;
      lengths.insert(static_cast<Index>(together.tokens.size()));
    }
    REQUIRE(lengths.size() > 4);  // so sequences left at many different times
    // What the loop says it did is what the model was asked to do.
    REQUIRE(sum.rows == model.embedded_rows);
    REQUIRE(sum.logits == model.head_rows);
    LayerRows asked;
    for (const LayerRows& rows : model.log.layers) {
      asked.value += rows.value;
      asked.query_key += rows.query_key;
      asked.delta += rows.delta;
    }
    REQUIRE(asked == LayerRows{sum.values, sum.recomputed, sum.recomputed});
    REQUIRE(model.embeds == *lengths.rbegin());  // one forward a step, whoever takes part
  }
}

TEST_CASE("DenoisingLoop: a sequence that joins a running batch is what it is alone",
          "[denoising_loop][property]") {
  for (const Index shift : {0, 1}) {
    INFO("seed " << seed << ", shift " << shift);
    const Model fresh(seed, 2, shift);
    const std::vector<Job> jobs = motley(shift);
    Model model = fresh;
    Loop loop(model);
    Recorder recorder(loop);
    std::size_t joined = 0;
    do {
      if (joined < jobs.size()) {
        loop.add(jobs[joined].prompt, jobs[joined].options, jobs[joined].policy);
        ++joined;
      }
    } while (loop.step([&](const StepReport& report) { recorder(report); }) ||
             joined < jobs.size());
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      INFO("sequence " << i);
      REQUIRE(recorder.of(static_cast<Index>(i)) == run_alone<Model>(fresh, jobs[i]));
    }
  }
}

TEST_CASE("DenoisingLoop: features stored in 16 bits change nothing about batches",
          "[denoising_loop][property]") {
  using Half = FakeModel<Eigen::bfloat16>;
  const Half fresh(seed, 2);
  const std::vector<Job> jobs = motley(0);
  Half model = fresh;
  DenoisingLoop<Half, Eigen::bfloat16> loop(model);
  Recorder recorder(loop);
  for (const Job& job : jobs) loop.add(job.prompt, job.options, job.policy);
  loop.run([&](const StepReport& report) { recorder(report); });
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    INFO("seed " << seed << ", sequence " << i);
    REQUIRE(recorder.of(static_cast<Index>(i)) == run_alone<Half, Eigen::bfloat16>(fresh, jobs[i]));
  }
}

TEST_CASE("DenoisingLoop: a finished sequence leaves the batch", "[denoising_loop]") {
  Model model(seed, 1);
  Loop loop(model);
  loop.add(Tokens{1, 2}, {.response = 3}, NoCache{});
  loop.add(Tokens{1}, {.response = 1}, NoCache{});
  loop.add(Tokens{1, 2, 3}, {.response = 2}, NoCache{});
  std::vector<Index> rows, reports;
  while (!loop.finished()) {
    const Index before = model.embedded_rows;
    loop.step([&](const StepReport& report) {
      reports.push_back(report.id);
      CHECK(report.finished == loop.sequence(report.id).finished());
    });
    rows.push_back(model.embedded_rows - before);
  }
  CHECK(rows == std::vector<Index>{5 + 2 + 5, 5 + 5, 5});
  CHECK(reports == std::vector<Index>{0, 1, 2, 0, 2, 0});
  CHECK(loop.counts(1) == DecodingCounts{{.rows = 2, .values = 2, .recomputed = 2}, 1});
  CHECK_FALSE(loop.step());
  CHECK(model.embeds == 3);
}

TEST_CASE("DenoisingLoop: a released sequence keeps its tokens and counts, not its features",
          "[denoising_loop]") {
  Model model(seed);
  Loop loop(model), twin(model);
  const DecodingOptions guided{.response = 2, .guidance_scale = 1.0};
  for (Loop* one : {&loop, &twin}) {
    one->add(Tokens{1, 2}, guided, DllmCachePolicy{4, 2, 0.5});
    one->add(Tokens{3}, {.response = 5}, DllmCachePolicy{4, 2, 0.5});
  }
  loop.run([&](const StepReport& report) {
    if (report.id == 0 && report.finished) loop.release(0);
  });
  twin.run();
  CHECK(loop.cache_bytes(0) == 0);
  CHECK(twin.cache_bytes(0) > 0);
  for (const Index id : {0, 1}) {
    CHECK(std::ranges::equal(loop.sequence(id).tokens(), twin.sequence(id).tokens()));
    CHECK(loop.counts(id) == twin.counts(id));
    CHECK(loop.forwards(id) == twin.forwards(id));
  }
  loop.release(0);  // once more changes nothing
  CHECK(loop.counts(0) == twin.counts(0));
  CHECK_THAT(exact_refusal<std::logic_error>([&] { static_cast<void>(loop.cache(0)); }),
             Contains("cache() of sequence 0 released"));
}

TEST_CASE("DenoisingLoop: a sequence that still runs is not released",
          "[denoising_loop][refusal]") {
  Model model(seed);
  Loop loop(model);
  loop.add(Tokens{1, 2}, {.response = 3}, NoCache{});
  loop.add(Tokens{4}, {.response = 3}, NoCache{});
  const auto message = [&] { return exact_refusal<std::logic_error>([&] { loop.release(0); }); };
  CHECK_THAT(message(), Contains("release() of sequence 0, which still runs"));
  // Stopped, but part of a step whose predictions are still to come.
  loop.observer.on_logits = [&](Index, Index, std::span<const float>) { throw CallbackError(); };
  CHECK_THROWS_AS(loop.step(), CallbackError);
  loop.stop(0);
  CHECK_THAT(message(), Contains("which still runs"));
  loop.observer.on_logits = {};
  loop.step();
  loop.release(0);
  CHECK(loop.cache_bytes(0) == 0);
  loop.run();
  CHECK(loop.sequence(1).finished());
}

TEST_CASE("DenoisingLoop: features that a forward works on are not released, saved or cloned",
          "[denoising_loop][refusal]") {
  Model model(seed);
  Loop loop(model);
  loop.add(Tokens{1, 2}, {.response = 3}, DualCachePolicy{});
  loop.add(Tokens{4}, {.response = 3}, DualCachePolicy{});
  int asked = 0;
  loop.observer.on_layer = [&](const Loop::PassType&, Index layer) {
    if (layer > 0 || asked++ > 0) return;
    loop.stop(0);
    CHECK_THAT(refused_call([&] { loop.release(0); }),
               Contains("release() of sequence 0, which still runs"));
    CHECK_THAT(refused_call([&] { loop.restart(0, Tokens{1}, {.response = 2}); }),
               Contains("restart() of sequence 0, which still runs"));
    std::vector<std::byte> bytes;
    CHECK_THAT(refused_call([&] { loop.save(0, bytes); }),
               Contains("save() of sequence 0, in the middle of a step"));
    CHECK(bytes.empty());
    CHECK_THAT(refused_call([&] { loop.clone(0, 1); }),
               Contains("clone() of sequence 0, in the middle of a step"));
  };
  loop.run();
  CHECK(asked > 1);
  loop.release(0);
  CHECK(loop.sequence(1).finished());
}

TEST_CASE("DenoisingLoop: a callback may restart the sequence that it is told of, no later one",
          "[denoising_loop]") {
  const Model fresh(seed);
  const Job first{{1, 2}, {.response = 3}, DualCachePolicy{}},
      second{{7, 8, 9}, {.response = 4}, DualCachePolicy{}};
  Model model = fresh;
  Loop loop(model);
  loop.add(first.prompt, first.options, first.policy);
  loop.add(first.prompt, first.options, first.policy);
  std::vector<Index> told;
  loop.run([&](const StepReport& report) {
    if (report.id == 0 && report.finished && told.empty()) {
      CHECK_THAT(refused_call([&] { loop.step(); }), Contains("step() while a step runs"));
      CHECK_THAT(refused_call([&] { loop.restart(1, second.prompt, second.options); }),
                 Contains("restart() of sequence 1, whose report is still to come"));
      loop.restart(0, second.prompt, second.options);
      told.push_back(0);
    } else if (report.finished) {
      told.push_back(report.id);
      CHECK(report.tokens.size() == (report.id == 0 ? 7U : 5U));
    }
  });
  CHECK(told == std::vector<Index>{0, 1, 0});
  const Tokens tokens(loop.sequence(0).tokens().begin(), loop.sequence(0).tokens().end());
  CHECK(tokens == run_alone<Model>(fresh, second).tokens.back());
}

TEST_CASE("DenoisingLoop: with nothing added there is nothing to do", "[denoising_loop]") {
  Model model(seed);
  Loop loop(model);
  CHECK(loop.finished());
  CHECK_FALSE(loop.step());
  CHECK(loop.run([](const StepReport&) {}));
  CHECK(loop.sequences() == 0);
  CHECK(model.embeds == 0);
}

TEST_CASE("DenoisingLoop: one block as long as the response is the same as none named",
          "[denoising_loop]") {
  for (const AnyPolicy& policy : {AnyPolicy(DualCachePolicy{}), AnyPolicy(NoCache{})}) {
    const Model model(seed);
    CHECK(run_alone<Model>(model, {{1, 2}, {.response = 7, .block_length = 7}, policy}) ==
          run_alone<Model>(model, {{1, 2}, {.response = 7}, policy}));
  }
}

TEST_CASE("DenoisingLoop: a response of one row takes one step and one forward",
          "[denoising_loop]") {
  for (const Index shift : {0, 1}) {
    const Model model(seed, 2, shift);
    const Record record = run_alone<Model>(model, {{3}, {.response = 1}, DllmCachePolicy{}});
    CHECK(record.forwards == 1);
    CHECK(record.tokens.size() == 1);
    CHECK(record.tokens[0].front() == 3);
    CHECK(record.tokens[0].back() != mask);
    CHECK(record.counts == DecodingCounts{{.rows = 2, .values = 4, .recomputed = 4}, 1});
  }
}

TEST_CASE("DenoisingLoop: logits are asked for rows that can be committed, and no others",
          "[denoising_loop]") {
  Model model(seed);
  Loop loop(model);
  loop.add(Tokens{1, 2, 3}, {.response = 6, .block_length = 3}, NoCache{});
  std::map<Index, std::vector<Index>> asked;
  loop.observer.on_logits = [&](Index id, Index row, std::span<const float> logits) {
    CHECK(id == 0);
    CHECK(static_cast<Index>(logits.size()) == model.vocabulary());
    asked[loop.sequence(0).step()].push_back(row);
  };
  loop.run([&](const StepReport& report) {
    std::vector<Index> candidates;
    for (const Prediction& one : report.predictions) candidates.push_back(one.row);
    std::sort(candidates.begin(), candidates.end());
    CHECK(asked[report.step] == candidates);
    CHECK(candidates.size() == static_cast<std::size_t>(3 - report.step % 3));
    for (const Index row : candidates) CHECK(report.block.contains(row));
  });
  CHECK(asked.size() == 6);
}

TEST_CASE("DenoisingLoop: a report says what the step committed", "[denoising_loop]") {
  Model model(seed);
  Loop loop(model);
  loop.add(Tokens{1, 2, 3}, {.response = 7, .steps = 3}, NoCache{});
  Tokens before{1, 2, 3, mask, mask, mask, mask, mask, mask, mask};
  Index step = 0;
  loop.run([&](const StepReport& report) {
    CHECK(report.id == 0);
    CHECK(report.step == step++);
    CHECK(report.block == Range{3, 10});
    CHECK(report.prompt_rows == 3);
    CHECK(report.committed == (report.step == 0 ? 3 : 2));
    CHECK(report.predictions.size() == static_cast<std::size_t>(masked_rows(before)));
    for (Index i = 0; i < static_cast<Index>(report.predictions.size()); ++i) {
      const Prediction& one = report.predictions[static_cast<std::size_t>(i)];
      if (i < report.committed) before[static_cast<std::size_t>(one.row)] = one.token;
      if (i > 0)
        CHECK(one.confidence <= report.predictions[static_cast<std::size_t>(i - 1)].confidence);
    }
    CHECK(Tokens(report.tokens.begin(), report.tokens.end()) == before);
    CHECK(report.finished == (report.step == 2));
  });
  CHECK(step == 3);
}

TEST_CASE("DenoisingLoop: the layer observer sees every layer of every sequence",
          "[denoising_loop]") {
  Model model(seed, 3);
  Loop loop(model);
  loop.add(Tokens{1, 2}, {.response = 2}, NoCache{});
  loop.add(Tokens{1}, {.response = 3, .guidance_scale = 1.0}, DualCachePolicy{});
  std::vector<Index> layers;
  loop.observer.on_layer = [&](const Loop::PassType& pass, Index layer) {
    layers.push_back(layer);
    REQUIRE(pass.layers_done() == layer + 1);
    REQUIRE(static_cast<std::size_t>(pass.sequences()) == loop.batch().size());
    for (Index i = 0; i < pass.sequences(); ++i) {
      const auto& entry = loop.batch()[static_cast<std::size_t>(i)];
      if (i > 0 && entry.unconditional)
        CHECK(loop.batch()[static_cast<std::size_t>(i - 1)].id == entry.id);
      CHECK(pass.recomputed(i).size() <= loop.sequence(entry.id).tokens().size());
    }
  };
  loop.run();
  CHECK(layers == std::vector<Index>{0, 1, 2, 0, 1, 2, 0, 1, 2});
}

TEST_CASE("DenoisingLoop: a callback cancels everything, and a later run goes on as before",
          "[denoising_loop]") {
  const Model fresh(seed);
  const std::vector<Job> jobs = motley(0);
  Model model = fresh;
  Loop loop(model);
  Recorder recorder(loop);
  for (const Job& job : jobs) loop.add(job.prompt, job.options, job.policy);
  Index told = 0;
  CHECK_FALSE(loop.run([&](const StepReport& report) {
    recorder(report);
    ++told;
    return report.id != 2;  // the others are told of the step all the same
  }));
  CHECK(told == static_cast<Index>(jobs.size()));
  CHECK_FALSE(loop.finished());
  for (Index id = 0; id < loop.sequences(); ++id) CHECK(loop.sequence(id).step() == 1);
  CHECK(loop.run([&](const StepReport& report) {
    recorder(report);
    return true;
  }));
  for (std::size_t i = 0; i < jobs.size(); ++i)
    CHECK(recorder.of(static_cast<Index>(i)) == run_alone<Model>(fresh, jobs[i]));
}

TEST_CASE("DenoisingLoop: a run that is cancelled in its last step says so", "[denoising_loop]") {
  Model model(seed);
  Loop loop(model);
  loop.add(Tokens{1, 2}, {.response = 3}, NoCache{});
  CHECK_FALSE(loop.run([](const StepReport& report) { return !report.finished; }));
  CHECK(loop.finished());
  CHECK(loop.run([](const StepReport&) { return false; }));  // nothing is left to cancel
}

TEST_CASE("DenoisingLoop: a step within a step is refused, and harms nothing",
          "[denoising_loop][refusal]") {
  const Model fresh(seed);
  const Job job{{1, 2}, {.response = 4}, DualCachePolicy{}};
  Model model = fresh;
  Loop loop(model);
  loop.add(job.prompt, job.options, job.policy);
  Index asked = 0;
  const auto ask = [&] {
    ++asked;
    CHECK_THAT(refused_call([&] { loop.step(); }), Contains("step() while a step runs"));
  };
  loop.observer.on_layer = [&](const Loop::PassType&, Index) { ask(); };
  loop.observer.on_logits = [&](Index, Index, std::span<const float>) { ask(); };
  loop.run();
  CHECK(asked > 8);
  CHECK(std::ranges::equal(loop.sequence(0).tokens(), run_alone<Model>(fresh, job).tokens.back()));
}

TEST_CASE("DenoisingLoop: a callback stops one sequence, the others are what they are alone",
          "[denoising_loop]") {
  const Model fresh(seed);
  const std::vector<Job> jobs = motley(0);
  Model model = fresh;
  Loop loop(model);
  Recorder recorder(loop);
  for (const Job& job : jobs) loop.add(job.prompt, job.options, job.policy);
  CHECK(loop.run([&](const StepReport& report) {
    recorder(report);
    if (report.id == 3 && report.step == 1) loop.stop(3);
  }));
  CHECK(loop.sequence(3).step() == 2);
  CHECK_FALSE(loop.sequence(3).finished());
  CHECK(masked_rows({loop.sequence(3).tokens().begin(), loop.sequence(3).tokens().end()}) == 2);
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    if (i == 3) continue;
    CHECK(recorder.of(static_cast<Index>(i)) == run_alone<Model>(fresh, jobs[i]));
  }
}

TEST_CASE("DenoisingLoop: end of text in a finished block ends the sequence, if asked to",
          "[denoising_loop]") {
  // The token is made likely enough to appear somewhere, but not everywhere.
  Model model(seed);
  model.bias[end_of_text] = 3.0F;
  DecodingOptions options{.response = 24, .block_length = 4};
  const Record whole = run_alone<Model>(model, {{1, 2, 3}, options, NoCache{}});
  REQUIRE(whole.tokens.size() == 24);
  const Tokens& answer = whole.tokens.back();
  const auto first = std::find(answer.begin() + 3, answer.end(), end_of_text) - answer.begin();
  REQUIRE(first < 23);
  const Index block_end = 3 + ((first - 3) / 4 + 1) * 4;
  options.early_stop = true;
  const Record stopped = run_alone<Model>(model, {{1, 2, 3}, options, NoCache{}});
  CHECK(static_cast<Index>(stopped.tokens.size()) == block_end - 3);
  Tokens expected(answer.begin(), answer.begin() + block_end);
  expected.resize(27, end_of_text);
  CHECK(stopped.tokens.back() == expected);
  CHECK(stopped.forwards == block_end - 3);
}

TEST_CASE("DenoisingLoop: a layer, embedding or head that fails anywhere costs one full forward",
          "[denoising_loop][property]") {
  // A broken forward makes all caches of the batch stale: what follows is what a policy gives that
  // recomputes everything at that step. A head that fails costs nothing: the forward is kept.
  const auto jobs = [](Index refresh_at) {
    return std::vector<Job>{
        {{1, 2, 3}, {.response = 6, .block_length = 3}, RefreshAt{DualCachePolicy{}, refresh_at}},
        {{4, 5},  // more rows than the loop reduces at once
         {.response = 30, .steps = 6, .guidance_scale = 1.0},
         RefreshAt{DllmCachePolicy{4, 3, 0.5}, refresh_at}},
        {{6}, {.response = 6, .steps = 6, .temperature = 1.0}, NoCache{}},
        {{7, 8}, {.response = 6}, RefreshAt{ChangedRowsPolicy{.keep_active = 1}, refresh_at}}};
  };
  const Model fresh(seed, 2);
  std::map<Index, std::vector<Record>> expected;
  for (Index at = -1; at < 6; ++at)
    for (const Job& job : jobs(at)) expected[at].push_back(run_alone<Model>(fresh, job));
  REQUIRE(expected[-1][0].tokens != expected[2][0].tokens);  // so a wrong answer would show
  Index failures = 0, in_head = 0;
  for (Index call = 0;; ++call) {
    INFO("seed " << seed << ", call " << call << " throws");
    Model model = fresh;
    model.log.throw_at = call;
    Loop loop(model);
    Recorder recorder(loop);
    for (const Job& job : jobs(-1)) loop.add(job.prompt, job.options, job.policy);
    Index stale_at = -1;
    bool failed = false;
    while (!loop.finished()) {
      try {
        loop.step([&](const StepReport& report) { recorder(report); });
      } catch (const CallbackError&) {
        REQUIRE_FALSE(failed);
        failed = true;
        const Index step = loop.sequence(0).step();
        const bool forward_kept = loop.forwards(0) > step;
        if (!forward_kept) stale_at = step;
        if (forward_kept) ++in_head;
        for (Index id = 0; id < loop.sequences(); ++id) {
          REQUIRE(loop.sequence(id).step() == step);
          REQUIRE(loop.cache(id).stale() == !forward_kept);
        }
      }
    }
    if (!failed) break;
    ++failures;
    for (std::size_t i = 0; i < 4; ++i) {
      INFO("sequence " << i << ", stale at " << stale_at);
      const Record record = recorder.of(static_cast<Index>(i));
      REQUIRE(record.tokens == expected[stale_at][i].tokens);
      REQUIRE(record == expected[stale_at][i]);
    }
  }
  // Six steps of an embedding, two layers of three calls, and two heads.
  REQUIRE(failures >= 54);
  REQUIRE(in_head >= 12);
}

TEST_CASE("DenoisingLoop: an observer or a callback that fails loses no step",
          "[denoising_loop][property]") {
  const std::vector<Job> jobs{
      {{1, 2, 3}, {.response = 6, .block_length = 3}, DualCachePolicy{}},
      {{4, 5}, {.response = 6, .guidance_scale = 1.0}, DllmCachePolicy{4, 3, 0.5}}};
  const Model fresh(seed, 2);
  std::vector<std::vector<Record>> expected(7);  // after a refresh at step i - 1
  for (Index at = -1; at < 6; ++at)
    for (const Job& job : jobs)
      expected[static_cast<std::size_t>(at + 1)].push_back(
          run_alone<Model>(fresh, {job.prompt, job.options, RefreshAt{job.policy, at}}));
  const auto run_with_failure = [&](const std::string& where, Index at_call) {
    Model model = fresh;
    Loop loop(model);
    Recorder recorder(loop);
    for (const Job& job : jobs) loop.add(job.prompt, job.options, job.policy);
    Index calls = 0;
    const auto called = [&](const char* here) {
      if (where == here && calls++ == at_call) throw CallbackError();
    };
    loop.observer.on_layer = [&](const Loop::PassType&, Index) { called("on_layer"); };
    const auto record_logits = loop.observer.on_logits;
    loop.observer.on_logits = [&](Index id, Index row, std::span<const float> logits) {
      record_logits(id, row, logits);
      called("on_logits");
    };
    Index stale_at = -1;
    bool failed = false;
    while (!loop.finished()) {
      try {
        loop.step([&](const StepReport& report) {
          recorder(report);
          if (report.id == 1) called("on_step");
        });
      } catch (const CallbackError&) {
        REQUIRE_FALSE(failed);
        failed = true;
        if (loop.cache(0).stale()) stale_at = loop.sequence(0).step();
      }
    }
    for (std::size_t i = 0; i < 2; ++i) {
      INFO("seed " << seed << ", call " << at_call << " of " << where << " throws, sequence " << i
                   << ", stale at " << stale_at);
      REQUIRE(recorder.of(static_cast<Index>(i)) ==
              expected[static_cast<std::size_t>(stale_at + 1)][i]);
    }
    return failed;
  };
  for (const char* where : {"on_layer", "on_logits", "on_step"}) {
    Index call = 0;
    while (run_with_failure(where, call)) ++call;
    REQUIRE(call >= 6);
  }
}

TEST_CASE("DenoisingLoop: a plan that cannot be carried out changes nothing",
          "[denoising_loop][refusal]") {
  bool fail = false;
  const ScriptedPolicy policy{{.name = "moody"}, [&](const StepContext& context, StepPlan& plan) {
                                plan.recompute(context.live());
                                if (fail) plan.verify(context.live(), 99);
                              }};
  const Model fresh(seed);
  const Job job{{1, 2}, {.response = 5}, policy};
  const Record expected = run_alone<Model>(fresh, job);
  Model model = fresh;
  Loop loop(model);
  Recorder recorder(loop);
  const auto step = [&] { return loop.step([&](const StepReport& report) { recorder(report); }); };
  loop.add(job.prompt, job.options, job.policy);
  step();
  fail = true;
  CHECK_THAT(refused_call([&] { step(); }), Contains("moody: verify_count"));
  CHECK(loop.sequence(0).step() == 1);
  CHECK_FALSE(loop.cache(0).stale());
  fail = false;
  while (step()) {
  }
  CHECK(recorder.of(0) == expected);
}

TEST_CASE("DenoisingLoop: a sequence whose logits are no numbers can be stopped, others go on",
          "[denoising_loop]") {
  Model fresh(seed);
  fresh.bias[10] = -50.0F;  // so that no other sequence comes to hold it
  std::fill_n(fresh.tiny.embeddings.row(10), fresh.tiny.embeddings.cols,
              std::numeric_limits<float>::quiet_NaN());
  const std::vector<Job> jobs{{{1, 2}, {.response = 4}, DualCachePolicy{}},
                              {{1, 10}, {.response = 4}, NoCache{}},
                              {{5}, {.response = 3}, NoCache{}}};
  Model model = fresh;
  Loop loop(model);
  Recorder recorder(loop);
  for (const Job& job : jobs) loop.add(job.prompt, job.options, job.policy);
  const auto run = [&] { loop.run([&](const StepReport& report) { recorder(report); }); };
  CHECK_THAT(exact_refusal<std::runtime_error>(run), Contains("logits of row 2"));
  CHECK_THAT(exact_refusal<std::runtime_error>(run), Contains("logits of row 2"));
  loop.stop(1);
  CHECK_NOTHROW(run());
  CHECK(loop.finished());
  CHECK(loop.sequence(1).step() == 0);
  for (const std::size_t i : {0U, 2U})
    CHECK(recorder.of(static_cast<Index>(i)) == run_alone<Model>(fresh, jobs[i]));
}

TEST_CASE(
    "DenoisingLoop: a sequence that joins between a failure and the next try is what it is "
    "alone",
    "[denoising_loop]") {
  const Model fresh(seed);
  const Job first{{1, 2}, {.response = 5}, NoCache{}}, second{{3}, {.response = 4}, NoCache{}};
  for (Index call = 0; call < 20; ++call) {
    CAPTURE(call);
    Model model = fresh;
    model.log.throw_at = call;
    Loop loop(model);
    Recorder recorder(loop);
    loop.add(first.prompt, first.options, first.policy);
    const auto run = [&] { loop.run([&](const StepReport& report) { recorder(report); }); };
    REQUIRE_THROWS_AS(run(), CallbackError);
    loop.add(second.prompt, second.options, second.policy);
    run();
    REQUIRE(recorder.of(0) == run_alone<Model>(fresh, first));
    REQUIRE(recorder.of(1) == run_alone<Model>(fresh, second));
  }
}

TEST_CASE("DenoisingLoop: guidance adds the scaled residual, refreshed on its own schedule",
          "[denoising_loop][property]") {
  for (const Index shift : {0, 1})
    for (const Index interval : {1, 3, 4}) {
      INFO("seed " << seed << ", shift " << shift << ", interval " << interval);
      Model model(seed, 2, shift);
      const double scale = 1.25;
      const Tokens prompt{4, 1, 9};
      const Record record = run_alone<Model>(model, {prompt,
                                                     {.response = 12,
                                                      .block_length = 6,
                                                      .guidance_scale = scale,
                                                      .guidance_interval = interval},
                                                     NoCache{}});
      Tokens tokens = prompt;
      tokens.resize(15, mask);
      std::map<Index, std::vector<float>> residual;
      Index due_steps = 0, head = 0;
      for (Index step = 0; step < 12; ++step) {
        const bool due = step < 5 || step % interval == 0;
        const Matrix<float> conditional = forward_of(model, tokens);
        Tokens blind = tokens;
        std::fill_n(blind.begin(), 3, mask);
        const Matrix<float> unconditional = forward_of(model, blind);
        due_steps += due ? 1 : 0;
        for (Index row = 3; row < 15; ++row) {
          if (tokens[static_cast<std::size_t>(row)] != mask) continue;
          const std::vector<float> with = logits_of(model, conditional, row - shift),
                                   without = logits_of(model, unconditional, row - shift);
          if (due) {
            residual[row].resize(with.size());
            for (std::size_t i = 0; i < with.size(); ++i) residual[row][i] = with[i] - without[i];
            head += 2;
          } else if (row < (step < 6 ? 9 : 15)) {
            ++head;
          }
          const auto got = record.logits.find({step, row});
          REQUIRE((got != record.logits.end()) == (due || row < (step < 6 ? 9 : 15)));
          if (got == record.logits.end()) continue;
          for (std::size_t i = 0; i < with.size(); ++i)
            REQUIRE(got->second[i] ==
                    Approx(static_cast<double>(with[i]) + scale * residual[row][i]).margin(2e-5));
        }
        tokens = record.tokens[static_cast<std::size_t>(step)];
      }
      REQUIRE(record.forwards == 12 + due_steps);
      REQUIRE(record.counts.rows == 15 * (12 + due_steps));
      REQUIRE(record.counts.logits == head);
      REQUIRE(masked_rows(tokens) == 0);
    }
}

TEST_CASE("DenoisingLoop: policies are told what changed since their own last forward",
          "[denoising_loop][property]") {
  // With guidance the unconditional run forwards more rarely: its counters and changes are its own.
  struct Seen {
    Index step, block_step;
    Range block;
    std::vector<std::uint8_t> masked, changed;
    std::vector<std::uint16_t> unchanged_steps;
  };
  for (const float bias : {-50.0F, 2.0F}) {  // with the second some steps commit the mask itself
    std::vector<Seen> seen;
    const ScriptedPolicy policy{
        {.name = "listener"}, [&](const StepContext& context, StepPlan& plan) {
          seen.push_back({context.step,
                          context.block_step,
                          context.block,
                          {context.masked.begin(), context.masked.end()},
                          {context.changed.begin(), context.changed.end()},
                          {context.unchanged_steps.begin(), context.unchanged_steps.end()}});
          plan.recompute(context.live());
        }};
    Model model(seed);
    model.bias[mask] = bias;
    Loop loop(model);
    loop.add(Tokens{1, 2},
             {.response = 16, .block_length = 8, .guidance_scale = 1.0, .guidance_interval = 7},
             policy);
    // What each of the two runs has seen: the tokens of its last forward, and for each row the
    // forward in which its token was first new.
    struct Run {
      Index step = 0, block_step = 0;
      Range block;
      Tokens last;
      std::map<Index, Index> new_at;
    };
    Run runs[2];
    bool any_mask_committed = false;
    for (Index step = 0; step < 16; ++step) {
      const SequenceState& state = loop.sequence(0);
      const Tokens tokens(state.tokens().begin(), state.tokens().end());
      const Range block = state.block();
      const std::size_t first = seen.size();
      loop.step([&](const StepReport& report) {
        any_mask_committed = any_mask_committed || report.predictions[0].token == mask;
      });
      std::size_t next = first;
      for (const bool unconditional : {false, true}) {
        if (unconditional && step >= 5 && step % 7 != 0) continue;
        Run& run = runs[unconditional ? 1 : 0];
        if (run.block != block) run.block_step = 0;
        run.block = block;
        if (run.step > 0) {  // nobody is asked about a first step
          INFO("bias " << bias << ", step " << step << ", unconditional " << unconditional);
          REQUIRE(next < seen.size());
          const Seen& told = seen[next++];
          REQUIRE(told.step == run.step);
          REQUIRE(told.block == block);
          REQUIRE(told.block_step == run.block_step);
          for (Index row = 0; row < 18; ++row) {
            CAPTURE(row);
            const auto at = static_cast<std::size_t>(row);
            const bool changed = tokens[at] != run.last[at];
            if (changed) run.new_at[row] = run.step;
            REQUIRE((told.masked[at] != 0) == (row >= 2 && tokens[at] == mask));
            REQUIRE((told.changed[at] != 0) == changed);
            const auto found = run.new_at.find(row);
            REQUIRE(told.unchanged_steps[at] ==
                    (found == run.new_at.end() ? 65535 : run.step - found->second));
          }
        }
        run.last = tokens;
        ++run.step;
        ++run.block_step;
      }
      REQUIRE(next == seen.size());
    }
    REQUIRE(runs[0].step == 16);
    REQUIRE(runs[1].step == 7);
    REQUIRE(loop.forwards(0) == 23);
    REQUIRE(any_mask_committed == (bias > 0.0F));
  }
}

TEST_CASE("DenoisingLoop: a counted schedule keeps a mask that the model predicts",
          "[denoising_loop]") {
  Model model(seed);
  model.bias[mask] = 1000.0F;
  const Record record =
      run_alone<Model>(model, {{1, 2}, {.response = 6, .block_length = 2}, NoCache{}});
  CHECK(record.tokens.size() == 6);
  CHECK(masked_rows(record.tokens.back()) == 6);
}

TEST_CASE("DenoisingLoop: open-ended rules end though the model predicts nothing but the mask",
          "[denoising_loop]") {
  for (const CommitRule& rule : {CommitRule(ThresholdCommit{0.9}), CommitRule(FactorCommit{1e-9}),
                                 CommitRule(EntropyBoundCommit{0.0}), CommitRule(FixedCommit{1})})
    for (const AnyPolicy& policy :
         {AnyPolicy(NoCache{}), AnyPolicy(DualCachePolicy{}), AnyPolicy(DkvDecodePolicy{2})}) {
      CAPTURE(rule.index());
      Model model(seed);
      model.bias[mask] = 1000.0F;
      const Record record = run_alone<Model>(
          model, {{1, 2}, {.response = 6, .block_length = 3, .commit = rule}, policy});
      CHECK(masked_rows(record.tokens.back()) == 0);
      // Every second step finds one row at least: the one after a step that found none.
      CHECK(record.tokens.size() <= 12);
      for (std::size_t step = 1; step < record.tokens.size(); step += 2)
        CHECK(masked_rows(record.tokens[step]) < masked_rows(record.tokens[step - 1]));
    }
}

TEST_CASE("DenoisingLoop: open-ended rules commit more than a row where the model is sure",
          "[denoising_loop]") {
  // Else nothing above would say much about them.
  const Model model(seed);
  for (const CommitRule& rule : {CommitRule(ThresholdCommit{0.5}), CommitRule(FactorCommit{1.2}),
                                 CommitRule(EntropyBoundCommit{1.0})}) {
    CAPTURE(rule.index());
    const Record record =
        run_alone<Model>(model, {{1, 2}, {.response = 20, .commit = rule}, NoCache{}});
    CHECK(record.tokens.size() > 2);
    CHECK(record.tokens.size() < 20);
    CHECK(*std::max_element(record.committed.begin(), record.committed.end()) > 1);
  }
}

TEST_CASE("DenoisingLoop: bytes are those of all caches of a sequence", "[denoising_loop]") {
  Model model(seed);
  Loop loop(model);
  const AnyPolicy policy = DllmCachePolicy{};
  loop.add(Tokens{1, 2}, {.response = 6}, policy);
  loop.add(Tokens{1, 2}, {.response = 6, .guidance_scale = 1.0}, policy);
  const Index once =
      FeatureCache<float>::bytes_needed(model.shape(), {.prompt = 2, .response = 6}, policy);
  CHECK(loop.cache_bytes(0) == once);
  CHECK(loop.cache_bytes(1) == 2 * once);
}

TEST_CASE("DenoisingLoop: what cannot be decoded is refused and leaves the loop as it was",
          "[denoising_loop][refusal]") {
  const Model fresh(seed, 2, 1);
  const Job good{{1, 2}, {.response = 4}, DllmCachePolicy{}};
  Model model = fresh;
  Loop loop(model);
  Recorder recorder(loop);
  loop.add(good.prompt, good.options, good.policy);
  const auto refused = [&](const Tokens& prompt, const DecodingOptions& options,
                           const AnyPolicy& policy) {
    return refused_argument([&] { loop.add(prompt, options, policy); });
  };
  CHECK(refused({1}, {.response = 0}, NoCache{}) ==
        "DecodingOptions: response must be at least 1 where the prompt holds no mask, got 0");
  CHECK(refused({1}, {.response = 4}, DllmCachePolicy{.ratio = 2.0}) ==
        "policy dllm-cache: ratio must be in [0, 1], got 2");
  CHECK(refused({}, {.response = 4}, NoCache{}) ==
        "SequenceShape: prediction_shift must be in [0, prompt = 0], got 1");
  CHECK(refused({1}, {.response = 4, .guidance_scale = -1.0}, NoCache{}) ==
        "DecodingOptions: guidance_scale must be finite and at least 0, got -1");
  for (const std::int32_t token : {-1, 13})
    CHECK(refused({1, token}, {.response = 4}, NoCache{}) ==
          "DenoisingLoop: prompt must hold tokens in [0, 13), got " + std::to_string(token));
  for (const Index id : {-1, 1}) {
    const std::string message =
        "DenoisingLoop: sequence must be in [0, 1), got " + std::to_string(id);
    CHECK(refused_argument([&] { static_cast<void>(loop.sequence(id)); }) == message);
    CHECK(refused_argument([&] { static_cast<void>(loop.cache(id)); }) == message);
    CHECK(refused_argument([&] { static_cast<void>(loop.counts(id)); }) == message);
    CHECK(refused_argument([&] { static_cast<void>(loop.forwards(id)); }) == message);
    CHECK(refused_argument([&] { static_cast<void>(loop.cache_bytes(id)); }) == message);
    CHECK(refused_argument([&] { loop.stop(id); }) == message);
  }
  CHECK(loop.sequences() == 1);
  loop.run([&](const StepReport& report) { recorder(report); });
  CHECK(recorder.of(0) == run_alone<Model>(fresh, good));
}

TEST_CASE("Guidance: bad numbers are refused by name, range and value", "[guidance][refusal]") {
  CHECK(refused_argument([] { Guidance(0.0, 1, 2, 3); }) ==
        "Guidance: scale must be finite and above 0, got 0");
  CHECK(refused_argument([] { Guidance(std::nan(""), 1, 2, 3); }) ==
        "Guidance: scale must be finite and above 0, got nan");
  CHECK(refused_argument([] { Guidance(1e300, 1, 2, 3); }) ==
        "Guidance: scale must be finite and above 0, got 1e+300");
  CHECK(refused_argument([] { Guidance(1.0, 1, -1, 3); }) ==
        "Guidance: rows * vocabulary must be in [0, 2^60], got -1 * 3");
  CHECK(refused_argument([] { Guidance(1.0, 1, Index{1} << 32, Index{1} << 32); }) ==
        "Guidance: rows * vocabulary must be in [0, 2^60], got 4294967296 * 4294967296");
  CHECK(refused_argument([] { Guidance(1.0, 0, 2, 3); }) ==
        "Guidance: interval must be at least 1, got 0");
}

TEST_CASE("Guidance: the residual is refreshed in the first five steps and at the interval",
          "[guidance]") {
  for (const Index interval : {1, 2, 5, 7}) {
    const Guidance guidance(1.0, interval, 1, 1);
    for (Index step = 0; step < 30; ++step)
      CHECK(guidance.due(step) == (step < 5 || step % interval == 0));
  }
}
