// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "dllm_cache/dllm_cache.hpp"
#ifdef WITH_MODELS
#include "dllm_cache/models/checkpoint/config.hpp"
#endif

int main() {
  dllm_cache::FeatureCache<float> cache({2, 8, 8, 8}, {.prompt = 4, .response = 4},
                                        dllm_cache::DllmCachePolicy{});
  dllm_cache::Workspace<float> workspace;
  auto pass = workspace.begin_step(cache);
#ifdef WITH_MODELS
  const auto config = nlohmann::json::parse(R"({"layers": 2})");
  if (dllm_cache::models::ConfigReader(config, "config.json").integer("layers", 1, 9) != 2)
    return 1;
#endif
  std::printf("dllm_cache %s: %td rows are in the pass\n", dllm_cache::version.data(),
              pass.row_count());
  return pass.row_count() == 8 ? 0 : 1;
}
