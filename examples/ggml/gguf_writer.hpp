// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ggml-cpp.h>
#include <ggml.h>
#include <gguf.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <vector>

#include "dllm_cache/models/load_model.hpp"
#include "programs/text/safetensors_writer.hpp"

// Checkpoint folders of LLaDA and Dream as GGUF files with the keys, names and layout that
// convert_hf_to_gguf.py of ggml-org/llama.cpp gives them (conversion/llada.py, dream.py), but for
// the tokenizer, which is left out or numbers tokens.
namespace ggml_runtime {

using dllm_cache::Index;

/// The type that llama.cpp falls back to where rows are no multiple of the blocks of `type`:
/// llama-quantize takes Q5_0 for Q4_K, and both it and the converter take F16 in the end.
[[nodiscard]] inline ggml_type fitting_type(ggml_type type, Index row) {
  if (type == GGML_TYPE_Q4_K && row % ggml_blck_size(type) != 0) type = GGML_TYPE_Q5_0;
  return row % ggml_blck_size(type) == 0 ? type : GGML_TYPE_F16;
}

/// What a file says of text. llama.cpp's programs refuse a file without a tokenizer.
enum class Tokenizer {
  None,
  Numbers,  ///< The text of token 17 is `<17>`: text goes in and comes out as token ids.
};

/// Writes one GGUF file; see write_gguf().
class GgufWriter {
 public:
  GgufWriter(const std::filesystem::path& folder, ggml_type matrices,
             Tokenizer tokenizer = Tokenizer::None)
      : m_folder(folder),
        m_model(dllm_cache::models::load_model(folder,
                                               {.backend = dllm_cache::models::Backend::Eigen})),
        m_matrices(matrices),
        m_gguf(gguf_init_empty()) {
    if (m_gguf == nullptr) throw std::bad_alloc();
    const Index tensors = 12 * m_model->config.layers + 3;
    m_context.reset(
        ggml_init({static_cast<std::size_t>(tensors) * ggml_tensor_overhead(), nullptr, true}));
    if (m_context == nullptr) throw std::bad_alloc();
    m_architecture = architecture();
    set_keys();
    set_tokenizer(tokenizer);
    add_tensors();
  }

  /// Writes `path`, which is replaced when all of it is written.
  void write(const std::filesystem::path& path) {
    programs::ReplacingFile file(path);
    std::vector<std::byte> header(gguf_get_meta_size(m_gguf.get()));
    gguf_get_meta_data(m_gguf.get(), header.data());
    file.write(header);
    for (const Entry& entry : m_entries) write(file, entry);
    file.commit();
  }

  /// How many tensors have which type.
  [[nodiscard]] std::map<std::string, int> types() const {
    std::map<std::string, int> counts;
    for (const Entry& entry : m_entries) ++counts[ggml_type_name(entry.type)];
    return counts;
  }

 private:
  struct Entry {
    const dllm_cache::models::Tensor* from;
    ggml_type type;
    Index rows, row;
    Index head_dim;  // of rows that are laid out anew; 0: as they are
  };

  [[nodiscard]] std::string architecture() const {
    using dllm_cache::models::Computation;
    const auto reader = m_folder.config_reader();
    const auto& family = dllm_cache::models::family_of(reader);
    if (family.computation == Computation::Own)
      reader.refuse_file("expected a LLaDA or a Dream, got architecture ", family.architecture);
    if (m_model->config.rotary_scaling != dllm_cache::models::RotaryScaling{})
      reader.refuse_file("a scaled rotary embedding is not written here");
    return family.computation == Computation::Dream ? "dream" : "llada";
  }

