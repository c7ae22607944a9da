// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "dllm_cache/base/error.hpp"
#include "dllm_cache/options.hpp"

// The decoding loops of published models by name. A loop is a set of defaults: every option that it
// sets can be given another value.
namespace dllm_cache::inline v0_1 {

/// How a model is decoded where nothing else is said.
struct ModelDecoding {
  std::string decoder = "llada";  ///< One of `decoders`.
  Index attention_block = 0;      ///< Rows a block that the model was made for; 0: not said.
};

/// A published decoding loop.
struct Decoder {
  using Default = std::pair<std::string_view, std::string_view>;  // key and value

  std::string_view name;
  Index attention_block = 0;       ///< Of a loop over block-causal attention, where the model says
                                   ///< none; 0: bidirectional.
  bool wants_model_block = false;  ///< What the model says is meant for this loop.
  bool categorical = false;        ///< Tokens are drawn as Dream does, not as LLaDA does.
  bool dream = false;              ///< `alg` names the order of commits, `eps` the schedule.
  bool even = false;               ///< EvenCommit.
  bool commits_next = false;       ///< See DecodingOptions::commit_next.
  std::array<Default, 5> defaults = {};  ///< Those behind the last have no key.
};

/// The loops that there are. Sources: `generate` of ML-GSAI/LLaDA at b7e6c35; Dream's
/// `diffusion_generate`; dllm/core/samplers/{mdlm,bd3lm}.py of ZHZisZZ/dllm at ca17675;
/// `block_diffusion_generate` of JetAstra/SDAR at c2041a8; `generate` in modeling.py of
/// Efficient-Large-Model/Fast_dLLM_v2_7B.
inline constexpr std::array<Decoder, 6> decoders = {{
    {.name = "llada", .defaults = {{{"remasking", "low_confidence"}}}},
    {.name = "dream", .categorical = true, .dream = true, .defaults = {{{"alg", "entropy"}}}},
    {.name = "mdlm", .defaults = {{{"schedule", "dllm"}, {"remasking", "low_confidence"}}}},
    {.name = "bd3lm",
     .attention_block = 32,
     .defaults = {{{"schedule", "dllm"},
                   {"remasking", "low_confidence"},
                   {"block_grid", "prompt_end"},
                   {"early_stop", "true"}}}},
    {.name = "sdar",
     .attention_block = 4,
     .wants_model_block = true,
     .categorical = true,
     .even = true,
     .defaults = {{{"remasking", "low_confidence_dynamic"},
                   {"threshold", "0.85"},
                   {"early_stop", "true"}}}},
    {.name = "fastdllm-v2",
     .attention_block = 32,
     .wants_model_block = true,
     .categorical = true,
     .even = true,
     .commits_next = true,
     .defaults = {{{"remasking", "low_confidence_dynamic"},
                   {"threshold", "1"},
                   {"early_stop", "true"},
                   {"stop_at", "prefix"},
                   {"trim_after_eos", "true"}}}},
}};

/// "llada, dream, ... or fastdllm-v2"
[[nodiscard]] inline std::string decoder_list() {
  std::string list;
  for (const Decoder& one : decoders) {
    list += &one == &decoders.front() ? "" : &one == &decoders.back() ? " or " : ", ";
    list += one.name;
  }
  return list;
}

/// The loop of that name; throws std::invalid_argument that lists all.
[[nodiscard]] inline const Decoder& find_decoder(std::string_view name) {
  for (const Decoder& one : decoders)
    if (one.name == name) return one;
  base::refuse_argument("decoder must be ", decoder_list(), ", got \"", name, "\"");
}

/// The loop that options ask for: `decoder`, Dream's where they have an `alg`, else the model's.
[[nodiscard]] inline const Decoder& find_decoder(const OptionValues& values,
                                                 const ModelDecoding& model) {
  if (const auto given = values.find("decoder"); given != values.end())
    return find_decoder(given->second);
  return find_decoder(values.contains("alg") ? "dream" : std::string_view(model.decoder));
}

namespace detail {

/// Lengths of blocks where they are not given: a block of attention has the length of the block
/// that is decoded, else the model's or the loop's; a sub-block is 8 rows where these divide it.
inline void add_block_defaults(OptionValues& values, const Decoder& decoder,
                               const ModelDecoding& model) {
  const auto given = values.find("block_length");
  const bool models = decoder.wants_model_block && model.attention_block > 0;
  const Index usual = models ? model.attention_block : decoder.attention_block;
  values.emplace("attention_block",
                 given != values.end() ? given->second : option_text<Index>(usual));
  const auto attention = parse_option<Index>(values.at("attention_block"), {});
  if (!attention || *attention == 0) return;  // refused, or bidirectional
  values.emplace("block_length", option_text(*attention));
  constexpr Index sub_block = 8;  // Fast-dLLM v2's small_block_size
  const auto length = parse_option<Index>(values.at("block_length"), {});
  if (decoder.commits_next && length && *length % sub_block == 0)
    values.emplace("small_block_length", option_text(sub_block));
}

}  // namespace detail

/// Options as text with the defaults of their loop where they say nothing; throws
/// std::invalid_argument for an unknown loop. `rules` are the keys of commit rules, of which one
/// given takes the place of the loop's.
[[nodiscard]] inline OptionValues with_defaults(OptionValues values, const ModelDecoding& model,
                                                std::span<const std::string> rules) {
  const Decoder& decoder = find_decoder(values, model);
  const bool has_rule = std::any_of(rules.begin(), rules.end(),
                                    [&](const std::string& key) { return values.contains(key); });
  values.emplace("decoder", decoder.name);
  for (const auto& [key, value] : decoder.defaults) {
    if (key.empty()) break;
    const bool is_rule = std::find(rules.begin(), rules.end(), key) != rules.end();
    // SDAR's other orders have no threshold; `remasking` stands before it.
    const auto remasking = values.find("remasking");
    const bool no_threshold = key == "threshold" && remasking != values.end() &&
                              remasking->second != "low_confidence_dynamic";
    if (!is_rule || !(has_rule || no_threshold)) values.emplace(key, value);
  }
  if (decoder.attention_block > 0) detail::add_block_defaults(values, decoder, model);
  return values;
}

}  // namespace dllm_cache::inline v0_1
