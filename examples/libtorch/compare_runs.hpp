// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdio>
#include <vector>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/dllm_cache.hpp"
#include "programs/options/policies.hpp"
#include "programs/options/request.hpp"
#include "programs/text/errors.hpp"

// What the programs on libtorch have in common.
namespace torch_runtime {

/// What a run gave, and what it took.
struct Answers {
  std::vector<std::vector<std::int32_t>> tokens;
  dllm_cache::DecodingCounts rows;
  double seconds = 0.0;
};

/// Answers all prompts of a request in one batch.
template <class M>
Answers answer(M& model, const dllm_cache::programs::Request& request,
               const dllm_cache::AnyPolicy& policy) {
  using namespace dllm_cache;
  DecodingOptions options = decoding_options(request.settings.decoding, {});
  DenoisingLoop<M> loop(model);
  for (const auto& prompt : request.prompts) {
    loop.add(prompt, options, policy);
    ++options.sequence;
  }
  const auto start = std::chrono::steady_clock::now();
  loop.run();
  Answers answers;
  answers.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (Index id = 0; id < loop.sequences(); ++id) {
    // Where the prompt had gaps, all of it as it was filled.
    const SequenceState& state = loop.sequence(id);
    const auto answer = state.has_gaps() ? state.tokens() : state.response();
    answers.tokens.emplace_back(answer.begin(), answer.end());
    answers.rows += loop.counts(id);
  }
  return answers;
}

/// Reads a request; throws programs::BadRequest for what these programs do not take.
inline dllm_cache::programs::Request read_request(const char* file) {
  using namespace dllm_cache;
  programs::Request request = programs::read_request(file);
  if (request.settings.tokens.mask || !request.settings.tokens.ends.empty())
    throw programs::BadRequest("mask_token and end_token are not taken here: see config.json");
  return request;
}

/// Answers a request uncached and cached, and prints answers and what the cache saved.
template <class M>
void compare_runs(M& model, const dllm_cache::programs::Request& request) {
  using namespace dllm_cache;
  const Answers plain = answer(model, request, NoCache{});
  const Answers cached = answer(model, request, programs::make_policy(request.settings.policy));
  std::size_t equal = 0, all = 0;
  for (std::size_t i = 0; i < cached.tokens.size(); ++i) {
    for (std::size_t j = 0; j < cached.tokens[i].size(); ++j, ++all) {
      std::printf("%s%d", j > 0 ? " " : "", cached.tokens[i][j]);
      equal += cached.tokens[i][j] == plain.tokens[i][j] ? 1U : 0U;
    }
    std::printf("\n");
  }
  std::fprintf(stderr,
               "uncached: %td rows recomputed, %.3f s\n"
               "cached:   %td rows recomputed, %.3f s, %zu of %zu tokens the same\n",
               plain.rows.recomputed, plain.seconds, cached.rows.recomputed, cached.seconds, equal,
               all);
}

}  // namespace torch_runtime
