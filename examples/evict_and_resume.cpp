// SPDX-License-Identifier: Apache-2.0
// Take a sequence out of a loop in the middle of its generation, put it into another one, go on.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/dllm_cache.hpp"

using namespace dllm_cache;

// [policy]
/// A full forward every `interval` steps, the active block alone in between.
struct BlockPolicy {
  Index interval = 8;

  // Written into a snapshot and compared when it is read: every member belongs in here.
  static void visit_options(auto& self, auto&& visit) {
    visit("interval", self.interval, at_least(1), "steps between full forwards");
  }

  PolicyTraits traits(const SequenceShape&) const { return {.name = "block", .needs_block = true}; }
  void plan(const StepContext& context, StepPlan& plan) const {
    const Range block = context.block;
    if (context.step % interval == 0)
      plan.recompute(context.live());
    else
      plan.recompute({block.begin - context.shape.prediction_shift, block.end});
  }
};
static_assert(CachePolicy<BlockPolicy> && VisitsOptions<BlockPolicy>);
// [policy]

namespace {

using Matrix = RowMajorMatrix<float>;

// A transformer with random weights: what is saved and restored does not depend on what it knows.
struct RandomModel {
  static constexpr Index width = 64, vocabulary = 256, mask = 255, rows = 64;
  struct Weights {
    Matrix value, query, key, up, down;
  };
  std::mt19937 engine{5};
  Matrix embedding = random(vocabulary, width, 1.0F), places = random(rows, width, 0.5F);
  std::vector<Weights> layers;

  explicit RandomModel(int count) {
    const float scale = 1.0F / std::sqrt(static_cast<float>(width));
    const auto square = [&] { return random(width, width, scale); };
    for (int i = 0; i < count; ++i)
      layers.push_back({square(), square(), square(), square(), square()});
  }
  Matrix random(Index row_count, Index cols, float scale) {
    std::normal_distribution<float> normal(0.0F, scale);
    return Matrix::NullaryExpr(row_count, cols, [&] { return normal(engine); });
  }
};

// The same as the denoising loop sees it; see wrap_your_layer.cpp for layers of another library.
struct WrappedModel {
  const RandomModel* model;
  ModelShape shape() const {
    return {static_cast<Index>(model->layers.size()), RandomModel::width, RandomModel::width,
            RandomModel::width};
  }
  Index vocabulary() const { return RandomModel::vocabulary; }
  Index prediction_shift() const { return 0; }
  SpecialTokens special_tokens() const { return {.mask = RandomModel::mask}; }
  void embed(std::span<const std::int32_t> tokens, MatrixView<float> x) const {
    for (std::size_t i = 0; i < tokens.size(); ++i)
      as_eigen(x).row(static_cast<Index>(i)) = model->embedding.row(tokens[i]);
  }
  void logits(MatrixView<const float> x, MatrixView<float> logits) const {
    as_eigen(logits) = as_eigen(x) * model->embedding.transpose();
  }
  auto layer(Index number) const {
    const auto& weights = model->layers[static_cast<std::size_t>(number)];
    return make_layer(
        [&weights](MatrixView<const float> x, MatrixView<float> v) {
          as_eigen(v) = as_eigen(x) * weights.value;
        },
        [&weights, places = &model->places](MatrixView<const float> x,
                                            std::span<const std::int32_t> positions,
                                            MatrixView<float> q, MatrixView<float> k) {
          as_eigen(q) = as_eigen(x) * weights.query;
          as_eigen(k) = as_eigen(x) * weights.key;
          for (Index row = 0; row < x.rows; ++row) {
            const auto place = places->row(positions[static_cast<std::size_t>(row)]);
            as_eigen(q).row(row) += place;
            as_eigen(k).row(row) += place;
          }
        },
        [&weights](MatrixView<const float> x, MatrixView<const float> q,
                   std::span<const Segment<float>> segments, MatrixView<float> u) {
          for (const auto& part : segments) {
            const Index count = part.end - part.begin;
            Matrix scores = as_eigen(q.middle_rows(part.begin, count)) *
                            as_eigen(part.keys).transpose() / std::sqrt(static_cast<float>(x.cols));
            scores = scores.array().exp();
            scores.array().colwise() /= scores.array().rowwise().sum().eval();
            as_eigen(u).middleRows(part.begin, count) = scores * as_eigen(part.values);
          }
          const Matrix inner = ((as_eigen(x) + as_eigen(u)) * weights.up).array().tanh();
          as_eigen(u) += inner * weights.down;
        });
  }
};
using Loop = DenoisingLoop<WrappedModel>;

struct Job {
  std::vector<std::int32_t> prompt;
  DecodingOptions options;
  AnyPolicy policy;
};

// [resume]
// Takes `steps` steps, saves the sequence and gives its features back.
std::vector<std::byte> evict_after(Loop& loop, const Job& job, int steps) {
  const Index id = loop.add(job.prompt, job.options, job.policy);
  for (int step = 0; step < steps; ++step) loop.step();
  std::vector<std::byte> memory;  // a std::ostream or a function that takes bytes serves as well
  loop.save(id, memory);
  loop.stop(id);
  loop.release(id);
  return memory;
}

// Continues where it stopped, in a loop that may be of another process: the same model, policy and
// options of the policy; the options of decoding are in the snapshot.
Index resume(Loop& loop, const std::vector<std::byte>& memory, const Job& job) {
  return loop.restore(memory, job.policy);
}
// [resume]

std::vector<std::int32_t> answer(const Loop& loop, Index id) {
  const auto response = loop.sequence(id).response();
  return {response.begin(), response.end()};
}

// Whether a policy with other options is refused, as it must be: its features are not these.
bool refused(Loop& loop, const std::vector<std::byte>& memory, const AnyPolicy& policy) {
  try {
    loop.restore(memory, policy);
  } catch (const std::runtime_error& error) {
    std::printf("refused: %s\n", error.what());
    return true;
  }
  return false;
}

}  // namespace

int main() {
  const RandomModel random(4);
  WrappedModel model{&random};
  Job job{{}, {.response = 32, .block_length = 16, .temperature = 0.7, .seed = 3}, BlockPolicy{}};
  for (std::int32_t i = 0; i < 24; ++i) job.prompt.push_back(5 + 7 * i % 250);

  Loop whole(model);
  whole.add(job.prompt, job.options, job.policy);
  whole.run();

  Loop first(model);
  const std::vector<std::byte> memory = evict_after(first, job, 13);
  Loop second(model);
  second.add(job.prompt, {.response = 8}, DllmCachePolicy{});  // others may run beside it
  const Index id = resume(second, memory, job);
  const Index resumed_at = second.sequence(id).step();
  second.run();

  const bool same = answer(second, id) == answer(whole, 0);
  std::printf("%zu bytes after step %td of %td, features held by the first loop: %td bytes\n",
              memory.size(), resumed_at, second.sequence(id).step(), first.cache_bytes(0));
  std::printf("tokens of the resumed run: %s\n", same ? "the same" : "different");
  const bool careful = refused(second, memory, BlockPolicy{.interval = 4});
  return same && careful && first.cache_bytes(0) == 0 && second.counts(id) == whole.counts(0)
             ? EXIT_SUCCESS
             : EXIT_FAILURE;
}
