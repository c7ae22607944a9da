// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/torch.h>
#include <torch/version.h>

#include <cmath>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dllm_cache/decoding/step_model.hpp"
#include "dllm_cache/models/load_model.hpp"
#include "torch_layer.hpp"

// LLaDA and Dream in libtorch that carry out whole steps: keys, values and deltas are tensors on
// the device, rows are selected there, lists of rows go up and wanted logits come down.
namespace torch_runtime {

using dllm_cache::Index;

/// Row places `[count]` of the rows of fresh values `[m, kv]` least like those kept `[m, kv]`, ties
/// to the lower row and NaN first, as LeastSimilarRows; nothing is read back from the device.
struct Selection {
  Tensor places;   ///< `[count]`, the least similar first.
  Tensor squares;  ///< Signed squares of cosines of those, `[count]`.
};

[[nodiscard]] inline Selection select_rows(const Tensor& fresh, const Tensor& kept, Index count) {
  const auto sums = [](const Tensor& a, const Tensor& b) { return (a * b).sum(-1); };
  // Products of two floats are exact in float64.
  const Tensor a = fresh.to(kept.scalar_type()).to(torch::kFloat64), b = kept.to(torch::kFloat64);
  const Tensor dot = sums(a, b);
  const Tensor squares =
      dot * dot.abs() / (sums(a, a).clamp_min(1e-16) * sums(b, b).clamp_min(1e-16));
  const Tensor rank = torch::where(squares.isnan(), torch::full_like(squares, -2.0), squares);
  const Tensor places =
      std::get<1>(torch::sort(rank, /*stable=*/true, 0, /*descending=*/false)).slice(0, 0, count);
  return {places, squares.index_select(0, places)};
}

/// Whether rows are so similar that a threshold leaves them alone, `[count]`; NaN is not.
[[nodiscard]] inline Tensor reach_threshold(const Tensor& squares, double threshold) {
  return squares.sign() * squares.abs().sqrt() >= threshold;
}

/// A weight `[outputs, inputs]` and a bias `[outputs]`, undefined where there is none.
struct Projection {
  Tensor weight, bias;
  /// x `[m, inputs]` -> `[m, outputs]`.
  [[nodiscard]] Tensor operator()(const Tensor& x) const {
    return bias.defined() ? torch::linear(x, weight, bias) : torch::linear(x, weight);
  }
};

/// Weights of a layer on the device.
struct StepLayer {
  Tensor attention_norm, feed_forward_norm;  ///< `[d]`
  Projection query, key, value, output, gate, up, down;
};

/// Lists of row numbers of a step that go to the device in one upload.
class IndexUpload {
 public:
  /// Takes the numbers plus `shift`; what it gives names the list in operator[].
  std::size_t add(std::span<const std::int32_t> numbers, std::int64_t shift = 0) {
    m_begins.push_back(static_cast<std::int64_t>(m_numbers.size()));
    for (const std::int32_t one : numbers) m_numbers.push_back(one + shift);
    return m_begins.size() - 1;
  }
  void send(torch::Device device) {
    const auto size = static_cast<std::int64_t>(m_numbers.size());
    m_begins.push_back(size);
    m_sent = torch::from_blob(m_numbers.data(), {size}, torch::kInt64)
                 .to(device, torch::kInt64, /*non_blocking=*/false, /*copy=*/true);
  }
  /// The list `[n]` on the device.
  [[nodiscard]] Tensor operator[](std::size_t list) const {
    return m_sent.slice(0, m_begins[list], m_begins[list + 1]);
  }

