// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/policies/changed_rows.hpp"
#include "dllm_cache/policies/dkv_decode.hpp"
#include "dllm_cache/policies/dual_cache.hpp"
#include "dllm_cache/policies/free_cache.hpp"
#include "dllm_cache/policies/prefix_cache.hpp"
#include "dllm_cache/policies/vicinity.hpp"
#include "tests/support/plain_caches.hpp"

namespace dllm_cache::testing {

/// Every published cache but dLLM-Cache beside its plain twin, for a model with this shift.
inline std::vector<CachePair> published_caches(Index shift) {
  std::vector<CachePair> all;
  const auto add = [&](const char* what, AnyPolicy policy, std::unique_ptr<PlainCache> plain) {
    all.push_back({what, std::move(policy), std::move(plain)});
  };
  const auto dkv = [&](Index reload) -> std::unique_ptr<PlainCache> {
    if (shift == 0) return std::make_unique<PlainDkvLlada>(reload);
    return std::make_unique<PlainDkvDream>(reload);
  };
  add("prefix", PrefixCachePolicy{}, std::make_unique<PlainPrefixCache>());
  add("dual", DualCachePolicy{}, std::make_unique<PlainDualCache>());
  add("freecache", FreeCachePolicy{}, std::make_unique<PlainFreeCache>());
  add("vicinity", VicinityPolicy{}, std::make_unique<PlainVicinity>(16, 16, 4, 0));
  add("vicinity 0 0 0", VicinityPolicy{0, 0, 0}, std::make_unique<PlainVicinity>(0, 0, 0, 0));
  add("vicinity 1 2 1 every 3", VicinityPolicy{1, 2, 1, 3},
      std::make_unique<PlainVicinity>(1, 2, 1, 3));
  add("vicinity 2 1 7", VicinityPolicy{2, 1, 7}, std::make_unique<PlainVicinity>(2, 1, 7, 0));
  add("vicinity without end", VicinityPolicy{never, never, 0},
      std::make_unique<PlainVicinity>(1000, 1000, 0, 0));
  add("dkv 2", DkvDecodePolicy{2}, dkv(2));
  add("dkv 3", DkvDecodePolicy{3}, dkv(3));
  add("dkv 5", DkvDecodePolicy{5}, dkv(5));
  add("dkv never", DkvDecodePolicy{never}, dkv(1000));
  add("changed-rows", ChangedRowsPolicy{}, std::make_unique<PlainChangedRows>(0, 0));
  add("changed-rows 2 every 5", ChangedRowsPolicy{2, 5}, std::make_unique<PlainChangedRows>(2, 5));
  add("changed-rows 1", ChangedRowsPolicy{1}, std::make_unique<PlainChangedRows>(1, 0));
  return all;
}

/// Runs a task in the library's loop; what it records is what run_plainly records.
template <class Model>
PlainRun run_in_loop(Model& model, const AnyPolicy& policy, const PlainTask& task) {
  DenoisingLoop<Model> loop(model);
  DecodingOptions options{.response = task.response,
                          .block_length = task.block_length,
                          .steps = task.steps_per_block * task.response / task.block_length};
  if (task.threshold >= 0.0) options.commit = ThresholdCommit{task.threshold};
  loop.add(task.prompt, options, policy);
  PlainRun run;
  loop.observer.on_layer = [&](const auto& pass, Index layer) {
    if (layer == 0) run.in_pass.emplace_back(pass.rows(0).begin(), pass.rows(0).end());
  };
  loop.observer.on_logits = [&](Index, Index row, std::span<const float> logits) {
    run.logits[{loop.sequence(0).step(), row}].assign(logits.begin(), logits.end());
  };
  loop.run([&](const StepReport& report) {
    run.tokens.emplace_back(report.tokens.begin(), report.tokens.end());
  });
  return run;
}

}  // namespace dllm_cache::testing
