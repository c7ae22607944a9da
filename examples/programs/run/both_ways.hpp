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

// What programs on other runtimes do with a request of dllm-generate.
namespace programs {

/// Tokens of every prompt's answer, and what they cost.
struct TimedAnswers {
  std::vector<std::vector<std::int32_t>> tokens;
  dllm_cache::DecodingCounts rows;
  double seconds = 0.0;
};

/// Answers all prompts of a request together; `decoding` says how the model is decoded by default.
template <class Model, class Stored = float>
[[nodiscard]] TimedAnswers answer_all(Model& model, const Request& request,
                                      const dllm_cache::ModelDecoding& decoding,
                                      const dllm_cache::AnyPolicy& policy) {
  dllm_cache::DecodingOptions options =
      dllm_cache::decoding_options(request.settings.decoding, decoding);
  dllm_cache::DenoisingLoop<Model, Stored> loop(model);
  for (const auto& prompt : request.prompts) {
    loop.add(prompt, options, policy);
    ++options.sequence;
  }
  const auto start = std::chrono::steady_clock::now();
  loop.run();
  TimedAnswers answers;
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
/// stderr. Throws BadRequest for what these programs do not take.
template <class Model, class Stored = float>
int answer_both_ways(Model& model, const Request& request,
                     const dllm_cache::ModelDecoding& decoding) {
  if (request.settings.tokens.mask || !request.settings.tokens.ends.empty())
    throw BadRequest("mask_token and end_token are not taken here: those of the model count");
  const TimedAnswers plain =
      answer_all<Model, Stored>(model, request, decoding, dllm_cache::NoCache{});
  const TimedAnswers cached =
      answer_all<Model, Stored>(model, request, decoding, make_policy(request.settings.policy));
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

}  // namespace programs
