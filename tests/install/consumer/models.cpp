// SPDX-License-Identifier: Apache-2.0
// Loads a checkpoint folder and runs one forward of it on the default backend.
#include <cmath>
#include <cstdio>
#include <vector>

#include "dllm_cache/dllm_cache.hpp"
#include "dllm_cache/models/load_model.hpp"

using namespace dllm_cache;

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  models::TransformerRunner runner(models::load_model(argv[1]), 1);
  const std::vector<std::int32_t> tokens = {5, 12, 19, 26, 33};
  const auto rows = static_cast<Index>(tokens.size());
  FeatureCache<float> cache(runner.shape(), {.prompt = 2, .response = rows - 2}, NoCache{});
  Workspace<float> workspace;
  auto pass = workspace.begin_step(cache);
  RowMajorMatrix<float> x(rows, runner.shape().width);
  RowMajorMatrix<float> logits(rows, runner.vocabulary());
  runner.embed(tokens, as_view(x));
  for (Index number = 0; number < runner.shape().layers; ++number) {
    auto layer = runner.layer(number);
    pass.layer(layer, as_view(x));
  }
  runner.logits(as_view(x), as_view(logits));
  std::printf("backend %s, %td logits\n", models::has_onednn ? "oneDNN" : "Eigen", logits.size());
  return logits.allFinite() && logits.squaredNorm() > 0.0F ? 0 : 1;
}
