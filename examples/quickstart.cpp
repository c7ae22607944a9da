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
                            balanced_policy());
  Workspace<float> workspace;
  for (Index step = 0; step < response; ++step) {
    const Index begin = prompt + step / 8 * 8;  // blocks of eight tokens are decoded in turn
    // The policy decides which rows are in the pass.
    auto pass = workspace.begin_step(cache, {.block = {begin, begin + 8}});
    RowMajorMatrix<float> x(pass.row_count(), width);  // embed pass.rows() here
    x.setOnes();
    for (Index l = 0; l < layers; ++l) pass.layer(layer, as_view(x));
  }  // x now holds the hidden states of these rows: compute logits for the masked ones
  // [readme]

  const RowCounts& rows = cache.counts();
  std::printf("%td of %td rows recomputed\n", rows.recomputed,
              response * layers * (prompt + response));
  return rows.recomputed < response * layers * (prompt + response) ? 0 : 1;
}
