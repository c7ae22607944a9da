// SPDX-License-Identifier: Apache-2.0
// A runtime that keeps features in memory of its own, as one on a GPU does. It takes lists of rows
// from the library and carries out whole steps: under the library's denoising loop, or with a loop
// of its own around the plans.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <utility>
#include <vector>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/dllm_cache.hpp"

using namespace dllm_cache;

namespace {

using Matrix = RowMajorMatrix<float>;
using Rows = std::span<const std::int32_t>;

// What a device does with index lists.
Matrix get_rows(const Matrix& from, Rows rows) {
  Matrix to(static_cast<Index>(rows.size()), from.cols());
  for (std::size_t i = 0; i < rows.size(); ++i) to.row(static_cast<Index>(i)) = from.row(rows[i]);
  return to;
}
void set_rows(Matrix& to, Rows rows, const Matrix& from) {
  for (std::size_t i = 0; i < rows.size(); ++i) to.row(rows[i]) = from.row(static_cast<Index>(i));
}

// Stands for the device: the weights of a model without a feed-forward part, to keep it short.
class Device {
 public:
  static constexpr Index layers = 4, width = 24, tokens = 40;
  static constexpr std::int32_t mask = 39;

  Device() {
    std::mt19937 engine(5);
    std::normal_distribution<float> normal(0.0F, 1.0F / std::sqrt(static_cast<float>(width)));
    const auto random = [&](Index rows) {
      return Matrix(Matrix::NullaryExpr(rows, width, [&] { return normal(engine); }));
    };
    m_embedding = random(tokens) * 4.0F;
    for (Index layer = 0; layer < layers; ++layer)
      m_layers.push_back({random(width), random(width), random(width)});
  }

  // [model]
  // The features of a sequence, where the device has its memory.
  struct Features {
    struct Layer {
      Matrix keys, values, deltas;
    };
    std::vector<Layer> layers;
  };
  Features make_features(const SequenceShape& shape, const PolicyTraits&) const {
    const Matrix none = Matrix::Zero(shape.rows(), width);
    return {std::vector<Features::Layer>(layers, {none, none, none})};
  }

  ModelShape shape() const { return {layers, width, width, width}; }
  Index vocabulary() const { return tokens; }
  Index prediction_shift() const { return 0; }
  SpecialTokens special_tokens() const { return {.mask = mask}; }

  // Carries out a step of every sequence; logits [wanted rows of all, vocabulary].
  void forward(std::span<SequenceStep<Features>> batch, MatrixView<float> logits) {
    Index first = 0;
    for (const SequenceStep<Features>& step : batch) {
      Matrix x = embed(step.tokens, step.lists->positions);
      for (Index layer = 0; layer < layers; ++layer)
        run_layer(layer, *step.lists, step.features->layers[static_cast<std::size_t>(layer)], x);
      const Matrix wanted = get_rows(x, step.wanted);
      as_eigen(logits.middle_rows(first, wanted.rows())) = wanted * m_embedding.transpose();
      first += wanted.rows();
    }
  }
  // [model]

 private:
  struct Weights {
    Matrix key, value, output;
  };

  Matrix embed(Rows ids, Rows positions) const {
    Matrix x = get_rows(m_embedding, ids);
    for (Index row = 0; row < x.rows(); ++row)
      for (Index d = 0; d < width; ++d)
        x(row, d) +=
            0.5F * std::sin(static_cast<float>(positions[static_cast<std::size_t>(row)] * (d + 1)));
    return x;
  }

  // [layer]
  void run_layer(Index number, const StepLists& lists, Features::Layer& kept, Matrix& x) const {
    const Weights& weights = m_layers[static_cast<std::size_t>(number)];
    const ComputedRows& rows = lists.of(number);
    // Values of the verified and the recomputed rows: one product, compared before they are kept.
    const Matrix v = get_rows(x, rows.places) * weights.value;
    const std::vector<Index> selected = select(v, kept.values, rows, lists);
    set_rows(kept.values, rows.rows, v);
    // Rows to recompute: those selected, and those that the plan wants in any case.
    std::vector<std::int32_t> places(rows.recomputed_places().begin(),
                                     rows.recomputed_places().end());
    std::vector<std::int32_t> numbers(rows.recomputed_rows().begin(), rows.recomputed_rows().end());
    for (const Index one : selected) {
      places.push_back(rows.places[static_cast<std::size_t>(one)]);
      numbers.push_back(rows.rows[static_cast<std::size_t>(one)]);
    }
    const Matrix chosen = get_rows(x, places);
    set_rows(kept.keys, numbers, chosen * weights.key);
    set_rows(kept.deltas, numbers, attend(chosen, kept) * weights.output);
    x += get_rows(kept.deltas, lists.rows);  // of all rows in the pass, as they are kept now
  }
  // [layer]

