// SPDX-License-Identifier: Apache-2.0
// Window-Diffusion, EntropyCache, SPA-Cache, Dynamic-dLLM and DPad against plain programs of the
// same methods, bit for bit.
#include <catch2/catch.hpp>
#include <optional>
#include <string>
#include <vector>

#include "dllm_cache/policies/dpad.hpp"
#include "dllm_cache/policies/dynamic_dllm.hpp"
#include "dllm_cache/policies/entropy_cache.hpp"
#include "dllm_cache/policies/spa_cache.hpp"
#include "dllm_cache/policies/window_diffusion.hpp"
#include "tests/support/cached_run.hpp"
#include "tests/support/exact_refusal.hpp"
#include "tests/support/fake_model.hpp"
#include "tests/support/plain_further_caches.hpp"
#include "tests/support/published_caches.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;

namespace {

constexpr std::uint64_t seed = 20332;
using Model = FakeModel<float>;

// Runs a task both ways; returns the rows in the pass of each step.
std::vector<RowSet> require_alike(const AnyPolicy& policy, PlainCache& plain, const PlainTask& task,
                                  Index shift) {
  Model model(seed, 2, shift);
  const PlainRun expected = run_plainly(model, plain, task);
  model.log.broken_rule.clear();  // the plain run keeps its features where it likes
  const PlainRun got = run_in_loop(model, policy, task);
  REQUIRE(got.in_pass == expected.in_pass);
  REQUIRE(got.tokens == expected.tokens);
  REQUIRE(got.logits == expected.logits);
  REQUIRE(model.log.broken_rule.empty());
  return got.in_pass;
}

// What a decoding loop does to a sequence, without one: tokens, and which have just changed.
struct Tokens {
  std::vector<Index> tokens;
  std::vector<std::uint8_t> changed;
  Index last;  // row that was decoded last

  Tokens(const TinyModel<float>& model, const SequenceShape& shape, RandomNumbers& random)
      : tokens(start_tokens(model, shape, random)),
        changed(tokens.size(), 0),
        last(shape.prompt - 1) {}
  void decode(const SequenceShape& shape, RandomNumbers& random) {
    std::fill(changed.begin(), changed.end(), std::uint8_t{0});
    const Index count = random.below(3);
    for (Index i = 0; i < count; ++i) {
      const Index row = shape.prompt + random.below(shape.response);
      tokens[static_cast<std::size_t>(row)] = random.below(12);
      changed[static_cast<std::size_t>(row)] = 1;
    }
    for (Index row = 0; row < shape.rows(); ++row)
      if (changed[static_cast<std::size_t>(row)] != 0) last = row;
  }
};

// Runs a policy beside plain updates; `selection` says what these do in a step.
template <class Selection>
void require_same_updates(const AnyPolicy& policy, const SequenceShape& shape, Index layers,
                          bool projects, const Selection& selection, std::uint64_t text_seed) {
  CAPTURE(text_seed);
  const TinyModel<float> model(layers, seed);
  RandomNumbers random(text_seed);
  Tokens text(model, shape, random);
  FeatureCache<float> cache(model.shape(), shape, policy);
  PlainUpdates plain(model, shape, projects);
  Workspace<float> workspace;
  for (Index step = 0; step < 12; ++step) {
    CAPTURE(step);
    const Matrix<float> x = model.embed(text.tokens);
    const Matrix<float> expected = plain.step(x, selection(step, text));
    const PassRows<float> got = run_step(workspace, cache, model, x, {.changed = text.changed});
    REQUIRE(got.rows.back() == shape.rows() - 1);
    REQUIRE(got.rows.front() <= shape.prompt - shape.prediction_shift);
    REQUIRE_FALSE(first_difference(got, expected));
    text.decode(shape, random);
  }
}

}  // namespace

