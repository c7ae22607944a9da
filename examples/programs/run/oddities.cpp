// SPDX-License-Identifier: Apache-2.0
#include "programs/run/oddities.hpp"

#include <algorithm>
#include <string>

#include "dllm_cache/decoding/check_decoding.hpp"
#include "programs/text/errors.hpp"

namespace programs {
namespace {

void check_tokens(const std::vector<std::int32_t>& tokens, const char* key, Index vocabulary) {
  for (const std::int32_t token : tokens)
    if (token < 0 || token >= vocabulary)
      throw BadRequest(std::string(key) + " must be in [0, " + std::to_string(vocabulary) +
                       "), got " + std::to_string(token));
}

// "1 token", "2 tokens"
std::string counted(Index count, const std::string& what) {
  return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
}

}  // namespace

void check_prompts(const std::vector<std::vector<std::int32_t>>& prompts,
                   const dllm_cache::DecodingOptions& options,
                   const dllm_cache::models::TransformerConfig& config) {
  check_tokens(options.suppress_tokens, "suppress_tokens", config.vocabulary);
  check_tokens(options.commit_last, "commit_last", config.vocabulary);
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const std::vector<std::int32_t>& prompt = prompts[i];
    check_tokens(prompt, "prompt_ids", config.vocabulary);
    if (static_cast<Index>(prompt.size()) < config.prediction_shift)
      throw BadRequest("prompt_ids: prompt " + std::to_string(i) +
                       " is empty, but this model predicts a token from the one before it: give at "
                       "least one token, its beginning-of-text token for example");
    dllm_cache::check_decoding(options,
                               {.prompt_has_masks = std::find(prompt.begin(), prompt.end(),
                                                              config.special.mask) != prompt.end(),
                                .has_end_tokens = !config.special.end_of_text.empty(),
                                .prompt_rows = static_cast<Index>(prompt.size())},
                               dllm_cache::key_words);
  }
}

void warn_of(const Oddities& odd, Warnings& warnings) {
  if (odd.masks_left > 0)
    warnings.say("the answers still hold " + counted(odd.masks_left, "mask token") +
                 ": the model predicted the mask itself, or the steps ended before all was filled");
  if (odd.too_many_steps && odd.empty_steps > 0)
    warnings.say("steps are more than there are tokens to fill: " +
                 counted(odd.empty_steps, "step") + " had nothing to commit");
  if (odd.unknown_tokens > 0)
    warnings.say("the answers hold " + counted(odd.unknown_tokens, "token") +
                 " that the model's vocab.txt does not have, shown as ?");
}

Index count_unknown(const std::vector<std::vector<std::int32_t>>& tokens,
                    const Vocabulary* vocabulary) {
  if (vocabulary == nullptr) return 0;
  Index unknown = 0;
  for (const auto& answer : tokens)
    unknown += std::count_if(answer.begin(), answer.end(),
                             [&](std::int32_t token) { return token >= vocabulary->size(); });
  return unknown;
}

void warn_of_length(Index longest, const dllm_cache::models::TransformerConfig& config,
                    Warnings& warnings) {
  const Index most = config.max_positions;
  if (most > 0 && longest > most)
    warnings.say("a sequence of " + counted(longest, "token") +
                 " (prompt_ids and gen_length) is longer than the " + std::to_string(most) +
                 " that the model was made for: its answer may be worse");
}

}  // namespace programs
