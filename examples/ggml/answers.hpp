// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "dllm_cache/decoding/decoding_keys.hpp"
#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/dllm_cache.hpp"
#include "programs/options/policies.hpp"
#include "programs/options/request.hpp"
#include "programs/text/errors.hpp"

// What both programs do with a request of dllm-generate.
namespace ggml_runtime {

/// Tokens of every prompt's answer, and what they cost.
struct Answers {
  std::vector<std::vector<std::int32_t>> tokens;
  dllm_cache::DecodingCounts rows;
  double seconds = 0.0;
};

/// Answers all prompts of a request together.
template <class Model, class Stored = float>
[[nodiscard]] Answers answer(Model& model, const programs::Request& request,
                             const dllm_cache::AnyPolicy& policy) {
  dllm_cache::DecodingOptions options = dllm_cache::decoding_options(
      request.settings.decoding, {.decoder = model.config().architecture});
  dllm_cache::DenoisingLoop<Model, Stored> loop(model);
  for (const auto& prompt : request.prompts) {
    loop.add(prompt, options, policy);
    ++options.sequence;
  }
  const auto start = std::chrono::steady_clock::now();
  loop.run();
  Answers answers;
  answers.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (dllm_cache::Index id = 0; id < loop.sequences(); ++id) {
    // Where the prompt had gaps, all of it as it was filled.
    const dllm_cache::SequenceState& state = loop.sequence(id);
    const auto answer = state.has_gaps() ? state.tokens() : state.response();
    answers.tokens.emplace_back(answer.begin(), answer.end());
    answers.rows += loop.counts(id);
  }
  return answers;
}

/// Answers without and with the cache: tokens to stdout, one line a prompt, what the cache saved to
/// stderr.
template <class Model, class Stored = float>
int answer_both_ways(Model& model, const programs::Request& request) {
  if (request.settings.tokens.mask || !request.settings.tokens.ends.empty())
    throw programs::BadRequest("mask_token and end_token are not taken here: the file has them");
  const Answers plain = answer<Model, Stored>(model, request, dllm_cache::NoCache{});
  const Answers cached =
      answer<Model, Stored>(model, request, programs::make_policy(request.settings.policy));
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
  return 0;
}

}  // namespace ggml_runtime
