// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpp.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dllm_cache/decoding/step_model.hpp"
#include "ggml_weights.hpp"

// LLaDA and Dream in ggml, a graph a step: features and weights stay where the backend computes,
// lists of row numbers go in and logits come out.
namespace ggml_runtime {

using dllm_cache::MatrixView;

/// A backend by the name of its device ("cpu", "CUDA0", "Metal", "Vulkan0"), case aside; `threads`
/// matter where it has any. Throws std::invalid_argument naming the devices that there are.
[[nodiscard]] inline ggml_backend_ptr open_backend(const std::string& name, int threads) {
  if (threads < 1 || threads > GGML_MAX_N_THREADS)
    dllm_cache::base::refuse_argument("threads must be in [1, ", GGML_MAX_N_THREADS, "], got ",
                                      threads);
  // A ggml whose backends are modules has to look for them.
  if (ggml_backend_dev_count() == 0) ggml_backend_load_all();
  const ggml_backend_dev_t device = ggml_backend_dev_by_name(name.c_str());
  if (device == nullptr) {
    std::string names;
    for (std::size_t i = 0; i < ggml_backend_dev_count(); ++i)
      names += (i > 0 ? ", " : "") + std::string(ggml_backend_dev_name(ggml_backend_dev_get(i)));
    dllm_cache::base::refuse_argument("backend must be one of ", names, ", got \"", name, "\"");
  }
  ggml_backend_ptr backend(ggml_backend_dev_init(device, nullptr));
  if (backend == nullptr) throw std::runtime_error("ggml: opening backend " + name + " failed");
  const auto set_threads =
      reinterpret_cast<ggml_backend_set_n_threads_t>(ggml_backend_reg_get_proc_address(
          ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads"));
  if (set_threads != nullptr) set_threads(backend.get(), threads);
  return backend;
}

/// Tensors in one buffer of a backend; movable, given back by the destructor.
class BackendTensors {
 public:
  BackendTensors() = default;
  explicit BackendTensors(std::size_t most)
      : m_context(ggml_init({(most + 1) * ggml_tensor_overhead(), nullptr, true})) {}

  [[nodiscard]] ggml_context* context() const { return m_context.get(); }
  /// Gives memory to the tensors made so far; throws std::bad_alloc.
  void allocate(ggml_backend_t backend) {
    if (ggml_get_first_tensor(m_context.get()) == nullptr) return;
    m_buffer.reset(ggml_backend_alloc_ctx_tensors(m_context.get(), backend));
    if (m_buffer == nullptr) throw std::bad_alloc();
    ggml_backend_buffer_clear(m_buffer.get(), 0);
  }
  [[nodiscard]] Index bytes() const {
    return m_buffer == nullptr ? 0
                               : static_cast<Index>(ggml_backend_buffer_get_size(m_buffer.get()));
  }

 private:
  ggml_context_ptr m_context;
  ggml_backend_buffer_ptr m_buffer;
};

/// Features of a sequence on a backend: keys and values `[kv, rows]` and deltas `[d, stored]` of
/// every layer.
struct StepFeatures {
  struct Layer {
    ggml_tensor *keys, *values, *deltas;  ///< `deltas` is nullptr where none are kept.
  };
  std::vector<Layer> layers;
  dllm_cache::Range stored;
  BackendTensors memory;

  [[nodiscard]] Index bytes() const { return memory.bytes(); }
};

/// Which operations of ggml the attention of a step is made of.
enum class StepAttention {
  Flash,    ///< `ggml_flash_attn_ext`; not every backend has it for every length of a head.
  Products  ///< Products and a softmax: any backend, and memory for all scores.
};

namespace detail {

/// Rows `[tokens, d]` of an embedding in host memory, widened to float32.
inline void read_rows(const ggml_tensor& embedding, std::span<const std::int32_t> tokens,
                      MatrixView<float> x) {
  const auto widen = ggml_get_type_traits(embedding.type)->to_float;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto* const row = static_cast<const std::byte*>(embedding.data) +
                            static_cast<std::size_t>(tokens[i]) * embedding.nb[1];
    float* const to = x.row(static_cast<Index>(i));
    if (embedding.type == GGML_TYPE_F32)
      std::memcpy(to, row, static_cast<std::size_t>(x.cols) * sizeof(float));
    else
      widen(row, to, x.cols);
  }
}

/// A step of a batch as one graph: the products of a layer are those of all sequences together.
class StepGraph {
 public:
  using Step = dllm_cache::SequenceStep<StepFeatures>;
  using T = ggml_tensor*;

  StepGraph(const Weights& weights, StepAttention attention, std::span<const Step> batch)
      : m_weights(&weights),
        m_heads(weights.config().heads),
        m_attention(attention),
        m_batch(batch) {
    const std::size_t nodes =
        64 + static_cast<std::size_t>(weights.config().layers + 1) * (32 + 128 * batch.size());
    m_context.reset(
        ggml_init({nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(nodes, false),
                   nullptr, true}));
    m_graph = ggml_new_graph_custom(context(), nodes, false);
    std::vector<std::int32_t> wanted;
    for (const Step& step : batch) {
      Sequence& sequence = m_sequences.emplace_back();
      sequence.first = m_rows;
      sequence.positions = input(step.lists->positions);
      if (step.lists->hides) sequence.seen = input(step.lists->seen);
      std::vector<std::int32_t> delta_rows = step.lists->rows;
      for (std::int32_t& row : delta_rows)
        row -= static_cast<std::int32_t>(step.features->stored.begin);
      sequence.delta_rows = input(std::move(delta_rows));
      for (const std::int32_t place : step.wanted)
        wanted.push_back(place + static_cast<std::int32_t>(m_rows));
      m_rows += static_cast<std::int64_t>(step.lists->rows.size());
    }
    m_hidden = ggml_new_tensor_2d(context(), GGML_TYPE_F32, weights.config().width, m_rows);
    ggml_set_input(m_hidden);
    m_embedded = m_hidden;
    for (Index layer = 0; layer < weights.config().layers; ++layer) build_layer(layer);
    ggml_build_forward_expand(m_graph, m_hidden);
    if (wanted.empty()) return;
    T const chosen = ggml_get_rows(context(), m_hidden, input(std::move(wanted)));
    m_logits = ggml_mul_mat(context(), weights.head(), rms_norm(chosen, weights.final_norm()));
    ggml_set_output(m_logits);
    ggml_build_forward_expand(m_graph, m_logits);
  }

  /// Computes it. Throws std::runtime_error for an operation that the backend has not, before any
  /// feature is written, and std::bad_alloc.
  void run(ggml_backend_t backend, ggml_gallocr_t memory, MatrixView<float> logits) {
    for (int i = 0; i < ggml_graph_n_nodes(m_graph); ++i) {
      T const node = ggml_graph_node(m_graph, i);
      if (!ggml_backend_supports_op(backend, node))
        throw std::runtime_error(dllm_cache::base::text(
            "ggml: backend ", ggml_backend_name(backend), " does not compute ", ggml_op_desc(node),
            " of type ", ggml_type_name(node->src[0] != nullptr ? node->src[0]->type : node->type),
            node->op == GGML_OP_FLASH_ATTN_EXT ? ": take attention by products" : ""));
    }
    if (!ggml_gallocr_alloc_graph(memory, m_graph)) throw std::bad_alloc();
    embed();
    for (const auto& [tensor, numbers] : m_inputs)
      if (tensor->buffer != nullptr)  // else nothing in this graph reads it
        ggml_backend_tensor_set(tensor, numbers.data(), 0, ggml_nbytes(tensor));
    if (ggml_backend_graph_compute(backend, m_graph) != GGML_STATUS_SUCCESS)
      throw std::runtime_error("ggml: computing a step failed");
    if (m_logits == nullptr) return;
    const auto row = static_cast<std::size_t>(logits.cols) * sizeof(float);
    if (logits.stride == logits.cols) {
      ggml_backend_tensor_get(m_logits, logits.data, 0, ggml_nbytes(m_logits));
      return;
    }
    for (Index i = 0; i < logits.rows; ++i)
      ggml_backend_tensor_get(m_logits, logits.row(i), static_cast<std::size_t>(i) * row, row);
  }

 private:
  // Rows of one sequence that a layer recomputes together: those selected, or those recomputed in
  // any case: places among all rows in the pass, rows of keys and values, and of deltas.
  struct Piece {
    T place = nullptr, row = nullptr, delta_row = nullptr, position = nullptr;
    std::int64_t count = 0, first = 0;  // first: where they lie among all recomputed rows
  };
  struct Sequence {
    std::int64_t first = 0;  // among all rows in the pass
    T positions = nullptr;
    T seen = nullptr;        // rows that exist, where others are hidden
    T delta_rows = nullptr;  // of its rows in the pass; those outside `stored` are not read
    T keys = nullptr, values = nullptr, deltas = nullptr;  // of this layer, as written so far
    Piece selected, recomputed;
    std::int64_t values_first = 0;  // where its rows lie among all whose values are computed
  };
  // Lists of one kind of layer of one sequence, uploaded once.
  struct Kind {
    T rows = nullptr;               // of all computed rows
    T places = nullptr;             // of the verified and the recomputed ones, one list
    T local_places = nullptr;       // the same within the sequence: positions are picked by it
    T delta_rows = nullptr;         // the same rows, as rows of the deltas
    std::int64_t stored_first = 0;  // those of the recomputed rows that are stored
    std::int64_t stored_count = 0;
  };

  [[nodiscard]] ggml_context* context() const { return m_context.get(); }
  T rms_norm(T x, T weight) {
    return ggml_mul(context(), ggml_rms_norm(context(), x, m_weights->config().epsilon), weight);
  }
  T project(T weight, T bias, T x) {
    T const product = ggml_mul_mat(context(), weight, x);
    return bias == nullptr ? product : ggml_add(context(), product, bias);
  }
  // Of rows [heads * head_dim, n], as attention takes them: [head_dim, n, heads], a view.
  T by_head(T rows) {
    return ggml_view_3d(context(), rows, m_heads.head_dim, rows->ne[1],
                        rows->ne[0] / m_heads.head_dim, rows->nb[1],
                        ggml_row_size(rows->type, m_heads.head_dim), 0);
  }

  T input(std::vector<std::int32_t> numbers) {
    if (numbers.empty()) return nullptr;
    T const tensor =
        ggml_new_tensor_1d(context(), GGML_TYPE_I32, static_cast<std::int64_t>(numbers.size()));
    ggml_set_input(tensor);
    m_inputs.emplace_back(tensor, std::move(numbers));
    return tensor;
  }
  T part(T list, std::int64_t first, std::int64_t count) {
    if (first == 0 && count == list->ne[0]) return list;
    return ggml_view_1d(context(), list, count, static_cast<std::size_t>(first) * list->nb[0]);
  }
  T columns(T matrix, std::int64_t first, std::int64_t count) {
    if (first == 0 && count == matrix->ne[1]) return matrix;
    return ggml_view_2d(context(), matrix, matrix->ne[0], count, matrix->nb[1],
                        static_cast<std::size_t>(first) * matrix->nb[1]);
  }
  // The numbers of a list at places that the graph finds.
  T pick(T list, T which) {
    T const found =
        ggml_get_rows(context(), ggml_reshape_2d(context(), list, 1, list->ne[0]), which);
    return ggml_reshape_1d(context(), found, which->ne[0]);
  }
  T join(T left, T right) {
    return left == nullptr ? right : ggml_concat(context(), left, right, 1);
  }

  // The lists of a sequence for layers where its cache is used, or not.
  const Kind& kind(std::size_t number, bool cached) {
    const auto found = m_kinds.find({number, cached});
    if (found != m_kinds.end()) return found->second;
    const dllm_cache::StepLists& lists = *m_batch[number].lists;
    const dllm_cache::ComputedRows& computed = cached ? lists.cached : lists.plain;
    const dllm_cache::Range stored = m_batch[number].features->stored;
    Kind made;
    std::vector<std::int32_t> places, deltas;
    for (const std::int32_t place : computed.places)
      places.push_back(place + static_cast<std::int32_t>(m_sequences[number].first));
    const auto recomputed = computed.recomputed_rows();
    for (std::size_t i = 0; i < recomputed.size(); ++i)
      if (stored.contains(recomputed[i])) {
        if (made.stored_count++ == 0) made.stored_first = static_cast<std::int64_t>(i);
      }
    for (const std::int32_t row : computed.rows)
      deltas.push_back(row - static_cast<std::int32_t>(stored.begin));
    made.rows = input(computed.rows);
    made.places = input(std::move(places));
    made.local_places = input(computed.places);
    made.delta_rows = input(std::move(deltas));
    return m_kinds.emplace(std::pair(number, cached), made).first->second;
  }

  // The verified rows whose values changed most: `count` of their indices, least similar first.
  //
  // The rule of dllm_cache::LeastSimilarRows as far as a device promises it. Squares of norms count
  // as 1e-16 at least; the clamp gives a NaN its upper bound, so that it comes first (a minimum of
  // NaN and a number is the number, on the CPU and in CUDA). Of equal rows the library takes the
  // lower one: top_k promises neither which of them it takes nor any order, so ties may fall
  // otherwise here, in float32 more often than in the library's double.
  T select(T fresh, T old, std::int64_t count) {
    ggml_context* const c = context();
    const auto norm = [&](T rows) {
      return ggml_sqrt(c, ggml_clamp(c, ggml_sum_rows(c, ggml_sqr(c, rows)), 1e-16F, INFINITY));
    };
    T const cosine =
        ggml_div(c, ggml_div(c, ggml_sum_rows(c, ggml_mul(c, fresh, old)), norm(fresh)), norm(old));
    T const distance = ggml_clamp(c, ggml_neg(c, cosine), -2.0F, 2.0F);
    return ggml_top_k(c, ggml_reshape_1d(c, distance, fresh->ne[1]), static_cast<int>(count));
  }

  // Computes and keeps values; says which rows are recomputed.
  void build_values(Index number) {
    const LayerTensors& layer = m_weights->layer(number);
    T in = nullptr;
    std::int64_t count = 0;
    for (std::size_t i = 0; i < m_sequences.size(); ++i) {
      const Step& step = m_batch[i];
      Sequence& sequence = m_sequences[i];
      const auto& features = step.features->layers[static_cast<std::size_t>(number)];
      sequence.keys = features.keys;
      sequence.values = features.values;
      sequence.deltas = features.deltas;
      sequence.selected = sequence.recomputed = {};
      sequence.values_first = count;
      const auto& computed = step.lists->of(number);
      if (computed.count() == 0) continue;
      count += computed.count();
      const bool all = computed.verified == 0 &&
                       computed.count() == static_cast<std::int32_t>(step.lists->rows.size());
      in = join(in, all ? columns(m_hidden, sequence.first, computed.count())
                        : ggml_get_rows(context(), m_hidden, kind_in(i, number).places));
    }
    if (in == nullptr) return;
    T const v = project(layer.value, layer.value_bias, rms_norm(in, layer.attention_norm));
    for (std::size_t i = 0; i < m_sequences.size(); ++i) {
      const auto& lists = *m_batch[i].lists;
      const auto& computed = lists.of(number);
      if (computed.count() == 0) continue;
      Sequence& sequence = m_sequences[i];
      const Kind& lists_of = kind_in(i, number);
      const std::int64_t verified = computed.verified;
      const std::int64_t selected = lists.verify_count_in(number);
      if (verified > 0 && selected > 0) {
        T const old = ggml_get_rows(context(), sequence.values, part(lists_of.rows, 0, verified));
        T const chosen = select(columns(v, sequence.values_first, verified), old, selected);
        ggml_build_forward_expand(m_graph, chosen);  // before the values are replaced
        T const local = pick(part(lists_of.local_places, 0, verified), chosen);
        sequence.selected = {.place = pick(part(lists_of.places, 0, verified), chosen),
                             .row = pick(part(lists_of.rows, 0, verified), chosen),
                             .delta_row = pick(part(lists_of.delta_rows, 0, verified), chosen),
                             .position = pick(sequence.positions, local),
                             .count = selected};
      }
      if (const std::int64_t rest = computed.count() - verified; rest > 0) {
        T const local = part(lists_of.local_places, verified, rest);
        const bool all = rest == sequence.positions->ne[0];
        sequence.recomputed = {
            .place = part(lists_of.places, verified, rest),
            .row = part(lists_of.rows, verified, rest),
            .delta_row = part(lists_of.delta_rows, verified, rest),
            .position = all ? sequence.positions : pick(sequence.positions, local),
            .count = rest};
      }
      sequence.values =
          ggml_set_rows(context(), sequence.values,
                        columns(v, sequence.values_first, computed.count()), lists_of.rows);
      ggml_build_forward_expand(m_graph, sequence.values);
    }
  }

  const Kind& kind_in(std::size_t sequence, Index layer) {
    return kind(sequence, m_batch[sequence].lists->cached_layers.contains(layer));
  }

  void build_layer(Index number) {
    const LayerTensors& layer = m_weights->layer(number);
    build_values(number);
    T in = nullptr;
    std::int64_t count = 0;
    for (Sequence& sequence : m_sequences)
      for (Piece* piece : {&sequence.selected, &sequence.recomputed}) {
        if (piece->count == 0) continue;
        piece->first = count;
        count += piece->count;
        const bool all = piece->count == sequence.positions->ne[0];
        in = join(in, all && piece == &sequence.recomputed
                          ? columns(m_hidden, sequence.first, piece->count)
                          : ggml_get_rows(context(), m_hidden, piece->place));
      }
    T const u = in == nullptr ? nullptr : build_deltas(layer, in);
    T delta = nullptr;
    for (std::size_t i = 0; i < m_sequences.size(); ++i)
      if (!m_batch[i].lists->rows.empty()) delta = join(delta, build_addend(i, number, u));
    m_hidden = ggml_add(context(), m_hidden, delta);
  }

  // Keys are kept; deltas [d, rows] of the recomputed rows `in` of all sequences come out.
  T build_deltas(const LayerTensors& layer, T in) {
    ggml_context* const c = context();
    T const normed = rms_norm(in, layer.attention_norm);
    T const q = project(layer.query, layer.query_bias, normed);
    T const k = project(layer.key, layer.key_bias, normed);
    T attended = nullptr;
    for (Sequence& sequence : m_sequences) {
      T queries = nullptr;
      for (const Piece& piece : {sequence.selected, sequence.recomputed}) {
        if (piece.count == 0) continue;
        const auto rotated = [&](T rows, std::int64_t heads) {
          T const columns_of = columns(rows, piece.first, piece.count);
          T const turned =
              ggml_rope_ext(c, ggml_reshape_3d(c, columns_of, m_heads.head_dim, heads, piece.count),
                            piece.position, nullptr, static_cast<int>(m_heads.head_dim),
                            m_weights->config().rotary_mode, 0, m_weights->config().rotary_theta,
                            1.0F, 0.0F, 1.0F, 32.0F, 1.0F);
          return ggml_reshape_2d(c, turned, m_heads.head_dim * heads, piece.count);
        };
        queries = join(queries, rotated(q, m_heads.heads));
        sequence.keys = ggml_set_rows(c, sequence.keys, rotated(k, m_heads.kv_heads), piece.row);
        ggml_build_forward_expand(m_graph, sequence.keys);
      }
      if (queries != nullptr) attended = join(attended, attend(queries, sequence));
    }
    T const out = ggml_mul_mat(c, layer.output, attended);
    T const between = rms_norm(ggml_add(c, out, in), layer.feed_forward_norm);
    T const hidden = ggml_swiglu_split(c, ggml_mul_mat(c, layer.gate, between),
                                       ggml_mul_mat(c, layer.up, between));
    return ggml_add(c, ggml_mul_mat(c, layer.down, hidden), out);
  }

  T attend(T queries, const Sequence& sequence) {
    ggml_context* const c = context();
    const float scale = 1.0F / std::sqrt(static_cast<float>(m_heads.head_dim));
    // Those that exist: where rows are hidden the others are left out.
    const auto existing = [&](T rows) {
      return by_head(sequence.seen == nullptr ? rows : ggml_get_rows(c, rows, sequence.seen));
    };
    T const q = by_head(queries), k = existing(sequence.keys), v = existing(sequence.values);
    if (m_attention == StepAttention::Flash) {
      T const out = ggml_flash_attn_ext(c, q, k, v, nullptr, scale, 0.0F, 0.0F);
      ggml_flash_attn_ext_set_prec(out, GGML_PREC_F32);
      return ggml_reshape_2d(c, out, queries->ne[0], queries->ne[1]);
    }
    T const scores =
        ggml_soft_max_ext(c, ggml_mul_mat(c, k, ggml_cont(c, q)), nullptr, scale, 0.0F);
    T const out = ggml_mul_mat(c, ggml_cont(c, ggml_transpose(c, v)), scores);
    return ggml_cont_2d(c, ggml_permute(c, out, 0, 2, 1, 3), queries->ne[0], queries->ne[1]);
  }

  // What is added to a sequence's rows in the pass; deltas that are kept are written.
  T build_addend(std::size_t number, Index layer, T u) {
    Sequence& sequence = m_sequences[number];
    const auto& lists = *m_batch[number].lists;
    const dllm_cache::Range stored = m_batch[number].features->stored;
    const Kind& lists_of = kind_in(number, layer);
    const Piece &selected = sequence.selected, &recomputed = sequence.recomputed;
    const auto keep = [&](const Piece& piece, std::int64_t first, std::int64_t count) {
      sequence.deltas =
          ggml_set_rows(context(), sequence.deltas, columns(u, piece.first + first, count),
                        part(piece.delta_row, first, count));
      ggml_build_forward_expand(m_graph, sequence.deltas);
    };
    if (selected.count > 0) keep(selected, 0, selected.count);
    if (lists_of.stored_count > 0) keep(recomputed, lists_of.stored_first, lists_of.stored_count);
    const auto rows = static_cast<std::int64_t>(lists.rows.size());
    if (recomputed.count == rows) return columns(u, recomputed.first, rows);
    // Rows outside `stored` are all recomputed and lie before and behind the stored ones.
    const auto before = static_cast<std::int64_t>(
        std::lower_bound(lists.rows.begin(), lists.rows.end(), stored.begin) - lists.rows.begin());
    const auto behind = static_cast<std::int64_t>(
        lists.rows.end() - std::lower_bound(lists.rows.begin(), lists.rows.end(), stored.end));
    T delta = nullptr;
    if (before > 0) delta = columns(u, recomputed.first, before);
    if (rows > before + behind)
      delta = join(delta, ggml_get_rows(context(), sequence.deltas,
                                        part(sequence.delta_rows, before, rows - before - behind)));
    if (behind > 0)
      delta = join(delta, columns(u, recomputed.first + recomputed.count - behind, behind));
    return delta;
  }

  // The embedding stays on the host, which reads any type of it: few backends have get_rows of all.
  void embed() {
    std::vector<float> x(static_cast<std::size_t>(m_rows * m_weights->config().width));
    Index first = 0;
    for (const Step& step : m_batch) {
      const auto rows = static_cast<Index>(step.tokens.size());
      read_rows(*m_weights->embedding(), step.tokens,
                dllm_cache::dense_view(x.data() + first * m_weights->config().width, rows,
                                       m_weights->config().width));
      first += rows;
    }
    ggml_backend_tensor_set(m_embedded, x.data(), 0, ggml_nbytes(m_embedded));
  }

  const Weights* m_weights;
  dllm_cache::models::HeadShape m_heads;
  StepAttention m_attention;
  std::span<const Step> m_batch;
  ggml_context_ptr m_context;
  ggml_cgraph* m_graph = nullptr;
  std::int64_t m_rows = 0;
  std::vector<Sequence> m_sequences;
  std::map<std::pair<std::size_t, bool>, Kind> m_kinds;
  std::deque<std::pair<T, std::vector<std::int32_t>>> m_inputs;
  T m_hidden = nullptr, m_embedded = nullptr, m_logits = nullptr;
};

}  // namespace detail

/// LLaDA or Dream of a GGUF file as a StepModel: weights and features lie in buffers of a backend,
/// a step of a batch is one graph.
///
/// Attention is bidirectional, and rows are selected by counts: what a similarity threshold leaves
/// alone would be known on the device alone, and with it the shapes of all that follows.
class GgmlStepsModel {
 public:
  using Features = StepFeatures;
  static constexpr bool hides_rows = true;  ///< Hidden rows are left out of attention.

  /// Throws what Weights and open_backend() throw, and std::bad_alloc.
  explicit GgmlStepsModel(std::shared_ptr<const GgufFile> file, const std::string& backend = "cpu",
                          int threads = 1, StepAttention attention = StepAttention::Flash)
      : m_backend(open_backend(backend, threads)),
        m_weights(std::move(file), on_backend(m_backend.get())),
        m_results(ggml_gallocr_new(ggml_backend_get_default_buffer_type(m_backend.get()))),
        m_attention(attention) {
    if (m_results == nullptr) throw std::bad_alloc();
  }

  [[nodiscard]] const GgmlConfig& config() const { return m_weights.config(); }
  [[nodiscard]] const Weights& weights() const { return m_weights; }
  [[nodiscard]] dllm_cache::ModelShape shape() const { return config().shape(); }
  [[nodiscard]] Index vocabulary() const { return config().vocabulary; }
  [[nodiscard]] Index prediction_shift() const { return config().prediction_shift; }
  [[nodiscard]] dllm_cache::SpecialTokens special_tokens() const { return config().special; }

  /// Memory of a sequence; throws std::invalid_argument for block-causal attention.
  [[nodiscard]] Features make_features(const dllm_cache::SequenceShape& sequence,
                                       const dllm_cache::PolicyTraits& traits) const {
    if (sequence.attention_block > 0)
      dllm_cache::base::refuse_argument(
          "GgmlStepsModel: attention_block must be 0, attention is bidirectional here, got ",
          sequence.attention_block);
    Features made;
    made.stored = traits.stored_deltas.empty() ? dllm_cache::Range{} : traits.stored_deltas;
    made.memory = BackendTensors(static_cast<std::size_t>(config().layers) * 3);
    const auto tensor = [&](Index width, Index rows) {
      return ggml_new_tensor_2d(made.memory.context(), GGML_TYPE_F32, width, rows);
    };
    for (Index layer = 0; layer < config().layers; ++layer)
      made.layers.push_back(
          {.keys = tensor(config().kv_width(), sequence.rows()),
           .values = tensor(config().kv_width(), sequence.rows()),
           .deltas = made.stored.empty() ? nullptr : tensor(config().width, made.stored.size())});
    made.memory.allocate(m_backend.get());
    return made;
  }

  /// Carries out a step. Throws std::invalid_argument for a plan with a similarity threshold, and
  /// what StepGraph::run() throws; then the features are to be filled anew.
  void forward(std::span<dllm_cache::SequenceStep<Features>> batch, MatrixView<float> logits) {
    std::size_t rows = 0;
    for (const auto& step : batch) {
      rows += step.lists->rows.size();
      if (step.lists->similarity_threshold < dllm_cache::no_similarity_threshold)
        dllm_cache::base::refuse_argument(
            "GgmlStepsModel: a plan must select a fixed count of rows, got similarity_threshold ",
            step.lists->similarity_threshold,
            ": take dllm-cache, prefix, dual, dkv or none, or block-verify without its threshold");
    }
    if (rows == 0) return;
    detail::StepGraph graph(m_weights, m_attention, batch);
    graph.run(m_backend.get(), m_results.get(), logits);
  }

 private:
  // The embedding stays mapped: the host reads its rows.
  static WeightPlace on_backend(ggml_backend_t backend) {
    ggml_backend_buffer_type_t const type = ggml_backend_get_default_buffer_type(backend);
    return [type](const ggml_tensor&, WeightUse use) -> ggml_backend_buffer_type_t {
      return use == WeightUse::Rows ? nullptr : type;
    };
  }

  ggml_backend_ptr m_backend;  // outlives what lies in its buffers
  Weights m_weights;
  ggml_gallocr_ptr m_results;
  StepAttention m_attention;
};

}  // namespace ggml_runtime
