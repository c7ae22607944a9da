// SPDX-License-Identifier: Apache-2.0
// A chat with a block-causal model (SDAR and its kin): the second turn computes nothing that is
// final, and three answers to one prompt share its features.
#include <algorithm>
#include <cstdio>
#include <span>
#include <vector>

#include "dllm_cache/decoding/decoding_keys.hpp"
#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/dllm_cache.hpp"
#include "dllm_cache/models/load_model.hpp"

using namespace dllm_cache;
using Tokens = std::vector<std::int32_t>;
using Loop = DenoisingLoop<models::TransformerRunner>;

namespace {

void print(const char* what, std::span<const std::int32_t> tokens) {
  std::printf("%s:", what);
  for (const std::int32_t token : tokens) std::printf(" %d", token);
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fputs("usage: chat_turns MODEL_FOLDER\n", stderr);
    return 2;
  }
  const Tokens question{99, 54, 85, 97, 12, 50, 45, 8, 59, 21, 68, 55, 16}, next{28, 85, 30, 7, 41};

  // [readme]
  models::TransformerRunner model(models::load_model(argv[1]), models::available_threads());
  const models::TransformerConfig& config = model.config();
  // The model's own loop, with its block and rule; keys are those of requests.
  DecodingOptions options = decoding_options({{"gen_length", "16"}, {"early_stop", "false"}},
                                             {config.decoder, config.attention_block});
  Loop loop(model);
  const Index chat = loop.add(question, options, BlockCachePolicy{});
  loop.run();
  const Index first_turn = loop.counts(chat).rows;
  print("first answer", loop.sequence(chat).response());

  loop.append(chat, next, options);  // behind the question and its answer
  loop.run();
  const Index second_turn = loop.counts(chat).rows - first_turn;
  print("second answer", loop.sequence(chat).response());

  // The same prompt begun anew, computed once and answered three times.
  const auto all = loop.sequence(chat).tokens();
  const Tokens prompt(all.begin(), all.begin() + loop.sequence(chat).prompt_rows());
  options.temperature = 1.0;
  std::vector<Index> answers{loop.add(prompt, options, BlockCachePolicy{})};
  loop.prefill(answers[0]);
  const Index shared = loop.counts(answers[0]).rows;
  for (std::uint64_t number = 1; number < 3; ++number)  // names random draws
    answers.push_back(loop.fork(answers[0], number));
  loop.run();
  // [readme]
  for (const Index id : answers) {
    print("one of three", loop.sequence(id).response());
    std::printf("  %td bytes of features of its own\n", loop.cache_bytes(id));
  }
  std::printf("rows computed: first turn %td, second turn %td; prompt of the three %td, once\n",
              first_turn, second_turn, shared);

  // What the turns would be from scratch.
  Loop fresh(model);
  options.temperature = 0.0;
  const Index whole = fresh.add(prompt, options, BlockCachePolicy{});
  fresh.run();
  const auto expected = fresh.sequence(whole).response();
  const auto found = loop.sequence(chat).response();
  std::printf("the second turn from scratch: %td\n", fresh.counts(whole).rows);
  if (!std::equal(expected.begin(), expected.end(), found.begin(), found.end()) ||
      second_turn >= fresh.counts(whole).rows) {
    std::fputs("chat_turns: another answer than that of a new sequence, or no fewer rows\n",
               stderr);
    return 1;
  }
}
