// SPDX-License-Identifier: Apache-2.0
// A runtime that knows nothing of this library: its own matrices, its own layers written for whole
// sequences. Three lambdas a layer wrap it; the library's denoising loop then runs it, cached.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/dllm_cache.hpp"

// ---- The foreign runtime ---------------------------------------------------------------------
namespace foreign {

struct Matrix {
  int rows = 0, cols = 0;
  std::vector<float> data;
  float* operator[](int row) { return data.data() + row * cols; }
  const float* operator[](int row) const { return data.data() + row * cols; }
};

Matrix random_matrix(int rows, int cols, std::mt19937& engine) {
  std::normal_distribution<float> normal(0.0F, 1.0F / std::sqrt(static_cast<float>(cols)));
  Matrix matrix{rows, cols, std::vector<float>(static_cast<std::size_t>(rows * cols))};
  for (float& one : matrix.data) one = normal(engine);
  return matrix;
}

// out = weights * in, for one row.
void project(const Matrix& weights, const float* in, float* out) {
  for (int row = 0; row < weights.rows; ++row) {
    out[row] = 0.0F;
    for (int col = 0; col < weights.cols; ++col) out[row] += weights[row][col] * in[col];
  }
}

// Turns pairs of neighbouring dimensions by the row's position.
void rotate(float* row, int width, int position) {
  for (int i = 0; i < width; i += 2) {
    const float angle = static_cast<float>(position) /
                        std::pow(100.0F, static_cast<float>(i) / static_cast<float>(width));
    const float a = row[i], b = row[i + 1];
    row[i] = a * std::cos(angle) - b * std::sin(angle);
    row[i + 1] = a * std::sin(angle) + b * std::cos(angle);
  }
}

struct Layer {
  Matrix query, key, value, output, up, down;
};

struct Model {
  static constexpr int width = 32, kv_width = 32, hidden = 64, vocabulary = 48, mask = 47;
  Matrix embedding;
  std::vector<Layer> layers;

  explicit Model(int layer_count) {
    std::mt19937 engine(11);
    embedding = random_matrix(vocabulary, width, engine);
    for (float& one : embedding.data) one *= std::sqrt(static_cast<float>(width));
    for (int i = 0; i < layer_count; ++i)
      layers.push_back(
          {random_matrix(width, width, engine), random_matrix(kv_width, width, engine),
           random_matrix(kv_width, width, engine), random_matrix(width, kv_width, engine),
           random_matrix(hidden, width, engine), random_matrix(width, hidden, engine)});
  }
};

}  // namespace foreign

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
  RowCounts rows;
};

// [loop]
Run run(const Model& model, const AnyPolicy& policy) {
  ForeignModel wrapped{&model};
  DenoisingLoop<ForeignModel> loop(wrapped);
  const std::vector<std::int32_t> prompt = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3};
  const Index id = loop.add(prompt, {.response = 24, .block_length = 8}, policy);
  loop.run();  // or step(), until it returns false
  const auto response = loop.sequence(id).response();
  return {{response.begin(), response.end()}, loop.counts(id)};
}
// [loop]

}  // namespace

int main() {
  const Model model(4);
  const Run plain = run(model, NoCache{});
  const Run due = run(model, DllmCachePolicy{.prompt_interval = 1, .response_interval = 1});
  const Run cached = run(model, DllmCachePolicy{.prompt_interval = 12, .response_interval = 4});
  std::size_t equal = 0;
  for (std::size_t i = 0; i < plain.tokens.size(); ++i)
    equal += cached.tokens[i] == plain.tokens[i] ? 1U : 0U;
  std::printf("uncached: %td rows recomputed\n", plain.rows.update);
  std::printf("cached:   %td rows recomputed, %zu of %zu tokens the same\n", cached.rows.update,
              equal, plain.tokens.size());
  // A cache that is always due is no cache: anything else is a mistake in the wrapping.
  if (due.tokens != plain.tokens) {
    std::fprintf(stderr, "a cache that is always due must give the uncached tokens\n");
    return EXIT_FAILURE;
  }
  return cached.rows.update < plain.rows.update ? EXIT_SUCCESS : EXIT_FAILURE;
}