  // The rule, on the host here; a device has it as a kernel (docs/selection-rule.md).
  static std::vector<Index> select(const Matrix& fresh, const Matrix& values,
                                   const ComputedRows& rows, const StepLists& lists) {
    std::vector<SimilaritySums> sums;
    for (Index i = 0; i < rows.verified; ++i) {
      const auto old = values.row(rows.rows[static_cast<std::size_t>(i)]);
      sums.push_back({fresh.row(i).dot(old), fresh.row(i).squaredNorm(), old.squaredNorm()});
    }
    std::vector<Index> selected;
    if (rows.verified > 0)
      LeastSimilarRows().select(sums, lists.verify_count, lists.similarity_threshold, selected);
    return selected;
  }

  static Matrix attend(const Matrix& queries, const Features::Layer& kept) {
    Matrix scores = queries * kept.keys.transpose() / std::sqrt(static_cast<float>(width));
    scores = (scores.colwise() - scores.rowwise().maxCoeff()).array().exp();
    return (scores.array().colwise() / scores.rowwise().sum().array()).matrix() * kept.values;
  }

  Matrix m_embedding;
  std::vector<Weights> m_layers;
};

struct Run {
  std::vector<std::int32_t> response;
  Index recomputed = 0;
};

const DecodingOptions decoding{.response = 24, .block_length = 8};

// [loop]
// The library's loop over whole steps: its rules, guidance, batches and reports.
Run run_loop(Device& device, const std::vector<std::int32_t>& prompt, const AnyPolicy& policy) {
  DenoisingLoop<Device> loop(device);
  const Index id = loop.add(prompt, decoding, policy);
  loop.run();
  const auto response = loop.sequence(id).response();
  return {{response.begin(), response.end()}, loop.counts(id).recomputed};
}
// [loop]

// [alone]
// The same with a loop of one's own: plans, tokens and commits are the library's, what happens in
// between is not.
Run run_alone(Device& device, const std::vector<std::int32_t>& prompt, const AnyPolicy& policy) {
  SequenceState state(prompt, decoding, device.special_tokens());
  const SequenceShape shape{.prompt = static_cast<Index>(prompt.size()),
                            .response = decoding.response};
  StepPlanner planner(policy, shape, Device::layers);
  StepLists lists;
  Sampler sampler;
  Device::Features features = device.make_features(shape, planner.traits());
  Run run;
  while (!state.finished()) {
    planner.begin_step(
        {.block = state.block(), .block_step = state.block_steps(), .masked = state.masked()});
    lists.assign(planner);
    std::vector<std::int32_t> tokens, wanted;
    for (std::size_t place = 0; place < lists.rows.size(); ++place) {
      tokens.push_back(state.tokens()[static_cast<std::size_t>(lists.rows[place])]);
      if (state.is_candidate(lists.rows[place])) wanted.push_back(static_cast<std::int32_t>(place));
    }
    Matrix logits(static_cast<Index>(wanted.size()), device.vocabulary());
    SequenceStep<Device::Features> step{&features, &lists, tokens, wanted};
    device.forward(std::span(&step, 1), as_view(logits));
    planner.commit_step();  // drop_step() where it broke off: the next step recomputes everything
    run.recomputed += lists.counts().recomputed;
    std::vector<Prediction> predictions;
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      const Index row = lists.rows[static_cast<std::size_t>(wanted[i])];
      const std::span<float> scores(logits.row(static_cast<Index>(i)).data(),
                                    static_cast<std::size_t>(logits.cols()));
      predictions.push_back(
          sampler.sample(row, scores, state.sampling_rule(), state.random_key(row)));
    }
    state.commit(predictions);
  }
  run.response.assign(state.response().begin(), state.response().end());
  return run;
}
// [alone]

}  // namespace

int main() {
  std::vector<std::int32_t> prompt(12);
  for (std::size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<std::int32_t>(7 * i % 31);
  Device device;
  const AnyPolicy policy = DllmCachePolicy{.prompt_interval = 25, .response_interval = 5};
  const Run plain = run_loop(device, prompt, NoCache{});
  const Run cached = run_loop(device, prompt, policy);
  const Run alone = run_alone(device, prompt, policy);
  std::size_t equal = 0;
  for (std::size_t i = 0; i < plain.response.size(); ++i)
    equal += cached.response[i] == plain.response[i] ? 1U : 0U;
  std::printf("uncached: %td rows recomputed\n", plain.recomputed);
  std::printf("cached:   %td rows recomputed, %zu of %zu tokens the same\n", cached.recomputed,
              equal, plain.response.size());
  const bool same = alone.response == cached.response && alone.recomputed == cached.recomputed;
  std::printf("a loop of its own: %s\n", same ? "the same" : "something else");
  return same && cached.recomputed < plain.recomputed ? EXIT_SUCCESS : EXIT_FAILURE;
}
