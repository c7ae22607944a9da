// SPDX-License-Identifier: Apache-2.0
// A runtime that knows nothing of this library (foreign_runtime.hpp), wrapped: three lambdas a
// layer. The library's denoising loop runs it, cached, and so does a loop of its own.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/dllm_cache.hpp"
#include "dllm_cache/policies/dual_cache.hpp"
#include "dllm_cache/policies/presets.hpp"
#include "foreign_runtime.hpp"

// ---- What its author writes to use the cache ----------------------------------------------------
using namespace dllm_cache;
using foreign::Model;

// [readme]
auto wrap(const foreign::Layer& layer) {
  return make_layer(
      [&layer](MatrixView<const float> x, MatrixView<float> v) {
        for (Index row = 0; row < x.rows; ++row)
          foreign::project(layer.value, x.row(row), v.row(row));
      },
      [&layer](MatrixView<const float> x, std::span<const std::int32_t> positions,
               MatrixView<float> q, MatrixView<float> k) {
        for (Index row = 0; row < x.rows; ++row) {
          foreign::project(layer.query, x.row(row), q.row(row));
          foreign::project(layer.key, x.row(row), k.row(row));
          foreign::rotate(q.row(row), Model::width, positions[static_cast<std::size_t>(row)]);
          foreign::rotate(k.row(row), Model::kv_width, positions[static_cast<std::size_t>(row)]);
        }
      },
      [&layer](MatrixView<const float> x, MatrixView<const float> q,
               std::span<const Segment<float>> segments, MatrixView<float> u) {
        for (const auto& segment : segments)
          for (Index row = segment.begin; row < segment.end; ++row) {
            // Attention over the keys of the segment: as many as it has, wherever they come from.
            std::vector<float> attended(Model::kv_width, 0.0F), h(Model::width), up(Model::hidden);
            float sum = 0.0F;
            for (Index key = 0; key < segment.keys.rows; ++key) {
              float score = 0.0F;
              for (int i = 0; i < Model::width; ++i)
                score += q.row(row)[i] * segment.keys.row(key)[i];
              const float weight = std::exp(score / std::sqrt(static_cast<float>(Model::width)));
              sum += weight;
              for (std::size_t i = 0; i < attended.size(); ++i)
                attended[i] += weight * segment.values.row(key)[i];
            }
            for (float& one : attended) one /= sum;
            foreign::project(layer.output, attended.data(), u.row(row));
            for (std::size_t i = 0; i < h.size(); ++i) h[i] = x.row(row)[i] + u.row(row)[i];
            foreign::project(layer.up, h.data(), up.data());
            for (float& one : up) one = std::tanh(one);
            foreign::project(layer.down, up.data(), h.data());
            for (std::size_t i = 0; i < h.size(); ++i) u.row(row)[i] += h[i];
          }
      });
}

struct ForeignModel {  // the seven functions that the loop asks of a model
  const Model* weights;
  ModelShape shape() const {
    return {static_cast<Index>(weights->layers.size()), Model::width, Model::width,
            Model::kv_width};
  }
  Index vocabulary() const { return Model::vocabulary; }
  Index prediction_shift() const { return 0; }
  SpecialTokens special_tokens() const { return {.mask = Model::mask}; }
  void embed(std::span<const std::int32_t> tokens, MatrixView<float> x) const {
    for (std::size_t i = 0; i < tokens.size(); ++i)
      std::copy_n(weights->embedding[tokens[i]], Model::width, x.row(static_cast<Index>(i)));
  }
  auto layer(Index number) const { return wrap(weights->layers[static_cast<std::size_t>(number)]); }
  void logits(MatrixView<const float> x, MatrixView<float> logits) const {
    for (Index row = 0; row < x.rows; ++row)
      project(weights->embedding, x.row(row), logits.row(row));
  }
};
// [readme]

namespace {

struct Run {
  std::vector<std::int32_t> tokens;
  DecodingCounts rows;
};

const std::vector<std::int32_t> prompt = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3};

// [loop]
Run run(const Model& model, const AnyPolicy& policy) {
  ForeignModel wrapped{&model};
  DenoisingLoop<ForeignModel> loop(wrapped);
  const Index id = loop.add(prompt, {.response = 24, .block_length = 8}, policy);
  loop.run();  // or step(), until it returns false
  const auto response = loop.sequence(id).response();
  return {{response.begin(), response.end()}, loop.counts(id)};
}
// [loop]

// [by_hand]
// The hidden states of the rows in a pass: embedded, then taken through all layers.
RowMajorMatrix<float> run_layers(const ForeignModel& model, Workspace<float>::PassType& pass,
                                 const std::vector<std::int32_t>& tokens) {
  std::vector<std::int32_t> in_pass;
  for (const Index row : pass.rows()) in_pass.push_back(tokens[static_cast<std::size_t>(row)]);
  RowMajorMatrix<float> x(pass.row_count(), model.shape().width);
  model.embed(in_pass, as_view(x));
  for (Index layer = 0; layer < model.shape().layers; ++layer)
    pass.layer(model.layer(layer), as_view(x));
  return x;
}

