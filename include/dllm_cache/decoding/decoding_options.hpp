// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "dllm_cache/decoding/commit_rule.hpp"
#include "dllm_cache/options.hpp"

namespace dllm_cache::inline v0_1 {

namespace detail {
/// Rows that a prompt or a response may have.
inline constexpr Index most_rows = Index{1} << 31;
}  // namespace detail

/// How one sequence is decoded.
struct DecodingOptions {
  Index response = 128;    ///< Response rows (`gen_length`), at least 1; 0 where the prompt
                           ///< holds masks to fill.
  Index block_length = 0;  ///< Rows decoded together. Divides `attention_block`, or where that is
                           ///< 0 and the schedule LLaDA's or Dream's, `response`; 0: a block of
                           ///< attention, or all.
  Index steps = 0;         ///< Steps in all, a multiple of the number of blocks; 0: one a row.
                           ///< Read by counted commit rules only.
  Index steps_per_block = 0;     ///< Steps of every block, in place of its share of `steps`; 0: not
                                 ///< said. EvenCommit's default is one a row.
  Index attention_block = 0;     ///< Rows a block of block-causal attention, at most 65536; 0:
                                 ///< bidirectional.
  bool prompt_end_grid = false;  ///< Blocks of attention are counted from the prompt's end, not
                                 ///< from row 0.
  bool fuse_blocks = true;   ///< A finished block is stored in the first forward of the next one,
                             ///< not in a forward of its own; the answers are the same.
  bool commit_next = false;  ///< The forward that stores a finished block also commits the token
                             ///< behind it, whatever its confidence (Fast-dLLM v2); it is not fused
                             ///< then. Wants a model whose rows predict the next one's token.
  bool causal_commit = false;  ///< Finished rows see no row behind them; see SequenceShape.
  double temperature = 0.0;    ///< At least 0; 0: the likeliest token.
  Sampling sampling = Sampling::GumbelNoise;  ///< How temperature works; see SamplingRule.
  double top_p = 1.0;                         ///< In (0, 1]; see SamplingRule.
  Index top_k = 0;                            ///< At least 0; see SamplingRule.
  Confidence confidence = Confidence::Probability;
  CommitRule commit = CountedCommit{};
  double order_temperature = 0.0;  ///< At least 0: noise on the order in which rows are committed,
                                   ///< for counted rules; Dream's `alg_temp`.
  Index window = 0;                ///< Only the first so many masked rows may be committed in a
                                   ///< step (`window_length`), for parallel rules; 0: all. As in
                                   ///< Elastic-Cache (arXiv 2510.14973).
  double certainty_sigma = 0.0;    ///< Above 0: confidences, probabilities or margins, are weighed
                                   ///< by how much around a row is decoded: multiplied by its
                                   ///< base::decoded_density() of this width before the step, as in
                                   ///< d2Cache (arXiv 2509.23094); 0: not.
  double threshold_alpha = 0.0;    ///< In [0, 1]: ThresholdCommit's threshold falls within a block
                                   ///< (`confidence_alpha`), as in Streaming-dLLM (arXiv
                                   ///< 2601.17917); see SequenceState::commit. 0: it does not.
  double guidance_scale = 0.0;     ///< `cfg_scale`, at least 0; 0: no guidance.
  Index guidance_interval = 1;  ///< Steps between refreshes of the guidance residual, at least 1.
  bool early_stop = false;      ///< A finished block with an end token ends the sequence,
  bool stop_within_block = false;  ///< and so does an end token before which nothing is masked.
  bool trim_after_end = false;     ///< All behind the first end token of the response becomes one.
  bool end_drops_rows = false;     ///< The first step that commits an end token drops the masked
                                   ///< rows behind the lowest one: they keep the mask and are not
                                   ///< to be found (`eos_truncates`, as in Elastic-Cache).
  /// Tokens that are never predicted; their probabilities count as 0. As `suppress_tokens` of
  /// ZHZisZZ/dllm.
  std::vector<std::int32_t> suppress_tokens = {};
  /// Tokens that are predicted as ever, but are the least sure of all: they are committed last, and
  /// the confidence of other tokens is taken as if these could not be. As `begin_suppress_tokens`
  /// of ZHZisZZ/dllm.
  std::vector<std::int32_t> commit_last = {};
  bool suppress_end = false;  ///< The model's end tokens are never predicted; LLaDA's
                              ///< `logits_eos_inf`.
  bool end_last = false;      ///< They are committed last; LLaDA's `confidence_eos_eot_inf`.
  std::uint64_t seed = 0;
  std::uint64_t sequence = 0;  ///< Number of the sequence for random numbers.