TEST_CASE("Policies: Window-Diffusion gives what its definition gives, bit for bit",
          "[policies][property]") {
  struct Options {
    Index cycle, window, active;
  };
  for (const Index shift : {0, 1})
    for (const Options& options :
         {Options{1, 1, 1}, Options{2, 3, 1}, Options{3, 6, 2}, Options{5, 64, 3},
          Options{32, 64, 16}, Options{4, 4, 64}, Options{never, 20, 2}})
      for (const PlainTask& task :
           {PlainTask{{1, 2, 3, 4, 5}, 12, 12, 12}, PlainTask{{9, 3}, 9, 9, 9},
            PlainTask{{5}, 1, 1, 1}, PlainTask{{3, 1, 4}, 8, 4, 4}}) {
        CAPTURE(seed, shift, options.cycle, options.window, options.active, task.response);
        PlainWindowDiffusion plain(options.cycle, options.window, options.active);
        const auto in_pass =
            require_alike(WindowDiffusionPolicy{options.cycle, options.window, options.active},
                          plain, task, shift);
        for (std::size_t step = 0; step < in_pass.size(); ++step)
          CHECK((in_pass[step].size() ==
                 task.prompt.size() + static_cast<std::size_t>(task.response)) ==
                (static_cast<Index>(step) % options.cycle == 0));
      }
}

TEST_CASE("Policies: EntropyCache gives what its definition gives, bit for bit",
          "[policies][property]") {
  for (const Index shift : {0, 1}) {
    Index full = 0, steps = 0;
    for (const double threshold : {0.0, 0.8, 1.2, 100.0})
      for (const Index recent : {0, 1, 3, 100})
        for (const PlainTask& task :
             {PlainTask{{1, 2, 3, 4, 5}, 12, 4, 4}, PlainTask{{9, 3}, 10, 5, 3},
              PlainTask{{5}, 7, 7, 7}, PlainTask{{8, 9, 8}, 12, 6, 1, 0.4}}) {
          CAPTURE(seed, shift, threshold, recent, task.response);
          PlainEntropyCache plain(threshold, recent);
          const auto in_pass =
              require_alike(EntropyCachePolicy{threshold, recent}, plain, task, shift);
          for (const RowSet& rows : in_pass)
            if (rows.size() == task.prompt.size() + static_cast<std::size_t>(task.response)) ++full;
          steps += static_cast<Index>(in_pass.size());
        }
    CHECK(full > steps / 5);
    CHECK(full < steps * 4 / 5);
  }
}

TEST_CASE("Policies: SPA-Cache gives what its definition gives, bit for bit",
          "[policies][property]") {
  struct Case {
    SpaCachePolicy policy;
    Index layers;
  };
  const Case cases[] = {
      {{.prompt_interval = 5, .response_interval = 3}, 4},
      {{.prompt_interval = never, .response_interval = never, .peak_share = 0.6}, 3},
      {{.prompt_interval = 4,
        .response_interval = 2,
        .warmup_steps = 2,
        .peak_depth = 0.5,
        .peak_share = 1.0,
        .first_share = 0.2,
        .last_share = 0.9,
        .least_share = 0.5},
       5},
      {{.prompt_interval = 7, .peak_share = 0.9, .last_share = 0.5}, 1},
      {{.prompt_interval = 1}, 2},
  };
  for (const Case& one : cases)
    for (const Index shift : {0, 1})
      for (const Index response : {1, 2, 13, 32}) {
        SpaCachePolicy policy = one.policy;
        policy.proxy_rank = 0;  // whatever the small model has
        CAPTURE(seed, shift, response, one.layers, options_text(policy));
        const SequenceShape shape{.prompt = 4, .response = response, .prediction_shift = shift};
        const PlainShares shares{policy.peak_depth, policy.peak_share, policy.first_share,
                                 policy.last_share, policy.least_share};
        std::vector<Index> counts;
        for (Index layer = 0; layer < one.layers; ++layer)
          counts.push_back(static_cast<Index>(
              static_cast<double>(response) *
              shares.at(static_cast<double>(layer) / static_cast<double>(one.layers))));
        require_same_updates(
            policy, shape, one.layers, true,
            [&](Index step, const Tokens&) {
              const bool all = step <= policy.warmup_steps || step % policy.prompt_interval == 0;
              return PlainSelection{.prompt_due = all,
                                    .response_due = all || step % policy.response_interval == 0,
                                    .counts = counts};
            },
            seed + 1);
      }
}

