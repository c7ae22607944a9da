// SPDX-License-Identifier: Apache-2.0
#include "programs/options/request.hpp"

#include <stdexcept>

#include "dllm_cache/decoding/sequence_state.hpp"
#include "programs/options/policies.hpp"
#include "programs/text/errors.hpp"
#include "tests/fuzz/targets.hpp"

void dllm_cache::fuzz::request(Input input) {
  const std::string text(input.begin(), input.end());
  programs::Request request;
  bool parsed = false;
  allow<programs::BadRequest>("input.json", [&] {
    request = programs::parse_request(text, "input.json");
    parsed = true;
  });
  if (!parsed) return;
  must(!request.prompts.empty(), "a request has prompts");
  for (const Decoder& decoder : decoders)
    allow<programs::BadRequest, std::invalid_argument>("", [&] {
      const DecodingOptions options =
          decoding_options(request.settings.decoding, {.decoder = std::string(decoder.name)});
      const AnyPolicy policy = programs::make_policy(request.settings.policy);
      if (options.response > 1000 || options.attention_block > 1000)
        return;  // lengths that a test has no memory for
      const auto& prompt = request.prompts.front();
      SequenceState state(prompt, options, {.mask = 1, .end_of_text = 2});
      static_cast<void>(
          checked_traits(policy, {.prompt = state.prompt_rows(), .response = options.response}));
      state.commit({});
    });
}