 private:
  std::vector<std::int64_t> m_numbers, m_begins;
  Tensor m_sent;
};

/// Keys, values and deltas of a sequence on the device; a copy has tensors of its own.
class TorchFeatures {
 public:
  TorchFeatures(Index layers, Index rows, Index kv_width, dllm_cache::Range deltas, Index width,
                const torch::TensorOptions& options)
      : stored(deltas) {
    for (Index i = 0; i < layers; ++i) {
      // Rows never computed are masked: zeros, as NaN would pass through a weight of zero.
      keys.push_back(torch::zeros({rows, kv_width}, options));
      values.push_back(torch::zeros({rows, kv_width}, options));
      kept.push_back(torch::zeros({deltas.size(), width}, options));
    }
  }
  TorchFeatures(TorchFeatures&&) = default;
  TorchFeatures& operator=(TorchFeatures&&) = default;
  TorchFeatures(const TorchFeatures& other) : stored(other.stored) {
    const c10::InferenceMode inference;
    for (std::size_t i = 0; i < other.keys.size(); ++i) {
      keys.push_back(other.keys[i].clone());
      values.push_back(other.values[i].clone());
      kept.push_back(other.kept[i].clone());
    }
  }
  TorchFeatures& operator=(const TorchFeatures& other) { return *this = TorchFeatures(other); }
  ~TorchFeatures() = default;

  [[nodiscard]] Index bytes() const {
    std::size_t all = 0;
    for (const auto* list : {&keys, &values, &kept})
      for (const Tensor& one : *list) all += one.nbytes();
    return static_cast<Index>(all);
  }

  std::vector<Tensor> keys, values;  ///< `[rows, kv]` a layer.
  std::vector<Tensor> kept;          ///< Deltas `[stored rows, d]` a layer.
  dllm_cache::Range stored;
};

/// A transformer in libtorch as a StepModel. Products are over the rows of all sequences together,
/// selection and attention by sequence. One thread uses it at a time.
class TorchStepModel {
 public:
  using Features = TorchFeatures;

  /// Reads a checkpoint folder of LLaDA, Dream or another kind without norms of query heads; throws
  /// std::runtime_error naming file, key or tensor.
  explicit TorchStepModel(const dllm_cache::models::CheckpointFolder& folder,
                          torch::Device device = torch::kCPU,
                          torch::ScalarType type = torch::kFloat32)
      : m_options(torch::TensorOptions().device(device).dtype(type)) {
    const c10::InferenceMode inference;
    const auto reader = folder.config_reader();
    const auto mapped = dllm_cache::models::load_model(
        folder.path(), {.backend = dllm_cache::models::Backend::Eigen});
    const auto& names = dllm_cache::models::tensor_names(mapped->architecture);
    m_config = mapped->config;
    m_epsilon = static_cast<double>(mapped->final_norm.epsilon);
    const auto refuse = [&](const char* what) {
      throw std::runtime_error(folder.config_path().string() + ": " + what + " not computed here");
    };
    if (names.has_query_key_norms()) refuse("norms of query heads are");
    if (!mapped->final_norm.bias.empty()) refuse("biases of norms are");
    if (m_config.rotary_scaling != dllm_cache::models::RotaryScaling{})
      refuse("a scaled rotary embedding is");
    const Index d = m_config.width, q = m_config.query_width(), kv = m_config.kv_width(),
                ffn = m_config.feed_forward;
    const auto read = [&](const std::string& name, std::initializer_list<std::int64_t> sizes) {
      const auto& tensor = folder.weight(name, sizes);
      Tensor made = torch::empty(torch::IntArrayRef(sizes), torch::kFloat32);
      dllm_cache::models::read_floats(tensor, 0, made.numel(), made.data_ptr<float>());
      return made.to(m_options);
    };
    const auto linear = [&](const std::string& name, Index outputs, Index inputs) {
      Projection made{read(name + ".weight", {outputs, inputs}), {}};
      if (folder.find(name + ".bias") != nullptr) made.bias = read(name + ".bias", {outputs});
      return made;
    };
    m_embedding = read(std::string(names.embedding) + ".weight", {m_config.vocabulary, d});
    for (Index i = 0; i < m_config.layers; ++i) {
      const std::string p = names.of_layer(i);
      m_layers.push_back({read(p + names.attention_norm + ".weight", {d}),
                          read(p + names.feed_forward_norm + ".weight", {d}),
                          linear(p + names.query, q, d), linear(p + names.key, kv, d),
                          linear(p + names.value, kv, d), linear(p + names.output, d, q),
                          linear(p + names.gate, ffn, d), linear(p + names.up, ffn, d),
                          linear(p + names.down, d, ffn)});
    }
    m_final_norm = read(std::string(names.final_norm) + ".weight", {d});
    if (reader.optional_bool(names.tied).value_or(false))
      m_head = {m_embedding, {}};
    else
      m_head = linear(names.head, m_config.vocabulary, d);
    make_frequencies();
  }

