// SPDX-License-Identifier: Apache-2.0
// A runtime that keeps keys and values in memory of its own, as one on a GPU does, and takes only
// plans from the library: StepPlanner says which rows to compute and refuses what cannot work.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include "dllm_cache/dllm_cache.hpp"

using namespace dllm_cache;

namespace {

// Stands for the device: its layers, and the keys and values of every row that it computed last.
class Device {
 public:
  static constexpr int layers = 4, width = 24, vocabulary = 40, mask = 39;

  explicit Device(Index rows) : m_rows(static_cast<std::size_t>(rows)) {
    std::mt19937 engine(5);
    std::normal_distribution<float> normal(0.0F, 1.0F / std::sqrt(static_cast<float>(width)));
    for (std::vector<float>* one : {&m_embedding, &m_key, &m_value, &m_output}) {
      one->resize((one == &m_embedding ? vocabulary : layers * width) * width);
      for (float& weight : *one) weight = normal(engine);
    }
    for (float& weight : m_embedding) weight *= 4.0F;
    m_keys.resize(layers * m_rows * width);
    m_values.resize(m_keys.size());
  }

  // One forward of these rows, ascending; the others are seen as they were computed last. Returns
  // the likeliest token of each and how sure it is.
  std::vector<std::pair<std::int32_t, float>> forward(const std::vector<Index>& rows,
                                                      const std::vector<std::int32_t>& tokens) {
    std::vector<float> x(rows.size() * width);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const float* embedding = &m_embedding[static_cast<std::size_t>(at(tokens, rows[i])) * width];
      for (std::size_t d = 0; d < width; ++d)
        x[i * width + d] =
            embedding[d] +
            0.5F * std::sin(static_cast<float>(rows[i] * (static_cast<Index>(d) + 1)));
    }
    for (std::size_t layer = 0; layer < layers; ++layer) {
      for (std::size_t i = 0; i < rows.size(); ++i) {
        multiply(&m_key[layer * width * width], &x[i * width], cached(m_keys, layer, rows[i]));
        multiply(&m_value[layer * width * width], &x[i * width], cached(m_values, layer, rows[i]));
      }
      std::vector<float> deltas(x.size());
      for (std::size_t i = 0; i < rows.size(); ++i)
        attend(layer, &x[i * width], &deltas[i * width]);
      for (std::size_t j = 0; j < x.size(); ++j) x[j] += deltas[j];
    }
    std::vector<std::pair<std::int32_t, float>> predictions;
    for (std::size_t i = 0; i < rows.size(); ++i) predictions.push_back(sample(&x[i * width]));
    return predictions;
  }

 private:
  static std::int32_t at(const std::vector<std::int32_t>& tokens, Index row) {
    return tokens[static_cast<std::size_t>(row)];
  }
  float* cached(std::vector<float>& features, std::size_t layer, Index row) const {
    return &features[(layer * m_rows + static_cast<std::size_t>(row)) * width];
  }
  static float dot(const float* a, const float* b) {
    float sum = 0.0F;
    for (int d = 0; d < width; ++d) sum += a[d] * b[d];
    return sum;
  }
  static void multiply(const float* weights, const float* in, float* out) {
    for (int d = 0; d < width; ++d) out[d] = dot(weights + d * width, in);
  }
  void attend(std::size_t layer, const float* x, float* delta) {
    std::vector<float> seen(width);
    float sum = 0.0F;
    for (std::size_t row = 0; row < m_rows; ++row) {
      const auto index = static_cast<Index>(row);
      const float weight = std::exp(dot(x, cached(m_keys, layer, index)) / std::sqrt(width * 1.0F));
      sum += weight;
      for (std::size_t d = 0; d < width; ++d) seen[d] += weight * cached(m_values, layer, index)[d];
    }
    for (float& one : seen) one /= sum;
    multiply(&m_output[layer * width * width], seen.data(), delta);
  }
  std::pair<std::int32_t, float> sample(const float* x) const {
    float best = -INFINITY, sum = 0.0F;
    std::int32_t token = 0;
    for (std::int32_t one = 0; one < mask; ++one) {
      const float logit = dot(x, &m_embedding[static_cast<std::size_t>(one) * width]);
      sum += std::exp(logit);
      if (logit > best) best = logit, token = one;
    }
    return {token, std::exp(best) / sum};
  }

  std::size_t m_rows;
  std::vector<float> m_embedding, m_key, m_value, m_output, m_keys, m_values;
};

struct Run {
  std::vector<std::int32_t> tokens;
  std::size_t computed = 0;
};

// [readme]
// Decodes blocks of `block_length` rows behind the prompt, one token a step.
Run generate(const AnyPolicy& policy, std::vector<std::int32_t> tokens, Index prompt,
             Index block_length) {
  const auto rows = static_cast<Index>(tokens.size());
  Device device(rows);
  StepPlanner planner(policy, {.prompt = prompt, .response = rows - prompt}, Device::layers);
  if (!planner.traits().stored_deltas.empty())
    throw std::invalid_argument("plans_alone: the device keeps keys and values, no deltas");
  Run run;
  std::vector<Index> in_pass;
  for (Index step = 0; step < rows - prompt; ++step) {
    const Index begin = prompt + step / block_length * block_length;
    const Range block{begin, begin + block_length};
    const StepPlan& plan = planner.begin_step({.block = block, .block_step = step % block_length});
    in_pass.clear();
    for (Index row = 0; row < rows; ++row)
      if (plan.rows[static_cast<std::size_t>(row)] != RowAction::Absent) in_pass.push_back(row);
    const auto predictions = device.forward(in_pass, tokens);
    planner.commit_step();  // drop_step() where it broke off: the next step recomputes everything
    run.computed += in_pass.size();

    std::size_t surest = in_pass.size();
    for (std::size_t i = 0; i < in_pass.size(); ++i)
      if (block.contains(in_pass[i]) &&
          tokens[static_cast<std::size_t>(in_pass[i])] == Device::mask &&
          (surest == in_pass.size() || predictions[i].second > predictions[surest].second))
        surest = i;
    tokens[static_cast<std::size_t>(in_pass[surest])] = predictions[surest].first;
  }
  run.tokens = std::move(tokens);
  return run;
}
// [readme]

}  // namespace

int main() {
  constexpr Index prompt = 12, response = 24;
  std::vector<std::int32_t> tokens(prompt + response, Device::mask);
  for (std::size_t i = 0; i < prompt; ++i) tokens[i] = static_cast<std::int32_t>(7 * i % 31);
  const Run plain = generate(NoCache{}, tokens, prompt, 8);
  const Run cached = generate(DualCachePolicy{}, tokens, prompt, 8);
  std::size_t equal = 0;
  for (std::size_t i = prompt; i < tokens.size(); ++i)
    equal += cached.tokens[i] == plain.tokens[i] ? 1U : 0U;
  std::printf("uncached: %zu rows computed\n", plain.computed);
  std::printf("cached:   %zu rows computed, %zu of %td tokens the same\n", cached.computed, equal,
              response);
  const bool complete =
      std::find(cached.tokens.begin(), cached.tokens.end(), Device::mask) == cached.tokens.end();
  return complete && cached.computed < plain.computed ? EXIT_SUCCESS : EXIT_FAILURE;
}