  /// All but lists of tokens, `sampling`, `confidence` and `commit`, whose numbers the rules tell
  /// themselves; keys are those of requests (decoding_keys.hpp has them all).
  static void visit_options(auto& self, auto&& visit) {
    constexpr OptionRange<std::uint64_t> any_number{.least = 0};
    visit("response", self.response, between(0, Index{1} << 31), "tokens to generate",
          "gen_length");
    visit("block_length", self.block_length, OptionRange<Index>{.least = 1, .unset = 0},
          "tokens a block, decoded block after block (default gen_length)");
    visit("steps", self.steps, OptionRange<Index>{.least = 1, .unset = 0},
          "denoising steps in all, for counted schedules (default gen_length)");
    visit("steps_per_block", self.steps_per_block, OptionRange<Index>{.least = 1, .unset = 0},
          "denoising steps of every block (SDAR: default one a token)");
    visit("attention_block", self.attention_block,
          OptionRange<Index>{.least = 0, .most = Index{1} << 16, .unset = 0},
          "rows a block of block-causal attention, 0: bidirectional (default: the model's)");
    visit("prompt_end_grid", self.prompt_end_grid, yes_or_no, "", "");
    visit("fuse_blocks", self.fuse_blocks, yes_or_no,
          "store a finished block in the first forward of the next, not in one of its own");
    visit("commit_next", self.commit_next, yes_or_no, "", "");
    visit("causal_commit", self.causal_commit, yes_or_no, "", "");
    visit("temperature", self.temperature, finite_not_negative,
          "randomness of tokens: Gumbel noise for LLaDA, categorical for Dream");
    visit("top_p", self.top_p, OptionRange<double>{.least = 0.0, .most = 1.0, .above_least = true},
          "Dream: draw among the likeliest tokens of this share");
    visit("top_k", self.top_k, at_least(0), "Dream: draw among this many tokens, 0: all");
    visit("order_temperature", self.order_temperature, finite_not_negative,
          "randomness of the order of commits", "alg_temp");
    visit("window", self.window, OptionRange<Index>{.least = 1, .unset = 0},
          "parallel decoding: only the first so many masked tokens may be committed in a step",
          "window_length");
    visit("certainty_sigma", self.certainty_sigma,
          OptionRange<double>{.least = 0.0,
                              .most = std::numeric_limits<float>::max(),
                              .above_least = true,
                              .unset = 0.0},
          "weigh confidences by how much is decoded within about this many tokens");
    visit("threshold_alpha", self.threshold_alpha, from_0_to_1,
          "threshold: it falls by this share while a block is decoded, 0: not at all",
          "confidence_alpha");
    visit("guidance_scale", self.guidance_scale, finite_not_negative,
          "strength of classifier-free guidance", "cfg_scale");
    visit("guidance_interval", self.guidance_interval, at_least(1),
          "steps between refreshes of the guidance residual");
    visit("early_stop", self.early_stop, yes_or_no, "end when a finished block holds end-of-text");
    visit("stop_within_block", self.stop_within_block, yes_or_no, "", "");
    visit("trim_after_end", self.trim_after_end, yes_or_no,
          "make all behind the first end-of-text token one", "trim_after_eos");
    visit("end_drops_rows", self.end_drops_rows, yes_or_no,
          "the first end-of-text leaves what is masked behind it masked for good", "eos_truncates");
    visit("suppress_end", self.suppress_end, yes_or_no,
          "never predict end-of-text: none of the model's end tokens", "logits_eos_inf");
    visit("end_last", self.end_last, yes_or_no,
          "commit end-of-text last: end tokens count as the least sure", "confidence_eos_eot_inf");
    visit("seed", self.seed, any_number, "seed of all random numbers");
    visit("sequence", self.sequence, any_number, "", "");
  }
};

}  // namespace dllm_cache::inline v0_1
