// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>
#include <variant>

#include "dllm_cache/decoding/decoding_options.hpp"
#include "dllm_cache/decoding/special_tokens.hpp"

namespace dllm_cache::inline v0_1 {

/// What messages call things: by the fields of the library, or by the keys of requests and command
/// lines, for people who read no C++.
struct DecodingWords {
  std::string_view owner;  ///< What a message begins with, its colon and blank included, or "".
  std::string_view prompt, response, block_length, steps, order_temperature, early_stop;
  std::string_view suppress_end, end_last;
  std::string_view categorical;   ///< What top_p and top_k need.
  std::string_view origin_needs;  ///< What goes with Dream's algorithm of that name.
  std::string_view counted;       ///< What a temperature of the order needs.
  std::string_view end_tokens;    ///< What gives a model its end tokens.
};

/// Words of the library.
inline constexpr DecodingWords field_words{
    .owner = "DecodingOptions: ",
    .prompt = "the prompt",
    .response = "response",
    .block_length = "block_length",
    .steps = "steps",
    .order_temperature = "order_temperature",
    .early_stop = "early_stop",
    .suppress_end = "suppress_end",
    .end_last = "end_last",
    .categorical = "Sampling::Categorical",
    .origin_needs = "commit BernoulliCommit needs Confidence::Random",
    .counted = "a counted commit rule",
    .end_tokens = "a model with an end-of-text token"};

/// Words of requests and command lines.
inline constexpr DecodingWords key_words{
    .owner = "",
    .prompt = "prompt_ids",
    .response = "gen_length",
    .block_length = "block_length",
    .steps = "steps",
    .order_temperature = "alg_temp",
    .early_stop = "early_stop",
    .suppress_end = "logits_eos_inf",
    .end_last = "confidence_eos_eot_inf",
    .categorical =
        "Dream's sampler: give alg too (a Dream model has it by itself), or leave them out",
    .origin_needs = "alg \"origin\" needs random confidences",
    .counted =
        "a schedule of steps: leave out threshold, factor, entropy_bound and tokens_per_step, or "
        "alg_temp",
    .end_tokens = "an end token: the checkpoint names none, give end_token"};

/// What the sequence is, as far as its options depend on it.
struct DecodingTask {
  bool prompt_has_masks = false;
  bool has_end_tokens = true;
};

/// The most steps that linear_commits() plans: its float32 tells no more of them apart.
inline constexpr Index most_linear_steps = Index{1} << 20;

/// Refuses options that make no sense together or for the task, each of them in its own range
/// (check_options); throws std::invalid_argument in these words.
///
/// Where the prompt holds masks `response` may be 0, and neither need `block_length` divide it nor
/// the blocks the steps; see SequenceState.
inline void check_decoding(const DecodingOptions& options, const DecodingTask& task,
                           const DecodingWords& words) {
  const DecodingOptions& o = options;
  const auto refuse = [&](const auto&... parts) { base::refuse_argument(words.owner, parts...); };
  if (o.response < 1 && !task.prompt_has_masks)
    refuse(words.response, " must be at least 1 where ", words.prompt, " holds no mask, got ",
           o.response);
  const Index length = o.block_length == 0 ? o.response : o.block_length;
  if (!task.prompt_has_masks) {
    if (o.response % length != 0)
      refuse(words.block_length, " must divide ", words.response, " = ", o.response, ", got ",
             length);
    const Index blocks = o.response / length;
    if (is_counted(o.commit) && o.steps % blocks != 0)
      refuse(words.steps, " must be a positive multiple of the number of blocks = ", blocks, " (",
             words.response, " / ", words.block_length, "), got ", o.steps);
  }
  if (task.prompt_has_masks && std::holds_alternative<CountedCommit>(o.commit) &&
      o.steps > most_linear_steps)
    refuse(words.steps, " must be at most ", most_linear_steps, " where ", words.prompt,
           " holds masks, got ", o.steps);
  if (o.sampling != Sampling::Categorical && (o.top_p < 1.0 || o.top_k > 0))
    refuse("top_p and top_k need ", words.categorical, ", got top_p ", o.top_p, " and top_k ",
           o.top_k);
  check_rule(o.commit);
  if (std::holds_alternative<BernoulliCommit>(o.commit) && o.confidence != Confidence::Random)
    refuse(words.origin_needs);
  if (o.order_temperature > 0.0 && !is_counted(o.commit))
    refuse(words.order_temperature, " needs ", words.counted);
  if (!task.has_end_tokens) {
    if (o.early_stop) refuse(words.early_stop, " needs ", words.end_tokens);
    if (o.suppress_end) refuse(words.suppress_end, " needs ", words.end_tokens);
    if (o.end_last) refuse(words.end_last, " needs ", words.end_tokens);
  }
  for (const auto* list : {&o.suppress_tokens, &o.commit_last})
    for (const std::int32_t token : *list)
      if (token < 0)
        refuse(list == &o.commit_last ? "commit_last" : "suppress_tokens",
               " must hold tokens of at least 0, got ", token);
}

}  // namespace dllm_cache::inline v0_1