  /// Random weights of a shape, to measure with.
  TorchStepModel(const dllm_cache::models::TransformerConfig& config, torch::Device device,
                 torch::ScalarType type)
      : m_options(torch::TensorOptions().device(device).dtype(type)), m_config(config) {
    const c10::InferenceMode inference;
    const Index d = config.width, q = config.query_width(), kv = config.kv_width(),
                ffn = config.feed_forward;
    const auto random = [&](Index outputs, Index inputs) {
      const double scale = 1.0 / std::sqrt(static_cast<double>(inputs));
      return Projection{torch::empty({outputs, inputs}, m_options).uniform_(-scale, scale), {}};
    };
    const Tensor ones = torch::ones({d}, m_options);
    m_embedding = torch::empty({config.vocabulary, d}, m_options).uniform_(-1.0, 1.0);
    for (Index i = 0; i < config.layers; ++i)
      m_layers.push_back({ones, ones, random(q, d), random(kv, d), random(kv, d), random(d, q),
                          random(ffn, d), random(ffn, d), random(d, ffn)});
    m_final_norm = ones;
    m_head = random(config.vocabulary, d);
    make_frequencies();
  }

  [[nodiscard]] const dllm_cache::models::TransformerConfig& config() const { return m_config; }
  [[nodiscard]] dllm_cache::ModelShape shape() const {
    return {m_config.layers, m_config.width, m_config.query_width(), m_config.kv_width()};
  }
  [[nodiscard]] Index vocabulary() const { return m_config.vocabulary; }
  [[nodiscard]] Index prediction_shift() const { return m_config.prediction_shift; }
  [[nodiscard]] dllm_cache::SpecialTokens special_tokens() const { return m_config.special; }

  [[nodiscard]] Features make_features(const dllm_cache::SequenceShape& sequence,
                                       const dllm_cache::PolicyTraits& traits) const {
    const c10::InferenceMode inference;
    return {m_config.layers,      sequence.rows(), m_config.kv_width(),
            traits.stored_deltas, m_config.width,  m_options};
  }

