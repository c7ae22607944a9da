// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <random>
#include <vector>

// A runtime that knows nothing of the library: matrices and layers of its own.
namespace foreign {

struct Matrix {
  int rows = 0, cols = 0;
  std::vector<float> data;
  float* operator[](int row) { return data.data() + row * cols; }
  const float* operator[](int row) const { return data.data() + row * cols; }
};

inline Matrix random_matrix(int rows, int cols, std::mt19937& engine) {
  std::normal_distribution<float> normal(0.0F, 1.0F / std::sqrt(static_cast<float>(cols)));
  Matrix matrix{rows, cols, std::vector<float>(static_cast<std::size_t>(rows * cols))};
  for (float& one : matrix.data) one = normal(engine);
  return matrix;
}

// out = weights * in, for one row.
inline void project(const Matrix& weights, const float* in, float* out) {
  for (int row = 0; row < weights.rows; ++row) {
    out[row] = 0.0F;
    for (int col = 0; col < weights.cols; ++col) out[row] += weights[row][col] * in[col];
  }
}

// Turns pairs of neighbouring dimensions by the row's position.
inline void rotate(float* row, int width, int position) {
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
