// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "dllm_cache/base/scalar.hpp"
#include "dllm_cache/layer.hpp"
#include "dllm_cache/models/compute/head_shape.hpp"
#include "dllm_cache/models/compute/onednn.hpp"
#include "dllm_cache/models/compute/pack_columns.hpp"
#include "dllm_cache/models/compute/parallel.hpp"
#include "dllm_cache/models/compute/product_input.hpp"
#include "dllm_cache/models/compute/rounding.hpp"
#include "dllm_cache/models/compute/softmax.hpp"

namespace dllm_cache::inline v0_1::models {

namespace detail {

/// Attention of many rows whose two products run on oneDNN, in the type of the rows it writes.
///
/// A task takes one key head and copies its keys and values densely, which oneDNN's fast kernels
/// want, once for all query rows. Primitives are kept per thread, block of rows and number of keys,
/// rounded up so that every row begins on a cache line.
template <ProductScalar Element>
class OneDnnAttentionIn {
 public:
  explicit OneDnnAttentionIn(int threads) : m_workers(static_cast<std::size_t>(threads)) {}

  /// The rows of one segment; see Attention.
  template <StoredScalar Stored>
  void attend(MatrixView<const float> q, const Segment<Stored>& segment, const HeadShape& shape,
              MatrixView<Element> out, ThreadTeam& team) {
    const Index keys = segment.keys.rows;
    const Index rows = segment.end - segment.begin;
    // Rows a product: scores of a block stay in the second-level cache, and block sizes are few.
    const Index most = std::clamp<Index>((Index{1} << 17) / keys / 8 * 8, 16, 128);
    const Index blocks = (rows + most - 1) / most;
    const Index block = ((rows + blocks - 1) / blocks + 7) / 8 * 8;
    // Tasks for every thread even where there are fewer key heads than threads.
    const Index parts = std::clamp<Index>(
        (Index{2} * team.threads() + shape.kv_heads - 1) / shape.kv_heads, 1, blocks);
    const double operations = attention_operations(rows, keys, shape);
    team.for_each(shape.kv_heads * parts, operations, [&](Index task, Scratch& scratch) {
      const Index first = blocks * (task % parts) / parts;
      const Index last = blocks * (task % parts + 1) / parts;
      Part part{.kv_head = task / parts,
                .begin = segment.begin + first * block,
                .end = std::min(segment.end, segment.begin + last * block),
                .block = block};
      run(m_workers[static_cast<std::size_t>(scratch.thread)], part, q, segment, shape, out);
    });
  }

 private:
  static constexpr DnnlType type = std::is_same_v<Element, float> ? DnnlType::f32 : DnnlType::bf16;

  // The work of one task: some rows of all query heads of one key head.
  struct Part {
    Index kv_head, begin, end, block;
  };

  struct Product {
    dnnl::matmul primitive;
    dnnl::memory a, b, c;
  };
  struct Pair {
    Product scores;  // [block, head_dim] x [head_dim, keys]
    Product output;  // [block, keys] x [keys, head_dim]
  };
  using Key = std::tuple<Index, Index, Index>;  // block, keys, head_dim

  // One thread's primitives and memory.
  struct Worker {
    dnnl::engine engine{dnnl::engine::kind::cpu, 0};
    dnnl::stream stream{engine};
    std::map<Key, Pair> pairs;
    base::Buffer<Element> keys, values, queries, weights;
    base::Buffer<float> scores, sums, output;
  };

  static Product make_product(Worker& worker, Index rows, Index inner, Index cols,
                              const dnnl::memory::dims& b_strides) {
    using Desc = dnnl::memory::desc;
    const Desc a({rows, inner}, type, dnnl::memory::dims{inner, 1});
    const Desc b({inner, cols}, type, b_strides);
    const Desc c({rows, cols}, DnnlType::f32, dnnl::memory::dims{cols, 1});
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::matmul::primitive_desc description(worker.engine, a, b, c);
#else
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a, b, c), worker.engine);
#endif
    const auto empty = [&](const Desc& layout) {
      return dnnl::memory(layout, worker.engine, nullptr);
    };
    return {dnnl::matmul(description), empty(a), empty(b), empty(c)};
  }

  static Pair& find(Worker& worker, const Key& key) {
    const auto found = worker.pairs.find(key);
    if (found != worker.pairs.end()) return found->second;
    constexpr std::size_t most = 128;  // sequences of ever new lengths must not fill the memory
    if (worker.pairs.size() >= most) worker.pairs.clear();
    const Index block = std::get<0>(key), keys = std::get<1>(key), dim = std::get<2>(key);
    return try_onednn("making an attention", [&]() -> Pair& {
      Pair pair{make_product(worker, block, dim, keys, {1, dim}),
                make_product(worker, block, keys, dim, {dim, 1})};
      return worker.pairs.emplace(key, std::move(pair)).first->second;
    });
  }