  void forward(std::span<dllm_cache::SequenceStep<Features>> batch, MatrixView<float> logits) {
    const c10::InferenceMode inference;
    IndexUpload upload;
    std::vector<Part> parts;
    std::int64_t rows = 0;
    std::vector<std::int32_t> tokens, positions, wanted;
    for (auto& step : batch) {
      const auto& lists = *step.lists;
      Part part{.lists = &lists, .features = step.features, .begin = rows};
      for (const auto* kind : {&lists.cached, &lists.plain}) {
        Part::Kind& made = kind == &lists.cached ? part.cached : part.plain;
        made.places = upload.add(kind->places, rows);
        made.rows = upload.add(kind->rows);
      }
      part.key_ends = upload.add(lists.key_ends);
      part.all_rows = upload.add(lists.rows);
      // Deltas kept of rows in the pass, and where the deltas of rows in the pass are kept.
      std::vector<std::int32_t> old, stored_places, stored_rows;
      const dllm_cache::Range stored = step.features->stored;
      for (std::size_t place = 0; place < lists.rows.size(); ++place) {
        const Index row = lists.rows[place];
        const bool has = stored.contains(row);
        old.push_back(has ? static_cast<std::int32_t>(row - stored.begin) : 0);
        if (!has) continue;
        stored_places.push_back(static_cast<std::int32_t>(place));
        stored_rows.push_back(old.back());
      }
      part.old_deltas = upload.add(old);
      part.stored_places = upload.add(stored_places, rows);
      part.stored_rows = upload.add(stored_rows);
      part.has_stored = !stored_rows.empty();
      for (const std::int32_t end : lists.key_ends) part.masked |= end != lists.keys;
      tokens.insert(tokens.end(), step.tokens.begin(), step.tokens.end());
      positions.insert(positions.end(), lists.positions.begin(), lists.positions.end());
      for (const std::int32_t place : step.wanted)
        wanted.push_back(static_cast<std::int32_t>(rows + place));
      rows += static_cast<std::int64_t>(lists.rows.size());
      parts.push_back(std::move(part));
    }
    if (rows == 0) return;
    const std::size_t token_list = upload.add(tokens), position_list = upload.add(positions),
                      wanted_list = upload.add(wanted);
    upload.send(m_options.device());
    const Tensor angles =
        torch::outer(upload[position_list].to(torch::kFloat32), m_frequencies).unsqueeze(1);
    const Tensor cosine = angles.cos(), sine = angles.sin();  // [rows, 1, head_dim / 2]
    Tensor x = m_embedding.index_select(0, upload[token_list]);
    for (Index layer = 0; layer < m_config.layers; ++layer)
      run_layer(layer, parts, upload, x, cosine, sine);
    if (wanted.empty()) return;
    const Tensor chosen = norm(x.index_select(0, upload[wanted_list]), m_final_norm);
    as_tensor(logits).copy_(m_head(chosen).to(torch::kFloat32));
  }

 private:
  // A sequence in a step: its lists on the device, by their numbers in the upload.
  struct Part {
    struct Kind {
      std::size_t places = 0, rows = 0;
    };
    const dllm_cache::StepLists* lists = nullptr;
    Features* features = nullptr;
    std::int64_t begin = 0;
    Kind cached = {}, plain = {};
    std::size_t key_ends = 0, all_rows = 0, old_deltas = 0, stored_places = 0, stored_rows = 0;
    bool masked = false, has_stored = false;
  };
  // What a sequence recomputes in a layer.
  struct Chosen {
    Part* part = nullptr;
    Tensor rows;        // [n], in the sequence
    Tensor places;      // [n], in the hidden states
    Tensor left_alone;  // [n, 1], rows that keep their key and delta; undefined: none
  };

  void make_frequencies() {
    const Index dim = m_config.heads.head_dim;
    const Tensor even = torch::arange(0, dim, 2, torch::kFloat32);
    m_frequencies = torch::pow(m_config.rotary_theta, even / static_cast<double>(dim))
                        .reciprocal()
                        .to(m_options.device());
  }

  [[nodiscard]] Tensor norm(const Tensor& x, const Tensor& weight) const {
    const Tensor wide = x.to(torch::kFloat32);
    return (wide * torch::rsqrt(wide.square().mean(-1, true) + m_epsilon)).to(x.scalar_type()) *
           weight;
  }

  /// x `[m, heads * head_dim]` with the halves of each head turned.
  [[nodiscard]] Tensor rotate(const Tensor& x, const Tensor& cosine, const Tensor& sine) const {
    const std::int64_t half = m_config.heads.head_dim / 2;
    const Tensor halves = x.to(torch::kFloat32).view({x.size(0), -1, 2, half});
    const Tensor low = halves.select(2, 0), high = halves.select(2, 1);
    return torch::stack({low * cosine - high * sine, high * cosine + low * sine}, 2)
        .view({x.size(0), -1})
        .to(x.scalar_type());
  }

