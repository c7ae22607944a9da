// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <map>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "dllm_cache/base/scalar.hpp"
#include "dllm_cache/models/compute/head_shape.hpp"
#include "dllm_cache/models/compute/onednn.hpp"
#include "dllm_cache/models/compute/pack_columns.hpp"
#include "dllm_cache/models/compute/parallel.hpp"
#include "dllm_cache/models/compute/product_input.hpp"
#include "dllm_cache/models/compute/rounding.hpp"
#include "dllm_cache/models/compute/softmax.hpp"
#include "dllm_cache/models/compute/stairs.hpp"

namespace dllm_cache::inline v0_1::models {

namespace detail {

/// Attention of many rows whose two products run on oneDNN, in the type of the rows it writes.
///
/// A task takes one key head and copies its keys and values densely, which oneDNN's fast kernels
/// want, once for all query rows. Primitives are kept per thread, block of rows and number of keys,
/// rounded up so that every row begins on a cache line, and in stairs so that few numbers remain.
template <ProductScalar Element>
class OneDnnAttentionIn {
 public:
  explicit OneDnnAttentionIn(int threads) : m_workers(static_cast<std::size_t>(threads)) {}

  /// The rows of one staircase; see Attention.
  template <StoredScalar Stored>
  void attend(MatrixView<const float> q, const Stairs<Stored>& stairs, const HeadShape& shape,
              MatrixView<Element> out, ThreadTeam& team) {
    const Index rows = stairs.rows();
    const Index block = block_rows(rows, stairs.keys.rows, stairs.even());
    const Index blocks = (rows + block - 1) / block;
    // Tasks for every thread even where there are fewer key heads than threads.
    const Index parts = std::clamp<Index>(
        (Index{2} * team.threads() + shape.kv_heads - 1) / shape.kv_heads, 1, blocks);
    team.for_each(
        shape.kv_heads * parts, stairs.operations(shape), [&](Index task, Scratch& scratch) {
          Part part{.kv_head = task / parts,
                    .begin = part_begin(stairs, task % parts, parts, block),
                    .end = part_begin(stairs, task % parts + 1, parts, block),
                    .block = block};
          if (part.begin < part.end)
            run(m_workers[static_cast<std::size_t>(scratch.thread)], part, q, stairs, shape, out);
        });
  }

 private:
  static constexpr DnnlType type = std::is_same_v<Element, float> ? DnnlType::f32 : DnnlType::bf16;

  // The work of one task: some rows of all query heads of one key head.
  struct Part {
    Index kv_head, begin, end, block;
  };

  // Rows a product: scores of a block stay in the second-level cache, and block sizes are few.
  static Index block_rows(Index rows, Index keys, bool even) {
    const Index most = std::clamp<Index>((Index{1} << 17) / keys / 8 * 8, 16, 128);
    if (!even) return static_cast<Index>(std::bit_floor(static_cast<std::size_t>(most)));
    const Index blocks = (rows + most - 1) / most;
    return ((rows + blocks - 1) / blocks + 7) / 8 * 8;
  }

  // The first row of a part: parts are whole blocks whose last rows see about the same in all.
  template <class Stored>
  static Index part_begin(const Stairs<Stored>& stairs, Index part, Index parts, Index block) {
    const auto seen = [&](Index begin) {
      return stairs.seen_by(std::min(begin + block, stairs.end) - 1);
    };
    Index all = 0, before = 0, begin = stairs.begin;
    for (Index one = begin; one < stairs.end; one += block) all += seen(one);
    for (; begin < stairs.end && before < all * part / parts; begin += block) before += seen(begin);
    return std::min(begin, stairs.end);
  }

  // Keys that a product of so many takes.
  static Index padded_keys(Index keys, bool even) {
    if (even) return padded_count(keys);
    // Eight numbers for every doubling.
    const Index step = static_cast<Index>(std::bit_ceil(static_cast<std::size_t>(keys))) / 16;
    const Index whole = std::max(step, padded_count(1));
    return (keys + whole - 1) / whole * whole;
  }

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
    const auto description = matmul_of(worker.engine, rows, inner, cols, type, b_strides);
    const auto empty = [&](const dnnl::memory::desc& layout) {
      return dnnl::memory(layout, worker.engine, nullptr);
    };
    return {dnnl::matmul(description), empty(description.src_desc()),
            empty(description.weights_desc()), empty(description.dst_desc())};
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

