// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "dllm_cache/decoding/block_grid.hpp"
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
  std::string_view prompt_end_grid, commit_next, causal_commit, guidance_scale;
  std::string_view window, threshold_alpha, end_drops_rows;
  std::string_view parallel;   ///< What a window needs.
  std::string_view certain;    ///< What weighed confidences need.
  std::string_view threshold;  ///< What a falling threshold needs.
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
    .end_tokens = "a model with an end-of-text token",
    .prompt_end_grid = "prompt_end_grid",
    .commit_next = "commit_next",
    .causal_commit = "causal_commit",
    .guidance_scale = "guidance_scale",
    .window = "window",
    .threshold_alpha = "threshold_alpha",
    .end_drops_rows = "end_drops_rows",
    .parallel = "a commit rule that is not counted",
    .certain = "Confidence::Probability or Confidence::Margin",
    .threshold = "ThresholdCommit among the rules that are not counted"};

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
    .end_tokens = "an end token: the checkpoint names none, give end_token",
    .prompt_end_grid = "block_grid \"prompt_end\"",
    .commit_next = "decoder \"fastdllm-v2\"",
    .causal_commit = "causal_commit",
    .guidance_scale = "cfg_scale",
    .window = "window_length",
    .threshold_alpha = "confidence_alpha",
    .end_drops_rows = "eos_truncates",
    .parallel =
        "parallel decoding: give threshold, factor, entropy_bound or tokens_per_step, or leave out "
        "window_length",
    .certain =
        "confidences that are probabilities: remasking \"low_confidence\", or alg "
        "\"maskgit_plus\" or \"topk_margin\"",
    .threshold = "threshold in place of another rule of parallel decoding"};

/// What the sequence is, as far as its options depend on it.
struct DecodingTask {
  bool prompt_has_masks = false;
  bool has_end_tokens = true;
  Index prompt_rows = 0;
};

/// The most steps that linear_commits() plans: its float32 tells no more of them apart.
inline constexpr Index most_linear_steps = Index{1} << 20;

namespace detail {

/// The part of check_decoding() that is about blocks and steps.
template <class Refuse>
void check_blocks(const DecodingOptions& o, const DecodingTask& task, const DecodingWords& words,
                  const Refuse& refuse) {
  const bool is_linear = std::holds_alternative<LinearCommit>(o.commit) ||
                         (task.prompt_has_masks && std::holds_alternative<CountedCommit>(o.commit));
  const Index length = o.block_length == 0 ? o.response : o.block_length;
  if (o.attention_block > 0) {
    if (o.block_length > 0 && o.attention_block % o.block_length != 0)
      refuse(words.block_length, " must divide attention_block = ", o.attention_block, ", got ",
             o.block_length);
    if (o.prompt_end_grid && task.prompt_has_masks)
      refuse(words.prompt, " must hold no mask with ", words.prompt_end_grid);
  } else {
    for (const auto& [asked, name] : {std::pair{o.prompt_end_grid, words.prompt_end_grid},
                                      std::pair{o.commit_next, words.commit_next},
                                      std::pair{o.causal_commit, words.causal_commit}})
      if (asked) refuse(name, " needs an attention_block of at least 1, got 0");
    if (!task.prompt_has_masks && !is_linear && o.response % length != 0)
      refuse(words.block_length, " must divide ", words.response, " = ", o.response, ", got ",
             length);
  }
  if (o.commit_next && task.prompt_has_masks)
    refuse(words.prompt, " must hold no mask with ", words.commit_next);
  if (o.commit_next && o.guidance_scale > 0.0)
    refuse(words.guidance_scale, " must be 0 with ", words.commit_next,
           ", whose models have no unconditional run, got ", o.guidance_scale);
  if (is_counted(o.commit) && !task.prompt_has_masks && !is_linear && o.steps_per_block == 0) {
    const Index blocks = SequenceLayout(task.prompt_rows, false, o).grid.count();
    if (o.steps % blocks != 0)
      refuse(words.steps, " must be a positive multiple of the number of blocks = ", blocks, " (",
             words.response, " / ", words.block_length, "), got ", o.steps);
  }
  for (const auto& [steps, name] :
       {std::pair{o.steps, words.steps},
        std::pair{o.steps_per_block, std::string_view("steps_per_block")}})
    if (is_linear && steps > most_linear_steps)
      refuse(name, " must be at most ", most_linear_steps,
             task.prompt_has_masks ? base::text(" where ", words.prompt, " holds masks")
                                   : std::string(" with schedule \"dllm\""),
             ", got ", steps);
}

/// The part of check_decoding() about what loops of attention-aware caches do besides.
template <class Refuse>
void check_attention_aware(const DecodingOptions& o, const DecodingWords& words,
                           const Refuse& refuse) {
  // A schedule that may not commit what it planned would leave masks.
  if (o.window > 0 && is_counted(o.commit))
    refuse(words.window, " needs ", words.parallel, ", got ", o.window);
  if (o.certainty_sigma > 0.0 && o.confidence != Confidence::Probability &&
      o.confidence != Confidence::Margin)
    refuse("certainty_sigma needs ", words.certain, ", got ", o.certainty_sigma);
  // Under a schedule there is no threshold to fall: published loops have both options at once.
  if (o.threshold_alpha > 0.0 && !is_counted(o.commit) &&
      !std::holds_alternative<ThresholdCommit>(o.commit))
    refuse(words.threshold_alpha, " needs ", words.threshold, ", got ", o.threshold_alpha);
  if (o.end_drops_rows && o.early_stop)
    refuse(words.end_drops_rows, " does not go with ", words.early_stop,
           ": that fills what this leaves masked");
}

}  // namespace detail

/// Refuses options that make no sense together or for the task, each of them in its own range
/// (check_options); throws std::invalid_argument in these words.
///
/// `block_length` must divide the response, and the blocks the steps, for the schedules of LLaDA
/// and Dream alone, and there not where the prompt holds masks, for which `response` may be 0; see
/// SequenceState.
inline void check_decoding(const DecodingOptions& options, const DecodingTask& task,
                           const DecodingWords& words) {
  const DecodingOptions& o = options;
  const auto refuse = [&](const auto&... parts) { base::refuse_argument(words.owner, parts...); };
  if (o.response < 1 && !task.prompt_has_masks)
    refuse(words.response, " must be at least 1 where ", words.prompt, " holds no mask, got ",
           o.response);
  detail::check_blocks(o, task, words, refuse);
  if (o.sampling != Sampling::Categorical && (o.top_p < 1.0 || o.top_k > 0))
    refuse("top_p and top_k need ", words.categorical, ", got top_p ", o.top_p, " and top_k ",
           o.top_k);
  check_rule(o.commit);
  if (std::holds_alternative<BernoulliCommit>(o.commit) && o.confidence != Confidence::Random)
    refuse(words.origin_needs);
  if (o.order_temperature > 0.0 && !is_counted(o.commit))
    refuse(words.order_temperature, " needs ", words.counted);
  detail::check_attention_aware(o, words, refuse);
  if (!task.has_end_tokens) {
    if (o.end_drops_rows) refuse(words.end_drops_rows, " needs ", words.end_tokens);
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