  /// q `[m, heads * head_dim]` over keys and values `[n, kv]` -> `[m, heads * head_dim]`; mask
  /// `[m, n]` true where a key is seen, undefined: everywhere.
  [[nodiscard]] Tensor attend(const Tensor& q, const Tensor& keys, const Tensor& values,
                              const Tensor& mask) const {
    const std::int64_t rows = q.size(0), dim = m_config.heads.head_dim,
                       kv_heads = m_config.heads.kv_heads, group = m_config.heads.heads / kv_heads;
    const auto heads_of = [&](const Tensor& kept) {  // [kv_heads, n, dim]
      return kept.view({kept.size(0), kv_heads, dim}).transpose(0, 1);
    };
    const Tensor queries = q.view({rows, kv_heads, group, dim})
                               .permute({1, 2, 0, 3})
                               .reshape({kv_heads, group * rows, dim});
    const Tensor seen = mask.defined() ? mask.repeat({group, 1}) : Tensor();
#if TORCH_VERSION_MAJOR >= 2
    const c10::optional<Tensor> given = seen.defined() ? c10::optional<Tensor>(seen) : c10::nullopt;
    Tensor mixed =
        at::scaled_dot_product_attention(queries.unsqueeze(0), heads_of(keys).unsqueeze(0),
                                         heads_of(values).unsqueeze(0), given)
            .squeeze(0);
#else
    Tensor scores =
        torch::bmm(queries / std::sqrt(static_cast<double>(dim)), heads_of(keys).transpose(1, 2));
    if (seen.defined()) scores = scores.masked_fill(seen.logical_not(), -INFINITY);
    Tensor mixed = torch::bmm(torch::softmax(scores, -1, torch::kFloat32).to(q.scalar_type()),
                              heads_of(values));
#endif
    return mixed.reshape({kv_heads, group, rows, dim})
        .permute({2, 0, 1, 3})
        .reshape({rows, kv_heads * group * dim});
  }

  void run_layer(Index number, std::vector<Part>& parts, const IndexUpload& upload, Tensor& x,
                 const Tensor& cosine, const Tensor& sine) {
    const auto at = static_cast<std::size_t>(number);
    const StepLayer& layer = m_layers[at];
    std::vector<Tensor> computed;
    for (Part& part : parts) computed.push_back(upload[kind_of(part, number).places]);
    const Tensor values =
        layer.value(norm(x.index_select(0, torch::cat(computed)), layer.attention_norm));
    std::vector<Chosen> chosen;
    std::vector<Tensor> places;
    std::int64_t next = 0;
    for (Part& part : parts) {
      const auto& rows = part.lists->of(number);
      const Tensor v = values.slice(0, next, next + rows.count());
      next += rows.count();
      chosen.push_back(choose(number, part, upload, v));
      places.push_back(chosen.back().places);
    }
    const Tensor all = torch::cat(places);
    Tensor deltas;
    if (all.size(0) > 0) {
      const Tensor in = x.index_select(0, all), normed = norm(in, layer.attention_norm);
      const Tensor c = cosine.index_select(0, all), s = sine.index_select(0, all);
      const Tensor q = rotate(layer.query(normed), c, s), k = rotate(layer.key(normed), c, s);
      std::vector<Tensor> attended;
      next = 0;
      for (Chosen& one : chosen) {
        const std::int64_t end = next + one.places.size(0);
        if (end > next)
          attended.push_back(mix(at, one, upload, q.slice(0, next, end), k.slice(0, next, end)));
        next = end;
      }
      const Tensor u = layer.output(torch::cat(attended));
      const Tensor wide = norm(in + u, layer.feed_forward_norm);
      deltas = u + layer.down(torch::silu(layer.gate(wide)) * layer.up(wide));
    }
    add_deltas(at, chosen, upload, deltas, x);
  }

  static const Part::Kind& kind_of(const Part& part, Index number) {
    return part.lists->cached_layers.contains(number) ? part.cached : part.plain;
  }

