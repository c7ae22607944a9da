// SPDX-License-Identifier: Apache-2.0
// A toy runtime that wraps its own layers: the core needs nothing but three callbacks a layer.
#include <cstdio>
#include <vector>

#include "dllm_cache/dllm_cache.hpp"

using namespace dllm_cache;

int main() {
  constexpr Index layers = 4, width = 64, prompt = 32, response = 16;

  // [readme]
  auto layer =
      make_layer([](MatrixView<const float> x, MatrixView<float> v) { as_eigen(v) = as_eigen(x); },
                 [](MatrixView<const float> x, std::span<const std::int32_t>, MatrixView<float> q,
                    MatrixView<float> k) { as_eigen(q) = as_eigen(k) = as_eigen(x); },
                 [](MatrixView<const float>, MatrixView<const float> q,
                    std::span<const Segment<float>> parts, MatrixView<float> u) {
                   for (const auto& part : parts)  // attention without a softmax, to keep it short
                     as_eigen(u).middleRows(part.begin, part.end - part.begin) =
                         0.001F * as_eigen(q.middle_rows(part.begin, part.end - part.begin)) *
                         as_eigen(part.keys).transpose() * as_eigen(part.values);
                 });
  FeatureCache<float> cache({layers, width, width, width}, {.prompt = prompt, .response = response},
                            DllmCachePolicy{.response_interval = 7, .ratio = 0.25});
  Workspace<float> workspace;
  for (int step = 0; step < 16; ++step) {
    auto pass = workspace.begin_step(cache);  // the policy decides which rows are in the pass
    RowMajorMatrix<float> x(pass.row_count(), width);  // embed pass.rows() here
    x.setOnes();
    for (Index l = 0; l < layers; ++l) pass.layer(layer, as_view(x));
  }  // x now holds the hidden states of the rows that flowed: compute logits for the masked ones
  // [readme]

  const RowCounts& rows = cache.counts();
  std::printf("%td of %td rows recomputed\n", rows.recomputed,
              Index{16} * layers * (prompt + response));
  return rows.recomputed < Index{16} * layers * (prompt + response) ? 0 : 1;
}