  void set_keys() {
    const auto& config = m_model->config;
    gguf_context* const g = m_gguf.get();
    const std::string prefix = m_architecture + ".";
    const auto count = [&](const char* name, Index value) {
      gguf_set_val_u32(g, (prefix + name).c_str(), static_cast<std::uint32_t>(value));
    };
    const bool dream = m_architecture == "dream";
    // As llama.cpp numbers them: all F32, mostly BF16, Q8_0, Q4_K_S.
    const std::uint32_t file_type = m_matrices == GGML_TYPE_F32    ? 0
                                    : m_matrices == GGML_TYPE_BF16 ? 32
                                    : m_matrices == GGML_TYPE_Q8_0 ? 7
                                                                   : 14;
    gguf_set_val_str(g, "general.architecture", m_architecture.c_str());
    gguf_set_val_str(g, "general.type", "model");
    gguf_set_val_str(g, "general.name", m_folder.path().filename().string().c_str());
    gguf_set_val_u32(g, "general.file_type", file_type);
    gguf_set_val_u32(g, "general.quantization_version", GGML_QNT_VERSION);
    count("block_count", config.layers);
    count("context_length", config.max_positions > 0 ? config.max_positions : 4096);
    count("embedding_length", config.width);
    count("feed_forward_length", config.feed_forward);
    count("attention.head_count", config.heads.heads);
    count("attention.head_count_kv", config.heads.kv_heads);
    if (config.query_width() != config.width) {
      count("attention.key_length", config.heads.head_dim);
      count("attention.value_length", config.heads.head_dim);
    }
    gguf_set_val_f32(g, (prefix + "attention.layer_norm_rms_epsilon").c_str(),
                     m_model->final_norm.epsilon);
    gguf_set_val_f32(g, (prefix + "rope.freq_base").c_str(),
                     static_cast<float>(config.rotary_theta));
    count("rope.dimension_count", config.heads.head_dim);
    count("vocab_size", config.vocabulary);
    gguf_set_val_bool(g, (prefix + "attention.causal").c_str(), false);
    gguf_set_val_bool(g, "diffusion.shift_logits", dream);
    gguf_set_val_u32(g, "tokenizer.ggml.mask_token_id",
                     static_cast<std::uint32_t>(config.special.mask));
    if (!config.special.end_of_text.empty())
      gguf_set_val_u32(g, "tokenizer.ggml.eos_token_id",
                       static_cast<std::uint32_t>(config.special.end_of_text.first()));
  }

  void set_tokenizer(Tokenizer tokenizer) {
    gguf_context* const g = m_gguf.get();
    if (tokenizer == Tokenizer::None) {
      gguf_set_val_str(g, "tokenizer.ggml.model", "no_vocab");
      return;
    }
    // llama.cpp finds user-defined tokens in a text before it splits the rest of it into bytes, for
    // which there are no tokens here: whatever is not a number in angle brackets is dropped.
    std::vector<std::string> texts;
    for (Index token = 0; token < m_model->config.vocabulary; ++token)
      texts.push_back("<" + std::to_string(token) + ">");
    std::vector<const char*> pointers;
    for (const std::string& text : texts) pointers.push_back(text.c_str());
    const std::vector<std::int32_t> user_defined(texts.size(), 4);
    gguf_set_val_str(g, "tokenizer.ggml.model", "gpt2");
    gguf_set_val_str(g, "tokenizer.ggml.pre", "default");
    gguf_set_arr_str(g, "tokenizer.ggml.tokens", pointers.data(), pointers.size());
    gguf_set_arr_data(g, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, user_defined.data(),
                      user_defined.size());
    gguf_set_arr_str(g, "tokenizer.ggml.merges", nullptr, 0);
    gguf_set_val_bool(g, "tokenizer.ggml.add_bos_token", false);
    // Else llama.cpp lays words of ChatML around a prompt.
    gguf_set_val_str(g, "tokenizer.chat_template",
                     "{% for message in messages %}{{ message['content'] }}{% endfor %}");
  }

  void add_tensors() {
    const auto& config = m_model->config;
    const auto& names = dllm_cache::models::tensor_names(m_model->architecture);
    const Index width = config.width, wide = config.feed_forward;
    const Index queries = config.query_width(), keys = config.kv_width();
    // llama.cpp turns neighbours in the heads of LLaDA and halves in those of Dream.
    const Index turned = m_architecture == "llada" ? config.heads.head_dim : 0;
    add("token_embd", names.embedding, config.vocabulary, width);
    for (Index i = 0; i < config.layers; ++i) {
      const std::string to = "blk." + std::to_string(i) + ".", from = names.of_layer(i);
      add_vector(to + "attn_norm", from + names.attention_norm, width);
      add(to + "attn_q", from + names.query, queries, width, turned);
      add(to + "attn_k", from + names.key, keys, width, turned);
      add(to + "attn_v", from + names.value, keys, width);
      add_bias(to + "attn_q", from + names.query, queries, turned);
      add_bias(to + "attn_k", from + names.key, keys, turned);
      add_bias(to + "attn_v", from + names.value, keys);
      add(to + "attn_output", from + names.output, width, queries);
      add_vector(to + "ffn_norm", from + names.feed_forward_norm, width);
      add(to + "ffn_gate", from + names.gate, wide, width);
      add(to + "ffn_up", from + names.up, wide, width);
      add(to + "ffn_down", from + names.down, width, wide);
    }
    add_vector("output_norm", names.final_norm, width);
    if (!m_folder.config_reader().optional_bool(names.tied).value_or(false))
      add("output", names.head, config.vocabulary, width);
    for (const std::string& name : m_folder.unread())
      if (name.ends_with(".bias") && name.starts_with("model."))
        dllm_cache::models::detail::refuse_tensor(m_folder.path(), name,
                                                  "this bias has no place in the file");
  }

