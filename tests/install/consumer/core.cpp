// SPDX-License-Identifier: Apache-2.0
// The least that a user of the core writes: a layer, a cache, a few steps.
#include <algorithm>
#include <cstdio>

#include "dllm_cache/dllm_cache.hpp"

using namespace dllm_cache;

namespace {

void copy(MatrixView<const float> from, MatrixView<float> to) {
  for (Index row = 0; row < from.rows; ++row) std::copy_n(from.row(row), from.cols, to.row(row));
}

struct CountingLayer {
  Index rows = 0;

  void value(MatrixView<const float> x, MatrixView<float> v) { copy(x, v); }
  void query_key(MatrixView<const float> x, std::span<const std::int32_t>, MatrixView<float> q,
                 MatrixView<float> k) {
    copy(x, q);
    copy(x, k);
  }
  void delta(MatrixView<const float> x, MatrixView<const float>, std::span<const Segment<float>>,
             MatrixView<float> u) {
    rows += x.rows;
    copy(x, u);
  }
};

}  // namespace

int main() {
  constexpr Index width = 8, steps = 16, tokens = 24 + 16;
  CountingLayer layer;
  FeatureCache<float> cache({1, width, width, width}, {.prompt = 24, .response = 16},
                            DllmCachePolicy{.response_interval = 4, .ratio = 0.25});
  Workspace<float> workspace;
  for (Index step = 0; step < steps; ++step) {
    auto pass = workspace.begin_step(cache);
    RowMajorMatrix<float> x(pass.row_count(), width);
    x.setConstant(1.0F);
    pass.layer(layer, as_view(x));
  }
  std::printf("dllm_cache %s: %td of %td rows\n", version.data(), layer.rows, steps * tokens);
  return layer.rows == cache.counts().recomputed && layer.rows < steps * tokens ? 0 : 1;
}
