// SPDX-License-Identifier: Apache-2.0
// One const model, many threads. Built by preset `tsan` alone, under the thread sanitizer.
#include <catch2/catch.hpp>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/models/load_model.hpp"
#include "dllm_cache/policies/dkv_decode.hpp"
#include "dllm_cache/policies/dllm_cache.hpp"
#include "dllm_cache/policies/dual_cache.hpp"

using namespace dllm_cache;

namespace {

constexpr std::size_t threads = 4;

std::shared_ptr<const models::TransformerModel> load(const char* name) {
  return models::load_model(std::filesystem::path(DLLM_CACHE_TEST_DATA) / "models" / name,
                            {.backend = models::Backend::Eigen});
}

// Calls `work(thread)` on so many threads at once. Catch is left to the thread of the test.
template <class Work>
void on_threads(const Work& work) {
  std::vector<std::thread> all;
  for (std::size_t i = 0; i < threads; ++i) all.emplace_back([&work, i] { work(i); });
  for (std::thread& one : all) one.join();
}

// All tokens after each step, and the logits of each row.
struct Answer {
  std::vector<std::vector<std::int32_t>> tokens;
  std::vector<std::vector<float>> logits;
  friend bool operator==(const Answer&, const Answer&) = default;
};

// Another prompt, policy and set of options for each thread, and more than one sequence in a loop.
Answer generate(const std::shared_ptr<const models::TransformerModel>& model, std::size_t number) {
  const AnyPolicy policies[threads] = {DllmCachePolicy{6, 3, 0.25}, DualCachePolicy{}, NoCache{},
                                       DkvDecodePolicy{3}};
  models::TransformerRunner runner(model, 1);
  DenoisingLoop<models::TransformerRunner> loop(runner);
  Answer answer;
  loop.observer.on_logits = [&](Index, Index, std::span<const float> logits) {
    answer.logits.emplace_back(logits.begin(), logits.end());
  };
  for (std::int32_t i = 0; i < 2; ++i) {
    const std::vector<std::int32_t> prompt(4 + number, 7 * i + static_cast<std::int32_t>(number));
    loop.add(prompt,
             {.response = 12,
              .block_length = 6,
              .temperature = i == 0 ? 0.0 : 0.7,
              .guidance_scale = number == 0 ? 1.0 : 0.0,
              .guidance_interval = 3,
              .seed = number},
             policies[(number + static_cast<std::size_t>(i)) % threads]);
  }
  loop.run([&](const StepReport& report) {
    answer.tokens.emplace_back(report.tokens.begin(), report.tokens.end());
  });
  return answer;
}

}  // namespace

TEST_CASE("Threads: generations that share a model each say what they say alone", "[threads]") {
  for (const char* name : {"llada-tiny", "dream-tiny"}) {
    CAPTURE(name);
    const auto model = load(name);
    std::vector<Answer> alone, together(threads);
    for (std::size_t i = 0; i < threads; ++i) alone.push_back(generate(model, i));
    on_threads([&](std::size_t i) { together[i] = generate(model, i); });
    for (std::size_t i = 0; i < threads; ++i) CHECK(together[i] == alone[i]);
    CHECK_FALSE(alone[0] == alone[1]);
  }
}

TEST_CASE("Threads: a cache goes on in the hands of another thread", "[threads]") {
  // Each thread has a workspace and a runner, and steps a cache that another one stepped before.
  const auto model = load("llada-tiny");
  const models::TransformerRunner widths(model, 1);
  using Cache = FeatureCache<float, Eigen::bfloat16>;
  const auto step = [&](Cache& cache, std::size_t salt) {
    models::TransformerRunner runner(model, 1);
    Workspace<float, Eigen::bfloat16> workspace;
    auto pass = workspace.begin_step(cache);
    const Index width = runner.shape().width;
    std::vector<std::int32_t> tokens;
    for (const Index row : pass.rows())
      tokens.push_back(static_cast<std::int32_t>((row * 5 + static_cast<Index>(salt)) % 90));
    std::vector<float> hidden(static_cast<std::size_t>((pass.row_count() + 64) * width));
    const MatrixView<float> x = dense_view(hidden.data(), pass.row_count(), width);
    runner.embed(tokens, x);
    for (Index layer = 0; layer < runner.shape().layers; ++layer)
      pass.layer(runner.layer(layer), x);
    return hidden;
  };
  const auto make_caches = [&] {
    std::vector<Cache> caches;
    for (std::size_t i = 0; i < threads; ++i)
      caches.emplace_back(widths.shape(),
                          SequenceShape{.prompt = 3, .response = 6 + static_cast<Index>(i)},
                          DllmCachePolicy{4, 3, 0.5});
    return caches;
  };
  std::vector<Cache> alone = make_caches(), shared = make_caches();
  for (std::size_t round = 0; round < 5; ++round) {
    std::vector<std::vector<float>> together(threads);
    on_threads([&](std::size_t i) {
      const std::size_t cache = (i + round) % threads;
      together[cache] = step(shared[cache], cache + round);
    });
    for (std::size_t i = 0; i < threads; ++i) CHECK(together[i] == step(alone[i], i + round));
  }
}