  // Compares and keeps the values v of a sequence, and says what is recomputed.
  static Chosen choose(Index number, Part& part, const IndexUpload& upload, const Tensor& v) {
    const auto& lists = *part.lists;
    const auto& computed = lists.of(number);
    const Tensor rows = upload[kind_of(part, number).rows],
                 places = upload[kind_of(part, number).places];
    Tensor& values = part.features->values[static_cast<std::size_t>(number)];
    Chosen made{&part, rows, places, {}};
    if (computed.verified > 0) {
      const std::int64_t verified = computed.verified;
      const auto [picked, squares] =
          select_rows(v.slice(0, 0, verified), values.index_select(0, rows.slice(0, 0, verified)),
                      lists.verify_count);
      made.rows = torch::cat({rows.index_select(0, picked), rows.slice(0, verified)});
      made.places = torch::cat({places.index_select(0, picked), places.slice(0, verified)});
      if (lists.similarity_threshold < dllm_cache::no_similarity_threshold) {
        const Tensor again =
            torch::zeros({rows.size(0) - verified}, squares.options().dtype(torch::kBool));
        made.left_alone =
            torch::cat({reach_threshold(squares, lists.similarity_threshold), again}).unsqueeze(1);
      }
    }
    values.index_copy_(0, rows, v);
    return made;
  }

  // Keeps the keys k of rows that are recomputed, and lets their queries q attend.
  [[nodiscard]] Tensor mix(std::size_t layer, const Chosen& one, const IndexUpload& upload,
                           const Tensor& q, const Tensor& k) const {
    Tensor& keys = one.part->features->keys[layer];
    keys.index_copy_(0, one.rows,
                     one.left_alone.defined()
                         ? torch::where(one.left_alone, keys.index_select(0, one.rows), k)
                         : k);
    const std::int64_t seen = one.part->lists->keys;
    Tensor mask;
    if (one.part->masked) {
      const Tensor ends = upload[one.part->key_ends].index_select(0, one.places - one.part->begin);
      mask = torch::arange(seen, ends.options()).unsqueeze(0) < ends.unsqueeze(1);
    }
    return attend(q, keys.slice(0, 0, seen), one.part->features->values[layer].slice(0, 0, seen),
                  mask);
  }

  // Adds to x the deltas of all rows in the pass: those given of rows recomputed, else those kept.
  static void add_deltas(std::size_t layer, const std::vector<Chosen>& chosen,
                         const IndexUpload& upload, const Tensor& deltas, Tensor& x) {
    Tensor u = torch::zeros_like(x);
    std::int64_t next = 0;
    for (const Chosen& one : chosen) {
      const Part& part = *one.part;
      const std::int64_t count = one.places.size(0), end = next + count,
                         rows = static_cast<std::int64_t>(part.lists->rows.size());
      Tensor& kept = part.features->kept[layer];
      if (part.has_stored && (count < rows || one.left_alone.defined()))
        u.slice(0, part.begin, part.begin + rows)
            .copy_(kept.index_select(0, upload[part.old_deltas]));
      if (count > 0) {
        const Tensor fresh = deltas.slice(0, next, end);
        u.index_copy_(0, one.places,
                      one.left_alone.defined()
                          ? torch::where(one.left_alone, u.index_select(0, one.places), fresh)
                          : fresh);
      }
      if (part.has_stored)
        kept.index_copy_(0, upload[part.stored_rows],
                         u.index_select(0, upload[part.stored_places]));
      next = end;
    }
    x = x + u;
  }

  torch::TensorOptions m_options;
  dllm_cache::models::TransformerConfig m_config;
  double m_epsilon = 1e-5;
  Tensor m_embedding, m_final_norm, m_frequencies;
  Projection m_head;
  std::vector<StepLayer> m_layers;
};

static_assert(dllm_cache::StepModel<TorchStepModel>);

}  // namespace torch_runtime
