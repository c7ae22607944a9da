// SPDX-License-Identifier: Apache-2.0
// The attention of the bundled models on its own, for a runtime that has none over separate
// matrices of keys and values. Needs Eigen alone; checked against a plain attention.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <random>
#include <span>
#include <vector>

#include "dllm_cache/eigen.hpp"
#include "dllm_cache/models/compute/attention.hpp"

using namespace dllm_cache;

namespace {

// [readme]
// out [m, heads * head_dim] = softmax(q k^T / sqrt(head_dim)) v, as a `delta` callback wants it.
class MyAttention {
 public:
  explicit MyAttention(int threads)
      : m_team(threads), m_attention({models::Backend::Eigen}, m_team) {}

  MatrixView<const float> attend(MatrixView<const float> q,
                                 std::span<const Segment<float>> segments,
                                 const models::HeadShape& heads) {
    m_out.resize(q.rows, q.cols, q.rows, false);  // false: rows of floats
    m_attention.attend(q, segments, heads, m_out);
    return m_out.floats();
  }

 private:
  models::ThreadTeam m_team;      // threads of OpenMP where the program is built with it
  models::Attention m_attention;  // one for each thread that calls it
  models::ProductInput m_out;     // memory that is kept from call to call
};
// [readme]

// The same in the plainest way, of one row and one head.
void attend_plainly(const float* q, MatrixView<const float> keys, MatrixView<const float> values,
                    Index first, Index head_dim, double* out) {
  double sum = 0.0;
  for (Index i = 0; i < head_dim; ++i) out[i] = 0.0;
  for (Index key = 0; key < keys.rows; ++key) {
    double score = 0.0;
    for (Index i = 0; i < head_dim; ++i)
      score += static_cast<double>(q[i]) * static_cast<double>(keys.row(key)[first + i]);
    const double weight = std::exp(score / std::sqrt(static_cast<double>(head_dim)));
    sum += weight;
    for (Index i = 0; i < head_dim; ++i)
      out[i] += weight * static_cast<double>(values.row(key)[first + i]);
  }
  for (Index i = 0; i < head_dim; ++i) out[i] /= sum;
}

RowMajorMatrix<float> random_matrix(Index rows, Index cols, std::mt19937& random) {
  std::normal_distribution<float> normal;
  RowMajorMatrix<float> matrix(rows, cols);
  for (Index i = 0; i < matrix.size(); ++i) matrix.data()[i] = normal(random);
  return matrix;
}

}  // namespace

int main() {
  const models::HeadShape heads{.heads = 8, .kv_heads = 2, .head_dim = 16};
  const Index kv = heads.kv_heads * heads.head_dim;
  std::mt19937 random(2026);
  const RowMajorMatrix<float> keys = random_matrix(77, kv, random);
  const RowMajorMatrix<float> values = random_matrix(77, kv, random);
  MyAttention attention(2);
  double largest = 0.0;
  for (const Index rows : {1, 5, 60}) {  // few rows and many take different ways
    const RowMajorMatrix<float> q = random_matrix(rows, heads.heads * heads.head_dim, random);
    // Two blocks: the rows of the first see 40 keys, those of the second all.
    std::vector<Segment<float>> segments;
    for (const auto& [begin, end, seen] :
         {std::array{Index{0}, rows / 2, Index{40}}, std::array{rows / 2, rows, Index{77}}})
      if (begin < end)
        segments.push_back(
            {begin, end, as_view(keys).middle_rows(0, seen), as_view(values).middle_rows(0, seen)});
    const MatrixView<const float> out = attention.attend(as_view(q), segments, heads);
    std::vector<double> expected(static_cast<std::size_t>(heads.head_dim));
    for (const Segment<float>& segment : segments)
      for (Index row = segment.begin; row < segment.end; ++row)
        for (Index head = 0; head < heads.heads; ++head) {
          const Index first = head * heads.head_dim;
          const Index kv_first = head / (heads.heads / heads.kv_heads) * heads.head_dim;
          attend_plainly(q.data() + row * q.cols() + first, segment.keys, segment.values, kv_first,
                         heads.head_dim, expected.data());
          for (Index i = 0; i < heads.head_dim; ++i)
            largest = std::max(largest, std::abs(expected[static_cast<std::size_t>(i)] -
                                                 static_cast<double>(out.row(row)[first + i])));
        }
  }
  std::printf("largest difference to a plain attention: %.1e\n", largest);
  return largest < 1e-5 ? 0 : 1;
}
