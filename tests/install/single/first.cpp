// SPDX-License-Identifier: Apache-2.0
// One of two files that include the single header and make the same templates.
#include <cstdio>

#include "dllm_cache_all.hpp"

dllm_cache::Index rows_of_second();

int main() {
  dllm_cache::FeatureCache<float> cache({1, 8, 8, 8}, {.prompt = 4, .response = 4},
                                        dllm_cache::DllmCachePolicy{});
  dllm_cache::Workspace<float> workspace;
  const dllm_cache::Index rows = workspace.begin_step(cache).row_count();
  std::printf("dllm_cache %s: %td and %td rows\n", dllm_cache::version.data(), rows,
              rows_of_second());
  return rows == rows_of_second() ? 0 : 1;
}
