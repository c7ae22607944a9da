// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dllm_cache/models/checkpoint/config.hpp"

// Every key of config.json that checkpoints of these families are known to have, so that none that
// changes the computation is passed over. To teach a loader a key, read it there and give it a line
// here without `legal`.
namespace dllm_cache::inline v0_1::models {

/// How a checkpoint's keys are called: as LLaDA calls them, or as Llama and Qwen2 do.
enum class KeyStyle { Llada, Llama };

/// One key of config.json.
struct ConfigKey {
  std::string_view name;  ///< One that ends in * stands for all that begin so.
  /// Legal values as JSON with | between them; empty: all, read by a loader or without effect.
  std::string_view legal = {};
  std::string_view needs = {};  ///< What another value would need.
};

namespace detail {

/// Of every checkpoint: what Python's PretrainedConfig writes, and settings of training, sampling
/// and other programs. Nothing here changes the layers' computation.
inline constexpr std::array general_keys = std::to_array<ConfigKey>({
    {"_*"},
    {"architectures"},
    {"auto_map"},
    {"attn_implementation"},
    {"bad_words_ids"},
    {"begin_suppress_tokens"},
    {"bos_token_id"},
    {"chunk_size_feed_forward"},
    {"decoder_start_token_id"},
    {"diversity_penalty"},
    {"do_sample"},
    {"dtype"},
    {"early_stopping"},
    {"encoder_no_repeat_ngram_size"},
    {"eos_token_id"},
    {"exponential_decay_length_penalty"},
    {"finetuning_task"},
    {"forced_bos_token_id"},
    {"forced_eos_token_id"},
    {"gradient_checkpointing"},
    {"id2label"},
    {"initializer_range"},
    {"label2id"},
    {"length_penalty"},
    {"mask_token"},
    {"mask_token_id"},
    {"max_length"},
    {"max_new_tokens"},
    {"min_length"},
    {"model_max_length"},
    {"model_type"},
    {"no_repeat_ngram_size"},
    {"num_beam_groups"},
    {"num_beams"},
    {"num_return_sequences"},
    {"output_attentions"},
    {"output_hidden_states"},
    {"output_scores"},
    {"pad_token_id"},
    {"prefix"},
    {"problem_type"},
    {"remove_invalid_values"},
    {"repetition_penalty"},
    {"return_dict"},
    {"return_dict_in_generate"},
    {"sep_token_id"},
    {"suppress_tokens"},
    {"task_specific_params"},
    {"temperature"},
    {"tf_legacy_loss"},
    {"tokenizer_*"},
    {"top_k"},
    {"top_p"},
    {"torch_dtype"},
    {"torchscript"},
    {"transformers_version"},
    {"typical_p"},
    {"unsloth_*"},
    {"use_bfloat16"},
    {"use_cache"},
    // Dropout is for training.
    {"attention_dropout"},
    {"embedding_dropout"},
    {"hidden_dropout"},
    {"residual_dropout"},
    {"resid_pdrop"},
    {"embd_pdrop"},
    {"attn_pdrop"},
    // Quantised weights are refused where the files are read.
    {"quantization"},
    {"quantization_config"},
    {"compression_config"},
    // Vision towers and their projectors are not read: the text part runs alone.
    {"mm_*"},
    {"image_*"},
    {"vision_*"},
    {"video_*"},
    {"use_mm_proj"},
    {"add_faster_video"},
    {"add_time_instruction"},
    {"faster_token_stride"},
    {"force_sample"},
    {"pos_skipping_range"},
    {"is_decoder", "false"},
    {"is_encoder_decoder", "false"},
    {"add_cross_attention", "false"},
    {"cross_attention_hidden_size", "null", "attention to another model"},
    {"tie_encoder_decoder", "false"},
    {"pruned_heads", "{}", "heads of unequal number"},
    {"num_experts", "0|1", "a mixture of experts"},
    {"num_local_experts", "0|1", "a mixture of experts"},
    {"n_routed_experts", "0|1", "a mixture of experts"},
    {"num_experts_per_tok", "0|1", "a mixture of experts"},
    {"moe_*", "null|false|0", "a mixture of experts"},
    {"final_logit_softcapping", "null", "capped logits"},
    {"attn_logit_softcapping", "null", "capped attention"},
    {"query_pre_attn_scalar", "null", "another scale of attention"},
    {"attention_multiplier", "null", "another scale of attention"},
    {"embedding_multiplier", "1", "scaled embeddings"},
    {"residual_multiplier", "1", "scaled residuals"},
    {"logits_scaling", "1", "scaled logits"},
    {"rope_parameters"},
    {"rope_scaling"},
    {"rope_theta"},
    {"partial_rotary_factor", "1", "rotation of a part of each head"},
    {"rotary_pct", "1", "rotation of a part of each head"},
    {"rope_local_base_freq", "null", "another base in some layers"},
    {"rope_interleaved", "false", "rotation of neighbouring dimensions"},
    {"rope_interleave", "false", "rotation of neighbouring dimensions"},
    {"no_rope_layers", "null|[]", "layers without rotation"},
    {"qk_layernorm", "false", "norms over queries and keys"},
    {"qk_norm", "false", "norms over queries and keys"},
    {"use_qk_norm", "false", "norms over queries and keys"},
    {"clip_qkv", "null", "clipped queries, keys and values"},
    {"parallel_attn", "false", "attention beside the feed-forward"},
    {"norm_after", "false", "norms behind the layers"},
    {"block_size", "null|0", "block-causal attention"},
    {"bd_size", "null|0", "block-causal attention"},
    {"attention_block", "null|0", "block-causal attention"},
    {"pretraining_tp", "0|1", "products in slices"},
});

/// Under the names of LLaDA (GSAI-ML), and of MMaDA, which has them too.
inline constexpr std::array llada_keys = std::to_array<ConfigKey>({
    {"bias_for_layer_norm"},
    {"d_model"},
    {"embedding_size"},
    {"include_bias"},
    {"include_qkv_bias"},
    {"max_sequence_length"},
    {"mlp_hidden_size"},
    {"mlp_ratio"},
    {"multi_query_attention"},
    {"n_heads"},
    {"n_kv_heads"},
    {"n_layers"},
    {"rms_norm_eps"},
    {"vocab_size"},
    {"weight_tying"},
    {"alibi_bias_max"},
    {"attention_layer_norm_with_affine"},
    {"flash_attention"},
    {"init_cutoff_factor"},
    {"init_device"},
    {"init_fn"},
    {"init_std"},
    {"precision"},
    {"rope_full_precision"},
    {"tie_word_embeddings"},
    {"codebook_size"},
    {"llm_vocab_size"},
    {"new_vocab_size"},
    {"num_vq_tokens"},
    {"num_new_special_tokens"},
    {"llm_model_path"},
    {"pretrained_model_path"},
    {"w_clip_vit"},
    {"activation_type", "\"silu\"", "another activation"},
    {"alibi", "false", "ALiBi in place of rotation"},
    {"attention_layer_norm", "false", "norms over queries and keys"},
    {"block_group_size", "1", "layers in groups"},
    {"block_type", "\"llama\"", "other blocks"},
    {"input_emb_norm", "false", "a norm over embeddings"},
    {"layer_norm_type", "\"rms\"", "another norm"},
    {"layer_norm_with_affine", "true", "norms without weights"},
    {"rope", "true", "positions without rotation"},
    {"scale_logits", "false", "scaled logits"},
});

/// Under the names of Llama and Qwen2: Dream and its kin, and LLaDA as converters write it.
inline constexpr std::array llama_keys = std::to_array<ConfigKey>({
    {"attention_bias"},
    {"head_dim"},
    {"hidden_size"},
    {"intermediate_size"},
    {"max_position_embeddings"},
    {"num_attention_heads"},
    {"num_hidden_layers"},
    {"num_key_value_heads"},
    {"rms_norm_eps"},
    {"tie_word_embeddings"},
    {"vocab_size"},
    {"layer_types"},
    {"mlp_bias"},
    {"max_window_layers"},
    {"sliding_window"},  // read beside use_sliding_window
    {"hidden_act", "\"silu\"|\"swish\"", "another activation"},
    {"use_mrope", "false", "rotation by several positions"},
    {"use_sliding_window", "false", "attention within a window"},
});

/// The line of a key, or nullptr.
[[nodiscard]] inline const ConfigKey* find_key(std::span<const ConfigKey> keys,
                                               std::string_view name) {
  const auto found = std::find_if(keys.begin(), keys.end(), [&](const ConfigKey& key) {
    return key.name.ends_with('*') ? name.starts_with(key.name.substr(0, key.name.size() - 1))
                                   : key.name == name;
  });
  return found == keys.end() ? nullptr : &*found;
}

/// Whether a value is one of a key's legal ones.
[[nodiscard]] inline bool is_legal(const ConfigKey& key, const nlohmann::json& value) {
  std::string_view rest = key.legal;
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find('|'), rest.size());
    if (nlohmann::json::parse(rest.substr(0, end)) == value) return true;
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return key.legal.empty();
}

/// "false or absent"
[[nodiscard]] inline std::string legal_text(const ConfigKey& key) {
  std::string text(key.legal);
  for (std::size_t at = 0; (at = text.find('|', at)) != std::string::npos;)
    text.replace(at, 1, ", ");
  return text + " or absent";
}

/// Refuses a key whose value would need what is not computed; returns the keys that are not known.
/// Throws std::runtime_error naming the key, its value, what is legal and what would be needed.
[[nodiscard]] inline std::vector<std::string> check_config_keys(const ConfigReader& reader,
                                                                const nlohmann::json& config,
                                                                KeyStyle style) {
  const std::span<const ConfigKey> own = style == KeyStyle::Llada
                                             ? std::span<const ConfigKey>(llada_keys)
                                             : std::span<const ConfigKey>(llama_keys);
  std::vector<std::string> unknown;
  for (const auto& [name, value] : config.items()) {
    const ConfigKey* key = find_key(own, name);
    if (key == nullptr) key = find_key(general_keys, name);
    if (key == nullptr)
      unknown.push_back(name);
    else if (!value.is_null() && !is_legal(*key, value))
      reader.refuse(name, key->needs.empty()
                              ? legal_text(*key)
                              : base::text(legal_text(*key), "; ", key->needs, " is not computed"));
  }
  return unknown;
}

}  // namespace detail
}  // namespace dllm_cache::inline v0_1::models
