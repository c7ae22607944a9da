// SPDX-License-Identifier: Apache-2.0
#include "dllm_cache_all.hpp"

dllm_cache::Index rows_of_second() {
  dllm_cache::FeatureCache<float> cache({1, 8, 8, 8}, {.prompt = 4, .response = 4},
                                        dllm_cache::DllmCachePolicy{});
  dllm_cache::Workspace<float> workspace;
  return workspace.begin_step(cache).row_count();
}