// A loop of its own around a cache: commits the surest token of the active block in each step.
Run run_by_hand(const ForeignModel& model, const AnyPolicy& policy, Index response,
                Index block_length) {
  const auto prompt_rows = static_cast<Index>(prompt.size()), rows = prompt_rows + response;
  const std::int32_t mask = model.special_tokens().mask;
  FeatureCache<float> cache(model.shape(), {.prompt = prompt_rows, .response = response}, policy);
  Workspace<float> workspace;  // one for all caches of a thread
  std::vector<std::int32_t> tokens = prompt;
  tokens.resize(static_cast<std::size_t>(rows), mask);
  std::vector<std::uint8_t> masked(tokens.size(), 0), changed(tokens.size(), 0);
  std::fill(masked.begin() + prompt_rows, masked.end(), std::uint8_t{1});
  RowMajorMatrix<float> logits(1, model.vocabulary());
  for (Range block{prompt_rows, 0}; block.begin < rows; block.begin = block.end) {
    block.end = std::min(rows, block.begin + block_length);
    for (Index step = 0; step < block.size(); ++step) {
      auto pass = workspace.begin_step(
          cache, {.block = block, .block_step = step, .masked = masked, .changed = changed});
      const RowMajorMatrix<float> x = run_layers(model, pass, tokens);
      std::fill(changed.begin(), changed.end(), std::uint8_t{0});  // since the last step
      float surest = 0.0F;
      std::size_t place_of_surest = 0;
      std::int32_t token = mask;
      for (Index row = block.begin; row < block.end; ++row) {
        const std::optional<Index> place = pass.find(row);  // none: not in this pass
        if (!place || masked[static_cast<std::size_t>(row)] == 0) continue;
        model.logits(as_view(x).middle_rows(*place, 1), as_view(logits));
        Index best = 0;
        const float largest = logits.row(0).maxCoeff(&best);
        const float confidence = 1.0F / (logits.row(0).array() - largest).exp().sum();
        if (confidence <= surest) continue;
        surest = confidence;
        place_of_surest = static_cast<std::size_t>(row);
        token = static_cast<std::int32_t>(best);
      }
      if (surest == 0.0F) continue;  // none was in the pass: nothing to commit
      tokens[place_of_surest] = token;
      masked[place_of_surest] = token == mask;
      changed[place_of_surest] = token != mask;  // tells the policy what to look at
    }
  }
  return {{tokens.begin() + prompt_rows, tokens.end()}, {cache.counts()}};
}
// [by_hand]

// [check]
// The first test of a wrapping: a step over all rows, then one over a block in the middle, on the
// same tokens. Its rows read the keys that the first step left in the cache, under positions with
// gaps around them, and must come out as they did.
float largest_difference(const ForeignModel& model) {
  const std::vector<std::int32_t>& tokens = prompt;
  const Range block{5, 9};
  FeatureCache<float> cache(model.shape(), {.response = static_cast<Index>(tokens.size())},
                            DualCachePolicy{});
  Workspace<float> workspace;
  auto all = workspace.begin_step(cache, {.block = block, .block_step = 0});
  const RowMajorMatrix<float> whole = run_layers(model, all, tokens);
  auto some = workspace.begin_step(cache, {.block = block, .block_step = 1});
  const RowMajorMatrix<float> part = run_layers(model, some, tokens);
  return (whole.middleRows(block.begin, block.size()) - part).cwiseAbs().maxCoeff();
}
// [check]

}  // namespace

int main() {
  const Model model(4);
  const Run plain = run(model, NoCache{}), cached = run(model, balanced_policy());
  const Run by_hand = run_by_hand({&model}, balanced_policy(), 24, 8);
  std::size_t equal = 0;
  for (std::size_t i = 0; i < plain.tokens.size(); ++i)
    equal += cached.tokens[i] == plain.tokens[i] ? 1U : 0U;
  std::printf("uncached: %td rows recomputed\n", plain.rows.recomputed);
  std::printf("cached:   %td rows recomputed, %zu of %zu tokens the same\n", cached.rows.recomputed,
              equal, plain.tokens.size());
  const auto fail = [](const char* what) {
    std::fprintf(stderr, "wrap_your_layer: %s\n", what);
    return EXIT_FAILURE;
  };
  // Of states of size 10 or so: rounding alone. A row at a wrong place differs by ones.
  if (!(largest_difference({&model}) < 1e-5F))
    return fail("a row depends on which others are in the pass");
  if (by_hand.tokens != cached.tokens || by_hand.rows.recomputed != cached.rows.recomputed)
    return fail("both loops must do the same");
  if (cached.rows.recomputed >= plain.rows.recomputed) return fail("the cache must save rows");
  return EXIT_SUCCESS;
}