  // Columns of one key head in the element type `[most, head_dim]`; rows behind the last are 0.
  template <class Stored>
  static Element* pack(MatrixView<const Stored> kept, Index begin, Index dim, Index most,
                       base::Buffer<Element>& memory) {
    Element* const packed = memory.ensure(most * dim);
    pack_columns(kept, 0, kept.rows, begin, dim, packed);
    std::fill(packed + kept.rows * dim, packed + most * dim, Element(0));
    return packed;
  }

  template <StoredScalar Stored>
  static void run(Worker& worker, const Part& part, MatrixView<const float> q,
                  const Stairs<Stored>& stairs, const HeadShape& shape, MatrixView<Element> out) {
    const Index dim = shape.head_dim;
    const Index most = padded_keys(stairs.keys.rows, stairs.even());
    Index known = stairs.seen_by(part.end - 1);
    const Element* const k =
        pack(stairs.keys.middle_rows(0, known), part.kv_head * dim, dim, most, worker.keys);
    Element* const v =
        pack(stairs.values.middle_rows(0, known), part.kv_head * dim, dim, most, worker.values);
    const Index blocks = (part.end - part.begin + part.block - 1) / part.block;
    // From the last to the first: values that no later product sees become 0, as padding is.
    for (Index number = blocks - 1; number >= 0; --number) {
      const Index begin = part.begin + number * part.block;
      for_stretches(stairs, begin, std::min(begin + part.block, part.end),
                    MatrixView<const Element>{v, known, dim, dim}, [&](Index first, Index last) {
                      const Index keys = stairs.seen_by(last - 1);
                      std::fill(v + keys * dim, v + known * dim, Element(0));
                      known = keys;
                      multiply_rows(worker, part, first, last, k, v, q, stairs, shape, out);
                    });
    }
  }

  // Rows `[first, last)` of all query heads of one key head, with the keys that the last one sees.
  template <StoredScalar Stored>
  static void multiply_rows(Worker& worker, const Part& part, Index first, Index last,
                            const Element* k, const Element* v, MatrixView<const float> q,
                            const Stairs<Stored>& stairs, const HeadShape& shape,
                            MatrixView<Element> out) {
    const Index dim = shape.head_dim;
    const Index group = shape.heads / shape.kv_heads;
    const Index rows = last - first, most = padded_keys(stairs.keys.rows, stairs.even());
    const Index padded = padded_keys(stairs.seen_by(last - 1), stairs.even());
    const Index block =
        stairs.even()
            ? part.block
            : static_cast<Index>(std::bit_ceil(static_cast<std::size_t>(std::max<Index>(rows, 8))));
    Pair& pair = find(worker, {block, padded, dim});
    Element* const queries = worker.queries.ensure(part.block * dim);
    float* const scores = worker.scores.ensure(part.block * most);
    float* const output = worker.output.ensure(part.block * dim);
    float* const sums = worker.sums.ensure(part.block);
    Element* const weights = weights_of(worker, scores, part.block * most);
    const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
    for (Index head = part.kv_head * group; head < (part.kv_head + 1) * group; ++head) {
      // Rows behind the last one keep what they held: nobody reads what comes of them.
      for (Index row = 0; row < rows; ++row)
        round_row(q.row(first + row) + head * dim, queries + row * dim, dim, scale);
      multiply(worker, pair.scores, queries, k, scores);
      for (Index row = 0; row < rows; ++row)
        sums[row] = softmax_seen(scores + row * padded, stairs.seen_by(first + row), padded,
                                 weights + row * padded);
      multiply(worker, pair.output, weights, v, output);
      for (Index row = 0; row < rows; ++row)
        round_row(output + row * dim, out.row(first + row) + head * dim, dim, 1.0F / sums[row]);
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

  /// The rows of one staircase; see Attention.
  template <StoredScalar Stored>
  void attend(MatrixView<const float> q, const detail::Stairs<Stored>& stairs,
              const HeadShape& shape, ProductInput& out, ThreadTeam& team) {
    if (out.narrow())
      m_narrow.attend(q, stairs, shape, out.rounded(), team);
    else
      m_wide.attend(q, stairs, shape, out.floats(), team);
  }

 private:
  detail::OneDnnAttentionIn<float> m_wide;
  detail::OneDnnAttentionIn<Eigen::bfloat16> m_narrow;
};

}  // namespace dllm_cache::inline v0_1::models