TEST_CASE("Policies: SPA-Cache's shares are the published ones", "[policies]") {
  // `_split_gaussian_frequency` of the repository for LLaDA's and Dream's values.
  const SpaCachePolicy llada;
  const SpaCachePolicy dream{
      .peak_depth = 0.5, .peak_share = 0.3, .first_share = 0.05, .last_share = 0.25};
  const auto shares = [](const SpaCachePolicy& policy, Index layers) {
    std::vector<Index> counts;  // of 256 rows
    for (Index layer = 0; layer < layers; ++layer)
      counts.push_back(static_cast<Index>(
          256.0 * policy.share_at(static_cast<double>(layer) / static_cast<double>(layers))));
    return counts;
  };
  CHECK(shares(llada, 32) == std::vector<Index>{8,  9,  10, 12, 14, 16, 19, 22, 24, 27, 31,
                                                34, 37, 40, 44, 47, 50, 53, 56, 58, 60, 61,
                                                63, 63, 64, 63, 61, 58, 54, 49, 44, 38});
  CHECK(shares(dream, 28) == std::vector<Index>{12, 16, 20, 25, 30, 36, 42, 49, 55, 61,
                                                66, 70, 74, 76, 76, 76, 76, 76, 75, 75,
                                                74, 73, 72, 71, 69, 68, 67, 65});
  CHECK(llada.share_at(0.0) == 0.03125);
  CHECK(llada.share_at(0.75) == 0.25);
  CHECK(llada.share_at(1.0) == Approx(0.13));
  CHECK(dream.share_at(0.0) == Approx(0.05));
}

TEST_CASE("Policies: Dynamic-dLLM gives what its definition gives, bit for bit",
          "[policies][property]") {
  for (const Index shift : {0, 1})
    for (const Index response : {1, 2, 13, 32})
      for (const Index window : {0, 1, 4, 5, 32})
        for (const Index budget : {0, 1, 6, 32}) {
          CAPTURE(seed, shift, response, window, budget);
          const SequenceShape shape{.prompt = 4, .response = response, .prediction_shift = shift};
          require_same_updates(
              DynamicDllmPolicy{budget, window}, shape, 3, false,
              [&](Index step, const Tokens& text) {
                PlainSelection selection{.prompt_due = step == 0, .response_due = step == 0};
                for (const Index row : plain_window(text.last - shape.prompt, response, window))
                  selection.always.insert(shape.prompt + row);
                selection.counts.assign(3, budget);
                return selection;
              },
              seed + static_cast<std::uint64_t>(10 * window + budget));
        }
}

TEST_CASE("Policies: DPad keeps rows as likely as its normal density says", "[policies]") {
  const DPadPolicy published;
  CHECK(published.density(0) == Approx(0.7978845608028654).epsilon(1e-14));
  CHECK(published.density(1) == Approx(0.7977864034195692).epsilon(1e-14));
  CHECK(published.density(85) == Approx(0.3280201493519873).epsilon(1e-14));
  CHECK(published.density(255) == Approx(0.00026766045152977074).epsilon(1e-12));
  CHECK(published.density(256) == 0.0);
  const DPadPolicy small{.suffix_window = 5, .suffix_sigma = 2.0, .suffix_scale = 1.0};
  CHECK(small.density(3) == Approx(0.12951759566589174).epsilon(1e-14));
  CHECK(small.density(5) == 0.0);
  CHECK(DPadPolicy{.suffix_window = 1, .suffix_scale = 1.0}.density(0) ==
        Approx(0.3989422804014327).epsilon(1e-14));
  CHECK(DPadPolicy{.suffix_window = 0}.density(0) == 0.0);
}

