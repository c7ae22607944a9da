// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "programs/text/safetensors_writer.hpp"

namespace dllm_cache::testing {

/// Writes a checkpoint folder with this config.json and random weights: variants that the golden
/// models do not have. Keys that are absent have the loaders' defaults.
class RandomCheckpoint {
 public:
  RandomCheckpoint(const std::filesystem::path& folder, const nlohmann::json& config,
                   float bias_deviation = 0.1F)
      : m_dream(config.contains("hidden_size")), m_bias_deviation(bias_deviation) {
    const auto number = [&](const char* llada, const char* dream) {
      return config.at(m_dream ? dream : llada).get<std::int64_t>();
    };
    const auto flag = [&](const char* key) { return config.value(key, false); };
    const std::int64_t width = number("d_model", "hidden_size");
    const std::int64_t kv_width = width / number("n_heads", "num_attention_heads") *
                                  number("n_kv_heads", "num_key_value_heads");
    const std::int64_t hidden = number("mlp_hidden_size", "intermediate_size");
    const std::int64_t vocabulary = number("vocab_size", "vocab_size");
    const bool bias = flag("include_bias"),
               qkv_bias = bias || flag("include_qkv_bias") ||
                          config.value("attention_bias", config.at("model_type") == "Dream");

    const std::string root = m_dream ? "model." : "model.transformer.";
    add(root + (m_dream ? "embed_tokens" : "wte") + ".weight", {vocabulary, width}, 1.0F);
    for (std::int64_t i = 0; i < number("n_layers", "num_hidden_layers"); ++i) {
      const std::string layer = root + (m_dream ? "layers." : "blocks.") + std::to_string(i) + ".";
      const auto name = [&](const char* llada, const char* dream) {
        return layer + (m_dream ? dream : llada);
      };
      add_norm(name("attn_norm", "input_layernorm"), width, bias);
      add_norm(name("ff_norm", "post_attention_layernorm"), width, bias);
      add_linear(name("q_proj", "self_attn.q_proj"), width, width, qkv_bias);
      add_linear(name("k_proj", "self_attn.k_proj"), kv_width, width, qkv_bias);
      add_linear(name("v_proj", "self_attn.v_proj"), kv_width, width, qkv_bias);
      add_linear(name("attn_out", "self_attn.o_proj"), width, width, bias);
      add_linear(name("ff_proj", "mlp.gate_proj"), hidden, width, bias);
      add_linear(name("up_proj", "mlp.up_proj"), hidden, width, bias);
      add_linear(name("ff_out", "mlp.down_proj"), width, hidden, bias);
    }
    add_norm(root + (m_dream ? "norm" : "ln_f"), width, bias);
    if (!flag(m_dream ? "tie_word_embeddings" : "weight_tying"))
      add_linear(m_dream ? "lm_head" : root + "ff_out", vocabulary, width, bias);

    std::filesystem::create_directories(folder);
    m_writer.write(folder / "model.safetensors");
    std::ofstream(folder / "config.json") << config;
  }

 private:
  void add(const std::string& name, const std::vector<std::int64_t>& shape, float deviation,
           float mean = 0.0F) {
    std::int64_t count = 1;
    for (const std::int64_t size : shape) count *= size;
    std::vector<float> values(static_cast<std::size_t>(count));
    // Weights are the same whether there are biases or not.
    const bool is_bias = name.ends_with(".bias");
    std::normal_distribution<float> normal(mean, deviation > 0.0F ? deviation : 1.0F);
    if (deviation > 0.0F)
      for (float& one : values) one = normal(is_bias ? m_bias_engine : m_engine);
    m_writer.add(name, models::TensorType::F32, shape, std::as_bytes(std::span(values)));
  }
  void add_norm(const std::string& name, std::int64_t width, bool bias) {
    add(name + ".weight", {width}, 0.1F, 1.0F);
    if (bias) add(name + ".bias", {width}, m_bias_deviation);
  }
  void add_linear(const std::string& name, std::int64_t outputs, std::int64_t inputs, bool bias) {
    add(name + ".weight", {outputs, inputs}, 1.0F / std::sqrt(static_cast<float>(inputs)));
    if (bias) add(name + ".bias", {outputs}, m_bias_deviation);
  }

  bool m_dream;
  float m_bias_deviation;
  std::mt19937 m_engine{5}, m_bias_engine{6};
  programs::SafetensorsWriter m_writer;
};

/// Settings of a LLaDA that RandomCheckpoint can write: grouped queries, 8 heads of 32 dimensions.
inline nlohmann::json grouped_llada() {
  return {{"model_type", "llada"}, {"d_model", 256},         {"n_heads", 8},
          {"n_kv_heads", 4},       {"mlp_hidden_size", 512}, {"n_layers", 3},
          {"vocab_size", 128},     {"mask_token_id", 127},   {"rope_theta", 500000.0}};
}

/// The same of a Dream: with biases of queries, keys and values.
inline nlohmann::json grouped_dream() {
  return {{"model_type", "Dream"},    {"hidden_size", 256},       {"num_attention_heads", 8},
          {"num_key_value_heads", 4}, {"intermediate_size", 512}, {"num_hidden_layers", 3},
          {"vocab_size", 128},        {"mask_token_id", 127},     {"rope_theta", 1000000.0}};
}

}  // namespace dllm_cache::testing
