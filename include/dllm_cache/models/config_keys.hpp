// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace dllm_cache::inline v0_1::models {

/// Names of keys and tensors in a checkpoint.
enum class Naming : std::uint8_t {
  LLaDA,  ///< `d_model`, `model.transformer.blocks.0.q_proj`
  Llama,  ///< `hidden_size`, `model.layers.0.self_attn.q_proj`: also those of Dream and Qwen2.
  All,    ///< In the table: whichever.
};

/// What becomes of a key of config.json.
enum class KeyUse : std::uint8_t {
  Computed,       ///< A loader reads it.
  WithoutEffect,  ///< Whatever its value, the logits are the same.
  Restricted,     ///< Some values change nothing, any other is refused.
};

/// A row of the table: keys of one use.
struct ConfigKeys {
  Naming naming;
  KeyUse use;
  std::string_view names;         ///< Separated by spaces; one that ends with '*' is a beginning.
  std::string_view allowed = {};  ///< A JSON list of the values of a restricted key, null apart.
  std::string_view needed = {};   ///< What other values ask for, for the message.
};

/// Every key that the published checkpoints of the families have, and those that other models of
/// this shape have for what is not computed here. No key is ignored: one that is not in the table
/// is warned about.
inline constexpr std::array<ConfigKeys, 63> config_keys = {{
    // Which model it is, and tokens.
    {Naming::All, KeyUse::Computed,
     "model_type architectures vocab_size mask_token_id eos_token_id "
     "quantization_config quantization compression_config"},
    {Naming::All, KeyUse::WithoutEffect,
     "bos_token_id pad_token_id sep_token_id decoder_start_token_id"},
    // Sizes, under the names of LLaDA and under those of Llama and Qwen2.
    {Naming::LLaDA, KeyUse::Computed,
     "d_model n_heads n_kv_heads n_layers mlp_ratio mlp_hidden_size embedding_size "
     "new_vocab_size multi_query_attention"},
    {Naming::Llama, KeyUse::Computed,
     "hidden_size num_attention_heads num_key_value_heads num_hidden_layers "
     "intermediate_size"},
    {Naming::All, KeyUse::Computed, "head_dim max_sequence_length max_position_embeddings"},
    // Norms, biases and the head.
    {Naming::All, KeyUse::Computed, "rms_norm_eps layer_norm_eps"},
    {Naming::LLaDA, KeyUse::Computed,
     "include_bias include_qkv_bias bias_for_layer_norm weight_tying"},
    {Naming::Llama, KeyUse::Computed, "attention_bias mlp_bias tie_word_embeddings"},
    {Naming::LLaDA, KeyUse::Restricted, "attention_bias mlp_bias", R"([false])",
     "biases under another name"},
    {Naming::LLaDA, KeyUse::WithoutEffect, "tie_word_embeddings"},
    {Naming::Llama, KeyUse::Restricted, "include_bias include_qkv_bias", R"([false])",
     "biases under another name"},
    {Naming::All, KeyUse::Restricted, "layer_norm_type", R"(["rms"])", "other norms"},
    {Naming::All, KeyUse::Restricted, "layer_norm_with_affine", R"([true])",
     "norms without weights"},
    {Naming::All, KeyUse::Restricted, "norm_after", R"([false])", "norms behind the layers"},
    {Naming::All, KeyUse::Restricted, "input_emb_norm embedding_layer_norm", R"([false])",
     "a norm of the embedding"},
    {Naming::All, KeyUse::Restricted,
     "attention_layer_norm qk_layernorm qk_norm use_qk_norm use_qk_layernorm", R"([false])",
     "norms of queries and keys"},
    {Naming::All, KeyUse::WithoutEffect, "attention_layer_norm_with_affine"},
    // Blocks and activations.
    {Naming::All, KeyUse::Restricted, "block_type", R"(["llama"])", "other blocks"},
    {Naming::All, KeyUse::Restricted, "block_group_size", R"([1])", "weights in groups of blocks"},
    {Naming::All, KeyUse::Restricted,
     "activation_type hidden_act hidden_activation activation_function", R"(["silu","swish"])",
     "other activations"},
    {Naming::All, KeyUse::Restricted, "parallel_residual use_parallel_residual", R"([false])",
     "attention and feed-forward side by side"},
    // Positions.
    {Naming::All, KeyUse::Computed, "rope_theta rope_parameters rope_scaling"},
    {Naming::All, KeyUse::Restricted, "rope", R"([true])", "positions without rotary embedding"},
    {Naming::All, KeyUse::Restricted, "alibi", R"([false])", "ALiBi"},
    {Naming::All, KeyUse::WithoutEffect,
     "alibi_bias_max rope_full_precision original_max_position_embeddings"},
    {Naming::All, KeyUse::Restricted, "partial_rotary_factor rotary_pct", R"([1])",
     "a rotary embedding of a part of each head"},
    {Naming::All, KeyUse::Restricted, "rotary_dim", R"([])",
     "a rotary embedding of a part of each head"},
    {Naming::All, KeyUse::Restricted, "rotary_base rope_base", R"([])",
     "a base other than rope_theta"},
    {Naming::All, KeyUse::Restricted, "rope_local_base_freq", R"([])",
     "layers with bases of their own"},
    {Naming::All, KeyUse::Restricted, "rope_interleaved rope_interleave", R"([false])",
     "pairs of neighbours that turn"},
    {Naming::All, KeyUse::Restricted, "no_rope_layers", R"([])", "layers without rotary embedding"},
    {Naming::All, KeyUse::Restricted, "use_mrope", R"([false])", "positions of several axes"},
    {Naming::All, KeyUse::Restricted, "mrope_section", R"([])", "positions of several axes"},
    {Naming::All, KeyUse::Restricted, "position_embedding_type", R"(["rope","rotary","absolute"])",
     "other positions"},
    // Attention.
    {Naming::All, KeyUse::Restricted, "use_sliding_window", R"([false])",
     "attention within a window"},
    {Naming::All, KeyUse::WithoutEffect,
     "sliding_window max_window_layers flash_attention use_flash_attn "
     "use_flash_attention attn_implementation attn_impl attention_softmax_in_fp32 "
     "pretraining_tp"},
    {Naming::All, KeyUse::Restricted, "layer_types", R"(["full_attention"])",
     "attention within a window"},
    {Naming::All, KeyUse::Restricted, "sliding_window_pattern", R"([])",
     "attention within a window"},
    {Naming::All, KeyUse::Restricted, "attention_chunk_size", R"([])", "attention within chunks"},
    // Computed for the kind whose Family::block_key it is.
    {Naming::All, KeyUse::Restricted, "block_size bd_size", R"([])", "attention by blocks"},
    {Naming::All, KeyUse::Restricted, "is_causal", R"([false])", "causal attention"},
    {Naming::All, KeyUse::Restricted, "clip_qkv", R"([])", "clamped queries, keys and values"},
    {Naming::All, KeyUse::Restricted, "attn_logit_softcapping", R"([])",
     "attention with capped scores"},
    {Naming::All, KeyUse::Restricted,
     "attention_multiplier query_pre_attn_scalar scale_attention_softmax", R"([])",
     "another scale of attention"},
    {Naming::All, KeyUse::Restricted, "scale_attn_weights", R"([true])",
     "another scale of attention"},
    {Naming::All, KeyUse::Restricted, "scale_attn_by_inverse_layer_idx", R"([false])",
     "another scale of attention"},
    {Naming::All, KeyUse::Restricted, "q_lora_rank kv_lora_rank", R"([])", "latent attention"},
    // Factors of features and logits.
    {Naming::All, KeyUse::Restricted, "scale_logits", R"([false])", "scaled logits"},
    {Naming::All, KeyUse::Restricted,
     "final_logit_softcapping logit_softcapping final_logit_softcap", R"([])", "capped logits"},
    {Naming::All, KeyUse::Restricted, "logits_scaling logit_scale", R"([1])", "scaled logits"},
    {Naming::All, KeyUse::Restricted, "embedding_multiplier scale_emb", R"([1])",
     "a scaled embedding"},
    {Naming::All, KeyUse::Restricted, "scale_embedding", R"([false])", "a scaled embedding"},
    {Naming::All, KeyUse::Restricted, "residual_multiplier", R"([1])", "scaled layers"},
    {Naming::All, KeyUse::Restricted, "scale_depth", R"([])", "scaled layers"},
    {Naming::All, KeyUse::Restricted, "dim_model_base", R"([])", "scaled logits"},
    // Mixtures of experts.
    {Naming::All, KeyUse::Restricted,
     "num_experts n_routed_experts num_local_experts num_shared_experts "
     "n_shared_experts num_experts_per_tok moe_intermediate_size "
     "expert_intermediate_size shared_expert_intermediate_size first_k_dense_replace",
     R"([0])", "a mixture of experts"},
    {Naming::All, KeyUse::Restricted, "moe_*", R"([0,false])", "a mixture of experts"},
    {Naming::All, KeyUse::Restricted, "num_nextn_predict_layers", R"([0])",
     "layers of the prediction behind the next"},
    // Of the training and of the Python library.
    {Naming::All, KeyUse::WithoutEffect,
     "attention_dropout residual_dropout embedding_dropout hidden_dropout resid_pdrop "
     "embd_pdrop attn_pdrop init_device init_fn init_std init_cutoff_factor "
     "initializer_range precision gradient_checkpointing use_cache "
     "cache_implementation auto_map torch_dtype dtype transformers_version "
     "name_or_path return_dict output_hidden_states output_attentions output_scores "
     "torchscript use_bfloat16 tf_legacy_loss chunk_size_feed_forward "
     "tie_encoder_decoder finetuning_task id2label label2id tokenizer_class prefix "
     "task_specific_params problem_type is_decoder cross_attention_hidden_size "
     "use_return_dict debug fuse_cross_entropy conplemenrary_mask _*"},
    {Naming::All, KeyUse::Restricted, "pruned_heads", R"([{}])", "heads that were cut out"},
    {Naming::All, KeyUse::Restricted, "is_encoder_decoder add_cross_attention", R"([false])",
     "an encoder"},
    // Defaults of Python samplers: a request says what is wanted.
    {Naming::All, KeyUse::WithoutEffect,
     "max_length min_length max_new_tokens do_sample early_stopping num_beams "
     "num_beam_groups diversity_penalty temperature top_k top_p typical_p "
     "repetition_penalty length_penalty no_repeat_ngram_size "
     "encoder_no_repeat_ngram_size bad_words_ids num_return_sequences "
     "return_dict_in_generate forced_bos_token_id forced_eos_token_id "
     "remove_invalid_values exponential_decay_length_penalty suppress_tokens "
     "begin_suppress_tokens alg alg_temp steps eps"},
    // Images and sound of multimodal checkpoints, of which the text part is computed.
    {Naming::All, KeyUse::WithoutEffect,
     "llm_vocab_size codebook_size num_vq_tokens num_new_special_tokens w_clip_vit "
     "pretrained_model_path llm_model_path tokenizer_path tokenizer_model_max_length "
     "tokenizer_padding_side tune_mm_mlp_adapter unfreeze_mm_vision_tower use_mm_proj "
     "delay_load add_faster_video add_time_instruction faster_token_stride "
     "force_sample use_pos_skipping pos_skipping_range text_tokenizer_path mm_* "
     "image_* video_* vision_* audio_*"},
}};

}  // namespace dllm_cache::inline v0_1::models
