// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpp.h>
#include <ggml-cpu.h>

#include <functional>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "dllm_cache/decoding/special_tokens.hpp"
#include "dllm_cache/feature_cache.hpp"
#include "dllm_cache/models/compute/head_shape.hpp"
#include "gguf_file.hpp"

// LLaDA and Dream as llama.cpp writes them into GGUF files.
namespace ggml_runtime {

/// What a file says about its model.
struct GgmlConfig {
  std::string architecture;  ///< "llada" or "dream"
  Index layers = 0;
  Index width = 0;
  dllm_cache::models::HeadShape heads;
  Index feed_forward = 0;
  Index vocabulary = 0;
  float epsilon = 0.0F;
  float rotary_theta = 0.0F;
  int rotary_mode = GGML_ROPE_TYPE_NORMAL;  ///< Which elements of a head are turned together.
  Index prediction_shift = 0;
  dllm_cache::SpecialTokens special;

  [[nodiscard]] Index query_width() const { return heads.heads * heads.head_dim; }
  [[nodiscard]] Index kv_width() const { return heads.kv_heads * heads.head_dim; }
  [[nodiscard]] dllm_cache::ModelShape shape() const {
    return {.layers = layers,
            .width = width,
            .query_width = query_width(),
            .kv_width = kv_width(),
            .heads = heads.heads};
  }
};

/// Reads the keys of a LLaDA or Dream. Throws std::runtime_error naming file and key: another
/// architecture, a missing or illegal key, and one that asks for what is not computed here.
[[nodiscard]] inline GgmlConfig read_config(const GgufFile& file) {
  constexpr Index widest = Index{1} << 24;
  GgmlConfig config;
  config.architecture = file.text("general.architecture");
  const bool dream = config.architecture == "dream";
  if (!dream && config.architecture != "llada")
    file.refuse_key("general.architecture", "\"llada\" or \"dream\"");
  const std::string prefix = config.architecture + ".";
  // What would change the computation.
  for (const std::string& key : file.keys())
    for (const char* other :
         {"rope.scal", "attention.sliding_window", "attention.clamp_kqv", "attention.scale",
          "attention.max_alibi_bias", "attn_logit_softcapping", "final_logit_softcapping",
          "logit_scale", "residual_scale", "embedding_scale", "expert_count"})
      if (key.starts_with(prefix + other) &&
          !(key == prefix + "rope.scaling.type" && file.text(key) == "none"))
        file.refuse_key(key, "no such key, since that is not computed here");
  if (file.flag(prefix + "attention.causal", false))
    file.refuse_key(prefix + "attention.causal", "false");

  config.layers = file.integer(prefix + "block_count", 1, 1 << 16);
  config.width = file.integer(prefix + "embedding_length", 1, widest);
  config.feed_forward = file.integer(prefix + "feed_forward_length", 1, widest);
  const std::string heads = prefix + "attention.head_count", kv_heads = heads + "_kv";
  config.heads.heads = file.integer(heads, 1, 1 << 16);
  config.heads.kv_heads =
      file.has(kv_heads) ? file.integer(kv_heads, 1, config.heads.heads) : config.heads.heads;
  if (config.heads.heads % config.heads.kv_heads != 0)
    file.refuse_key(kv_heads, "a divisor of the number of heads, ", config.heads.heads);
  const std::string head_dim = prefix + "attention.key_length";
  if (file.has(head_dim))
    config.heads.head_dim = file.integer(head_dim, 1, widest);
  else if (config.width % config.heads.heads == 0)
    config.heads.head_dim = config.width / config.heads.heads;
  else
    file.refuse_key(heads, "a divisor of embedding_length, ", config.width);
  if (config.heads.head_dim % 2 != 0)
    file.refuse("heads of ", config.heads.head_dim, " elements, expected an even number");
  for (const char* key : {"attention.value_length", "rope.dimension_count"})
    if (file.has(prefix + key) && file.integer(prefix + key, 1, widest) != config.heads.head_dim)
      file.refuse_key(prefix + key, config.heads.head_dim, ", as the heads have,");
  config.epsilon = file.number(prefix + "attention.layer_norm_rms_epsilon", 0.0, 1.0);
  const std::string theta = prefix + "rope.freq_base";
  config.rotary_theta = file.has(theta) ? file.number(theta, 1.0, 1e12) : 1e4F;
  config.rotary_mode = dream ? GGML_ROPE_TYPE_NEOX : GGML_ROPE_TYPE_NORMAL;
  config.prediction_shift = file.flag("diffusion.shift_logits", dream) ? 1 : 0;

  const GgufTensor* const embedding = file.find("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2)
    file.refuse(
        "tensor \"token_embd.weight\": expected two dimensions, got ",
        embedding == nullptr ? "no such tensor" : dllm_cache::models::shape_text(embedding->shape));
  config.vocabulary = embedding->shape[1];
  const std::string vocabulary = prefix + "vocab_size";
  if (file.has(vocabulary) && file.integer(vocabulary, 1, Index{1} << 31) != config.vocabulary)
    file.refuse_key(vocabulary, config.vocabulary, ", the rows of token_embd.weight,");
  const auto token = [&](const char* key) {
    return static_cast<std::int32_t>(file.integer(key, 0, config.vocabulary - 1));
  };
  config.special.mask = token("tokenizer.ggml.mask_token_id");
  if (file.has("tokenizer.ggml.eos_token_id"))
    config.special.end_of_text.add(token("tokenizer.ggml.eos_token_id"));
  return config;
}

/// What a weight is for.
enum class WeightUse {
  Vector,  ///< A norm or a bias, float32.
  Matrix,  ///< Products alone.
  Rows     ///< The embedding, whose rows are looked up.
};

/// Where a weight shall lie: a type of buffers of a backend, nullptr for where the file is mapped.
/// The tensor has a type and a shape, and no memory yet.
using WeightPlace = std::function<ggml_backend_buffer_type_t(const ggml_tensor& weight, WeightUse)>;

/// All weights where the file is mapped: for CPU backends.
[[nodiscard]] inline WeightPlace in_place() {
  return [](const ggml_tensor&, WeightUse) -> ggml_backend_buffer_type_t { return nullptr; };
}

/// All weights in buffers of one type, for example a GPU's.
[[nodiscard]] inline WeightPlace in_buffer(ggml_backend_buffer_type_t type) {
  return [type](const ggml_tensor&, WeightUse) { return type; };
}

/// Matrices in the first of the extra buffer types of a CPU backend (AMX, repacked quants) that
/// takes them; the others in place.
[[nodiscard]] inline WeightPlace repacked(ggml_backend_t cpu) {
  ggml_backend_dev_t const device = ggml_backend_get_device(cpu);
  const auto extra =
      reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(ggml_backend_reg_get_proc_address(
          ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
  return [device, extra](const ggml_tensor& weight, WeightUse use) -> ggml_backend_buffer_type_t {
    if (use != WeightUse::Matrix || extra == nullptr) return nullptr;
    for (ggml_backend_buffer_type_t* type = extra(device); type != nullptr && *type != nullptr;
         ++type) {
      const ggml_context_ptr context(ggml_init({4 * ggml_tensor_overhead(), nullptr, true}));
      const ggml_backend_buffer_ptr nothing(ggml_backend_buft_alloc_buffer(*type, 0));
      if (context == nullptr || nothing == nullptr) throw std::bad_alloc();
      ggml_tensor* const a =
          ggml_new_tensor_2d(context.get(), weight.type, weight.ne[0], weight.ne[1]);
      ggml_tensor* const b = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, weight.ne[0], 512);
      a->buffer = nothing.get();
      if (ggml_backend_dev_supports_op(device, ggml_mul_mat(context.get(), a, b))) return *type;
    }
    return nullptr;
  };
}

/// Weights of a layer; biases are nullptr where the file has none.
struct LayerTensors {
  ggml_tensor *attention_norm, *feed_forward_norm;  // [width]
  ggml_tensor *query, *key, *value, *output;        // [inputs, outputs], in ggml's order
  ggml_tensor *query_bias, *key_bias, *value_bias;  // [outputs]
  ggml_tensor *gate, *up, *down;
};

/// The weights of a model as tensors of ggml, each where it was asked for; const once made.
class Weights {
 public:
  /// Reads `file`, which is kept. Throws what read_config() throws and std::runtime_error naming a
  /// tensor that is missing, has another shape, or is of no use here; std::runtime_error naming a
  /// type of buffers that has no memory left.
  explicit Weights(std::shared_ptr<const GgufFile> file, WeightPlace place = in_place())
      : m_file(std::move(file)), m_place(std::move(place)), m_config(read_config(*m_file)) {
    using enum WeightUse;
    const Index width = m_config.width, wide = m_config.feed_forward;
    const Index queries = m_config.query_width(), keys = m_config.kv_width();
    m_embedding = tensor("token_embd.weight", {width, m_config.vocabulary}, Rows);
    m_final_norm = tensor("output_norm.weight", {width}, Vector);
    for (Index i = 0; i < m_config.layers; ++i) {
      const std::string layer = "blk." + std::to_string(i) + ".";
      const auto vector = [&](const char* name) {
        return tensor(layer + name + ".weight", {width}, Vector);
      };
      const auto matrix = [&](const char* name, Index inputs, Index outputs) {
        return tensor(layer + name + ".weight", {inputs, outputs}, Matrix);
      };
      const auto bias = [&](const char* name, Index outputs) -> ggml_tensor* {
        const std::string full = layer + name + ".bias";
        return m_file->find(full) == nullptr ? nullptr : tensor(full, {outputs}, Vector);
      };
      m_layers.push_back({.attention_norm = vector("attn_norm"),
                          .feed_forward_norm = vector("ffn_norm"),
                          .query = matrix("attn_q", width, queries),
                          .key = matrix("attn_k", width, keys),
                          .value = matrix("attn_v", width, keys),
                          .output = matrix("attn_output", queries, width),
                          .query_bias = bias("attn_q", queries),
                          .key_bias = bias("attn_k", keys),
                          .value_bias = bias("attn_v", keys),
                          .gate = matrix("ffn_gate", width, wide),
                          .up = matrix("ffn_up", width, wide),
                          .down = matrix("ffn_down", wide, width)});
    }
    const bool tied = m_file->find("output.weight") == nullptr;
    m_head =
        tensor(tied ? "token_embd.weight" : "output.weight", {width, m_config.vocabulary}, Matrix);
    if (const auto unread = m_file->unread(); !unread.empty())
      m_file->refuse("tensor ", dllm_cache::models::detail::in_quotes(unread.front()),
                     ": expected none of that name, since it is not computed here");
    upload();
  }

  [[nodiscard]] const GgmlConfig& config() const { return m_config; }
  [[nodiscard]] const LayerTensors& layer(Index number) const {
    return m_layers[static_cast<std::size_t>(number)];
  }
  /// `[width, vocabulary]` in ggml's order, for get_rows.
  [[nodiscard]] ggml_tensor* embedding() const { return m_embedding; }
  [[nodiscard]] ggml_tensor* final_norm() const { return m_final_norm; }
  /// `[width, vocabulary]` in ggml's order; holds what the embedding does where there is no other.
  [[nodiscard]] ggml_tensor* head() const { return m_head; }
  /// How many tensors lie where: names of types of buffers, "mapped" for the file itself.
  [[nodiscard]] std::map<std::string, int> places() const {
    std::map<std::string, int> counts;
    for (const auto& [type, group] : m_groups)
      counts[type == nullptr ? "mapped" : ggml_backend_buft_name(type)] +=
          static_cast<int>(group.tensors.size());
    return counts;
  }

 private:
  // Tensors of one type of buffers.
  struct Group {
    ggml_context_ptr context;
    ggml_backend_buffer_ptr buffer;
    std::vector<std::pair<ggml_tensor*, const GgufTensor*>> tensors;
  };

  ggml_tensor* tensor(const std::string& name, std::initializer_list<std::int64_t> shape,
                      WeightUse use) {
    const GgufTensor& read = m_file->tensor(name, shape);
    if (use == WeightUse::Vector && read.type != GGML_TYPE_F32)
      m_file->refuse("tensor \"", name, "\": expected type f32, got ", ggml_type_name(read.type));
    ggml_tensor asked{};  // type and shape alone
    asked.type = read.type;
    for (std::size_t i = 0; i < GGML_MAX_DIMS; ++i)
      asked.ne[i] = i < read.shape.size() ? read.shape[i] : 1;
    ggml_backend_buffer_type_t const type = m_place(asked, use);
    Group& group = m_groups[type];
    if (group.context == nullptr) {
      const auto tensors = static_cast<std::size_t>(12 * m_config.layers + 3);
      group.context.reset(ggml_init({tensors * ggml_tensor_overhead(), nullptr, true}));
      if (group.context == nullptr) throw std::bad_alloc();
    }
    for (const auto& [made, from] : group.tensors)
      if (from == &read) return made;  // a head that is the embedding
    ggml_tensor* const made = ggml_new_tensor(group.context.get(), read.type,
                                              static_cast<int>(shape.size()), shape.begin());
    ggml_set_name(made, name.c_str());
    // ggml writes no weights: a read-only mapping will do.
    if (type == nullptr) made->data = const_cast<std::byte*>(read.bytes.data());
    group.tensors.emplace_back(made, &read);
    return made;
  }

  void upload() {
    for (auto& [type, group] : m_groups) {
      if (type == nullptr) continue;
      group.buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(group.context.get(), type));
      if (group.buffer == nullptr)
        m_file->refuse("the weights do not fit into the memory of ", ggml_backend_buft_name(type));
      ggml_backend_buffer_set_usage(group.buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
      for (const auto& [made, from] : group.tensors)
        ggml_backend_tensor_set(made, from->bytes.data(), 0, from->bytes.size());
    }
  }

  std::shared_ptr<const GgufFile> m_file;
  WeightPlace m_place;
  GgmlConfig m_config;
  std::map<ggml_backend_buffer_type_t, Group> m_groups;
  std::vector<LayerTensors> m_layers;
  ggml_tensor* m_embedding = nullptr;
  ggml_tensor* m_final_norm = nullptr;
  ggml_tensor* m_head = nullptr;
};

}  // namespace ggml_runtime