TEST_CASE("Policies: DPad draws the same rows again, others with another seed or block",
          "[policies]") {
  const SequenceShape shape{.prompt = 8, .response = 2000};
  const auto hidden = [&](DPadPolicy policy, Range block, Index block_step = 0) {
    StepPlanner planner(policy, shape, 1);
    return planner.begin_step({.block = block, .block_step = block_step}).hidden;
  };
  const DPadPolicy policy{.suffix_window = 1000, .suffix_sigma = 1.0, .suffix_seed = 3};
  const Range block{8, 40};
  const auto drawn = hidden(policy, block);
  CHECK(hidden(policy, block) == drawn);
  CHECK(hidden(policy, block, 5) == drawn);
  DPadPolicy other = policy;
  other.suffix_seed = 4;
  CHECK(hidden(other, block) != drawn);
  CHECK(hidden(policy, {40, 72}) != drawn);
  // Neither the prompt nor the block is ever hidden, nothing behind the window is kept, and of the
  // rows in it as many are kept as the density says, within four standard deviations.
  double expected = 0.0, variance = 0.0;
  Index kept = 0;
  for (Index row = 0; row < shape.rows(); ++row) {
    const bool is_kept = drawn[static_cast<std::size_t>(row)] == 0;
    if (row < block.end) CHECK(is_kept);
    if (row >= block.end + 1000) CHECK_FALSE(is_kept);
    if (row < block.end || row >= block.end + 1000) continue;
    const double p = std::min(1.0, policy.density(row - block.end));
    expected += p;
    variance += p * (1.0 - p);
    if (is_kept) ++kept;
  }
  CHECK(std::abs(static_cast<double>(kept) - expected) < 4.0 * std::sqrt(variance));
  // A run that is dropped and goes on has the rows that it had.
  StepPlanner planner(policy, shape, 1);
  planner.begin_step({.block = block});
  planner.drop_step();
  CHECK(planner.begin_step({.block = block, .block_step = 3}).hidden == drawn);
}

TEST_CASE("Policies: what came later refuses bad options by policy, option, range and value",
          "[policies][refusal]") {
  const auto refusal_of = [](const AnyPolicy& policy,
                             SequenceShape shape = {.prompt = 2, .response = 3}) {
    return refused_argument([&] { static_cast<void>(policy.traits(shape)); });
  };
  CHECK(refusal_of(WindowDiffusionPolicy{.refresh_cycle = 0}) ==
        "policy window: refresh_cycle must be at least 1, got 0");
  CHECK(refusal_of(WindowDiffusionPolicy{.window_tokens = 0}) ==
        "policy window: window_tokens must be at least 1, got 0");
  CHECK(refusal_of(WindowDiffusionPolicy{.active_tokens = 0}) ==
        "policy window: active_tokens must be at least 1, got 0");
  CHECK(refusal_of(WindowDiffusionPolicy{}, {.response = 4, .attention_block = 2}) ==
        "policy window: attention_block must be 0, got 2");
  CHECK(refusal_of(SpaCachePolicy{.peak_depth = 1.0}) ==
        "policy spa: peak_depth must be in (0, 1), got 1");
  CHECK(refusal_of(SpaCachePolicy{.first_share = 0.25}) ==
        "policy spa: first_share and last_share must be below peak_share = 0.25, got 0.25");
  CHECK(refusal_of(SpaCachePolicy{.last_share = 0.5}) ==
        "policy spa: first_share and last_share must be below peak_share = 0.25, got 0.5");
  CHECK(refusal_of(SpaCachePolicy{.warmup_steps = -1}) ==
        "policy spa: warmup_steps must be at least 0, got -1");
  CHECK(refusal_of(DynamicDllmPolicy{.layer_budget = -1}) ==
        "policy dynamic: layer_budget must be at least 0, got -1");
  CHECK(refusal_of(EntropyCachePolicy{.entropy_threshold = -1.0}) ==
        "policy entropy: entropy_threshold must be at least 0, got -1");
  CHECK(refusal_of(DPadPolicy{.host_cache = 3}) ==
        "policy dpad: host_cache must be none, prefix or dual, got 3");
  CHECK(refusal_of(DPadPolicy{.kept_suffix = {{{3, 5}}}}) ==
        "policy dpad: kept_suffix must hold rows in [0, 5), got 5");
}