  void add(const std::string& to, const std::string& from, Index rows, Index row,
           Index head_dim = 0) {
    const auto& tensor = m_folder.weight(from + ".weight", {rows, row});
    add(to + ".weight", {&tensor, fitting_type(m_matrices, row), rows, row, head_dim}, 2);
  }
  void add_vector(const std::string& to, const std::string& from, Index size) {
    const auto& tensor = m_folder.weight(from + ".weight", {size});
    add(to + ".weight", {&tensor, GGML_TYPE_F32, 1, size, 0}, 1);
  }
  void add_bias(const std::string& to, const std::string& from, Index size, Index head_dim = 0) {
    if (m_folder.find(from + ".bias") == nullptr) return;
    const auto& tensor = m_folder.weight(from + ".bias", {size});
    add(to + ".bias", {&tensor, GGML_TYPE_F32, size, 1, head_dim}, 1);
  }
  void add(const std::string& name, const Entry& entry, int dimensions) {
    // A bias is written row by row, and is a vector in the file.
    const std::array<std::int64_t, 2> shape = {dimensions == 1 ? entry.rows * entry.row : entry.row,
                                               entry.rows};
    ggml_tensor* const tensor =
        ggml_new_tensor(m_context.get(), entry.type, dimensions, shape.data());
    ggml_set_name(tensor, name.c_str());
    gguf_add_tensor(m_gguf.get(), tensor);
    m_entries.push_back(entry);
  }

  // Writes the rows of a tensor, a few at a time, and what is missing to the next one's place.
  static void write(programs::ReplacingFile& file, const Entry& entry) {
    const Index together = std::max<Index>(1, (Index{1} << 20) / entry.row);
    std::vector<float> floats(static_cast<std::size_t>(std::min(together, entry.rows) * entry.row));
    std::vector<std::byte> bytes(
        ggml_row_size(entry.type, static_cast<std::int64_t>(floats.size())));
    std::size_t written = 0;
    for (Index begin = 0; begin < entry.rows; begin += together) {
      const Index count = std::min(together, entry.rows - begin);
      for (Index i = 0; i < count; ++i)
        dllm_cache::models::read_floats(*entry.from, source(entry, begin + i) * entry.row,
                                        entry.row, floats.data() + i * entry.row);
      const std::size_t made = ggml_quantize_chunk(entry.type, floats.data(), bytes.data(), 0,
                                                   count, entry.row, nullptr);
      file.write(std::span(bytes).first(made));
      written += made;
    }
    const std::array<std::byte, GGUF_DEFAULT_ALIGNMENT> zeros{};
    const std::size_t over = written % zeros.size();
    if (over > 0) file.write(std::span(zeros).first(zeros.size() - over));
  }
  // The row of the checkpoint that becomes `row`: of a head that is laid out anew, those of the
  // first and of the second half by turns.
  static Index source(const Entry& entry, Index row) {
    if (entry.head_dim == 0) return row;
    const Index in_head = row % entry.head_dim;
    return row - in_head + in_head % 2 * (entry.head_dim / 2) + in_head / 2;
  }

  dllm_cache::models::CheckpointFolder m_folder;
  std::shared_ptr<const dllm_cache::models::TransformerModel> m_model;
  ggml_type m_matrices;
  std::string m_architecture;
  gguf_context_ptr m_gguf;
  ggml_context_ptr m_context;
  std::vector<Entry> m_entries;
};

/// Writes the checkpoint in `folder` as the GGUF file `path`, matrices as `matrices` (F32, BF16,
/// Q8_0 or Q4_K; see fitting_type()), norms and biases as F32, with that tokenizer. Gives how many
/// tensors have which type.
///
/// Throws std::runtime_error naming the file and what is not read or written: what load_model()
/// refuses, other models than LLaDA and Dream, scaled rotary embeddings, and biases elsewhere than
/// at queries, keys and values.
inline std::map<std::string, int> write_gguf(const std::filesystem::path& folder,
                                             const std::filesystem::path& path, ggml_type matrices,
                                             Tokenizer tokenizer = Tokenizer::None) {
  GgufWriter writer(folder, matrices, tokenizer);
  writer.write(path);
  return writer.types();
}

}  // namespace ggml_runtime