  static void multiply(Worker& worker, Product& product, const Element* a, const Element* b,
                       float* c) {
    dnnl_memory_set_data_handle(product.a.get(), const_cast<Element*>(a));
    dnnl_memory_set_data_handle(product.b.get(), const_cast<Element*>(b));
    dnnl_memory_set_data_handle(product.c.get(), c);
    const std::array<dnnl_exec_arg_t, 3> arguments = {{{DNNL_ARG_SRC, product.a.get()},
                                                       {DNNL_ARG_WEIGHTS, product.b.get()},
                                                       {DNNL_ARG_DST, product.c.get()}}};
    if (dnnl_primitive_execute(product.primitive.get(), worker.stream.get(),
                               static_cast<int>(arguments.size()),
                               arguments.data()) != dnnl_success)
      throw std::runtime_error("oneDNN: an attention product failed");
    worker.stream.wait();
  }

  // Columns of one key head in the element type `[padded, head_dim]`; rows behind the last are 0.
  template <class Stored>
  static const Element* pack(MatrixView<const Stored> kept, Index begin, Index dim, Index padded,
                             base::Buffer<Element>& memory) {
    Element* const packed = memory.ensure(padded * dim);
    pack_columns(kept, 0, kept.rows, begin, dim, packed);
    std::fill(packed + kept.rows * dim, packed + padded * dim, Element(0));
    return packed;
  }

  template <StoredScalar Stored>
  static void run(Worker& worker, const Part& part, MatrixView<const float> q,
                  const Segment<Stored>& segment, const HeadShape& shape, MatrixView<Element> out) {
    const Index dim = shape.head_dim;
    const Index group = shape.heads / shape.kv_heads;
    const Index keys = segment.keys.rows, padded = padded_count(keys);
    const Element* const k = pack(segment.keys, part.kv_head * dim, dim, padded, worker.keys);
    const Element* const v = pack(segment.values, part.kv_head * dim, dim, padded, worker.values);
    Pair& pair = find(worker, {part.block, padded, dim});
    Element* const queries = worker.queries.ensure(part.block * dim);
    float* const scores = worker.scores.ensure(part.block * padded);
    float* const output = worker.output.ensure(part.block * dim);
    float* const sums = worker.sums.ensure(part.block);
    Element* const weights = weights_of(worker, scores, part.block * padded);
    const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
    for (Index head = part.kv_head * group; head < (part.kv_head + 1) * group; ++head) {
      for (Index begin = part.begin; begin < part.end; begin += part.block) {
        const Index rows = std::min(part.block, part.end - begin);
        // Rows behind the last one keep what they held: nobody reads what comes of them.
        for (Index row = 0; row < rows; ++row)
          round_row(q.row(begin + row) + head * dim, queries + row * dim, dim, scale);
        multiply(worker, pair.scores, queries, k, scores);
        for (Index row = 0; row < rows; ++row)
          sums[row] = softmax_row(scores + row * padded, keys, weights + row * padded);
        multiply(worker, pair.output, weights, v, output);
        for (Index row = 0; row < rows; ++row)
          round_row(output + row * dim, out.row(begin + row) + head * dim, dim, 1.0F / sums[row]);
      }
    }
  }

  // Weights take the place of the scores, or have memory of their own in a narrower type.
  static Element* weights_of(Worker& worker, float* scores, Index count) {
    if constexpr (std::is_same_v<Element, float>)
      return scores;
    else
      return worker.weights.ensure(count);
  }

  std::vector<Worker> m_workers;
};

}  // namespace detail

/// Attention of many rows on oneDNN for one runner, in float32 or bf16 as the rows are.
class OneDnnAttention {
 public:
  explicit OneDnnAttention(int threads) : m_wide(threads), m_narrow(threads) {}

  /// The rows of one segment; see Attention.
  template <StoredScalar Stored>
  void attend(MatrixView<const float> q, const Segment<Stored>& segment, const HeadShape& shape,
              ProductInput& out, ThreadTeam& team) {
    if (out.narrow())
      m_narrow.attend(q, segment, shape, out.rounded(), team);
    else
      m_wide.attend(q, segment, shape, out.floats(), team);
  }

 private:
  detail::OneDnnAttentionIn<float> m_wide;
  detail::OneDnnAttentionIn<Eigen::bfloat16> m_narrow;
};

}  // namespace dllm_cache::inline v0_1::models
