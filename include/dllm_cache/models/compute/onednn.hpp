// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "dllm_cache/base/buffer.hpp"
#include "dllm_cache/base/large_pages.hpp"
#include "dllm_cache/models/checkpoint/read_floats.hpp"
#include "dllm_cache/models/compute/backend.hpp"
#include "dllm_cache/models/compute/parallel.hpp"
#include "dllm_cache/models/compute/product_input.hpp"
#include "dllm_cache/models/compute/rounding.hpp"

namespace dllm_cache::inline v0_1::models {

namespace detail {

using DnnlType = dnnl::memory::data_type;

/// Calls oneDNN and turns its exception into one of ours, naming what was tried.
template <class Call>
decltype(auto) try_onednn(const char* what, const Call& call) {
  try {
    return call();
  } catch (const dnnl::error& error) {
    throw std::runtime_error(std::string("oneDNN: ") + what + ": " + error.what());
  }
}

[[nodiscard]] inline DnnlType dnnl_type(Precision precision) {
  return precision == Precision::Float32 ? DnnlType::f32 : DnnlType::bf16;
}

/// The product y [rows, outputs] = x [rows, inputs] W^T. The weights' layout is oneDNN's choice
/// unless it is given; it does not depend on the number of rows, which PackedWeights relies on.
[[nodiscard]] inline dnnl::inner_product_forward::primitive_desc product_of(
    const dnnl::engine& engine, Index rows, Index inputs, Index outputs, Precision precision,
    const dnnl::memory::desc* weights) {
  using Desc = dnnl::memory::desc;
  using Tag = dnnl::memory::format_tag;
  const DnnlType type = dnnl_type(precision);
  const Desc x({rows, inputs}, type, Tag::ab);
  const Desc any({outputs, inputs}, type, Tag::any);
  const Desc& w = weights != nullptr ? *weights : any;
  const Desc y({rows, outputs}, DnnlType::f32, Tag::ab);
#if DNNL_VERSION_MAJOR >= 3
  return dnnl::inner_product_forward::primitive_desc(engine, dnnl::prop_kind::forward_inference, x,
                                                     w, y);
#else
  return dnnl::inner_product_forward::primitive_desc(
      dnnl::inner_product_forward::desc(dnnl::prop_kind::forward_inference, x, w, y), engine);
#endif
}

/// The product c [rows, cols] = a [rows, inner] b [inner, cols], a and b of one type.
[[nodiscard]] inline dnnl::matmul::primitive_desc matmul_of(const dnnl::engine& engine, Index rows,
                                                            Index inner, Index cols, DnnlType type,
                                                            const dnnl::memory::dims& b_strides) {
  using Desc = dnnl::memory::desc;
  const Desc a({rows, inner}, type, dnnl::memory::dims{inner, 1});
  const Desc b({inner, cols}, type, b_strides);
  const Desc c({rows, cols}, DnnlType::f32, dnnl::memory::dims{cols, 1});
#if DNNL_VERSION_MAJOR >= 3
  return dnnl::matmul::primitive_desc(engine, a, b, c);
#else
  return dnnl::matmul::primitive_desc(dnnl::matmul::desc(a, b, c), engine);
#endif
}

/// Whether oneDNN has the bf16 products of linear maps and of attention on this processor (2.6: on
/// those with AVX-512 alone). Asks oneDNN at the first call, any thread may.
[[nodiscard]] inline bool onednn_multiplies_bf16() {
  static const bool multiplies = [] {
    try {
      constexpr Index size = 16;
      const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
      static_cast<void>(product_of(engine, size, size, size, Precision::Bfloat16, nullptr));
      static_cast<void>(matmul_of(engine, size, size, size, DnnlType::bf16, {1, size}));
      static_cast<void>(matmul_of(engine, size, size, size, DnnlType::bf16, {size, 1}));
      return true;
    } catch (const dnnl::error&) {
      return false;
    }
  }();
  return multiplies;
}

}  // namespace detail

/// A weight matrix `[outputs, inputs]` packed once into the layout that oneDNN prefers. Const and
/// shared between threads.
class PackedWeights {
 public:
  /// Packs F32, F16 or BF16 weights in the given precision; throws std::runtime_error for other
  /// types and when oneDNN refuses.
  PackedWeights(const Tensor& weight, Precision precision)
      : m_precision(precision), m_outputs(weight.shape.at(0)), m_inputs(weight.shape.at(1)) {
    check_float(weight);
    detail::try_onednn("packing weights", [&] {
      std::optional<OpenMpThreads> alone;
      if (worth_threads(product_effort(1, m_inputs, m_outputs), 2) == 1) alone.emplace(1);
      const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
      constexpr Index typical_rows = 256;
      m_layout = detail::product_of(engine, typical_rows, m_inputs, m_outputs, precision, nullptr)
                     .weights_desc();
      m_memory = std::make_shared<base::Buffer<std::byte>>(large_pages());
      m_memory->ensure(static_cast<Index>(m_layout.get_size()));
      const std::vector<float> plain = read_floats(weight);
      dnnl::memory from(
          {{m_outputs, m_inputs}, detail::DnnlType::f32, dnnl::memory::format_tag::ab}, engine,
          const_cast<float*>(plain.data()));
      dnnl::memory to(m_layout, engine, m_memory->data());
      dnnl::stream stream(engine);
      dnnl::reorder(from, to).execute(stream, from, to);
      stream.wait();
    });
  }

  /// Whether products read the bytes of the tensor given to the constructor.
  [[nodiscard]] static constexpr bool reads_tensor() { return false; }
  [[nodiscard]] Precision precision() const { return m_precision; }
  [[nodiscard]] Index outputs() const { return m_outputs; }
  [[nodiscard]] Index inputs() const { return m_inputs; }
  [[nodiscard]] const dnnl::memory::desc& layout() const { return m_layout; }
  /// The packed bytes; oneDNN takes them as void* and only reads them.
  [[nodiscard]] void* data() const { return m_memory->data(); }

 private:
  Precision m_precision;
  Index m_outputs;
  Index m_inputs;
  dnnl::memory::desc m_layout;
  std::shared_ptr<base::Buffer<std::byte>> m_memory;
};

/// Products with packed weights for one thread. Primitives are kept by bucket of rows and shape, so
/// that row counts may change at every step. Executing one allocates nothing of ours.
class OneDnnProducts {
 public:
  /// Rows that a product of `rows` rows is computed with: a few more at most, so that primitives
  /// are few. Inputs must be readable, and outputs writable, up to that many.
  [[nodiscard]] static Index padded_rows(Index rows) {
    const auto up = [&](Index to) { return (rows + to - 1) / to * to; };
    if (rows <= 16) return rows;
    if (rows <= 128) return up(8);
    return rows <= 512 ? up(16) : up(large_step);
  }

  /// y `[m, outputs]` = x `[m, inputs]` W^T; x in the precision of the weights. y may be written up
  /// to padded_rows(m) rows where it is dense and `padded`. Throws std::runtime_error when oneDNN
  /// refuses.
  void multiply(const PackedWeights& weights, const ProductRows& x, MatrixView<float> y,
                bool padded, ThreadTeam& team) {
    if (x.floats != nullptr)
      multiply_parts(weights, x.rows, x.floats, y, padded, team);
    else
      multiply_parts(weights, x.rows, x.rounded, y, padded, team);
  }

 private:
  struct Product {
    dnnl::inner_product_forward primitive;
    dnnl::memory x, weights, y;
  };
  using Key = std::tuple<Index, Index, Index, Precision>;  // rows, inputs, outputs

  // How many of `rows` rows are worth a product of their own where there is no room for the rows
  // that fill up a bucket: few rows are faster copied than weights are read once more.
  [[nodiscard]] static Index rows_in_place(Index rows) {
    if (padded_rows(rows) == rows) return rows;
    return rows > 512 ? rows / large_step * large_step : 0;
  }

  template <ProductScalar Element>
  void multiply_parts(const PackedWeights& weights, Index rows, const Element* x,
                      MatrixView<float> to, bool padded, ThreadTeam& team) {
    const bool dense = to.stride == to.cols;
    Index done = dense ? rows_in_place(rows) : 0;
    if (dense && padded) done = rows;
    if (done > 0) multiply_bucket(weights, padded_rows(done), x, to.data, team);
    if (done == rows) return;
    // `to` has no room for the rows that fill up a bucket.
    const Index rest = rows - done, width = weights.outputs();
    float* const y = m_result.ensure(padded_rows(rest) * width);
    multiply_bucket(weights, padded_rows(rest), x + done * weights.inputs(), y, team);
    team.for_rows(rest, static_cast<double>(rest * width),
                  [&](Index row) { std::copy_n(y + row * width, width, to.row(done + row)); });
  }

  // y [rows, outputs] = x [rows, inputs] W^T for a bucket of rows; both dense.
  void multiply_bucket(const PackedWeights& weights, Index rows, const void* x, float* y,
                       const ThreadTeam& team) {
    // The regions of oneDNN take all threads that they are told, however little each has to do.
    const OpenMpThreads limit(
        team.threads_for(product_effort(rows, weights.inputs(), weights.outputs())));
    Product& product = find(weights, rows);
    // The plain C call with kept memory objects: the C++ wrapper builds a map at every call.
    dnnl_memory_set_data_handle(product.x.get(), const_cast<void*>(x));
    dnnl_memory_set_data_handle(product.weights.get(), weights.data());
    dnnl_memory_set_data_handle(product.y.get(), y);
    const std::array<dnnl_exec_arg_t, 3> arguments = {{{DNNL_ARG_SRC, product.x.get()},
                                                       {DNNL_ARG_WEIGHTS, product.weights.get()},
                                                       {DNNL_ARG_DST, product.y.get()}}};
    const dnnl_status_t status =
        dnnl_primitive_execute(product.primitive.get(), m_stream.get(),
                               static_cast<int>(arguments.size()), arguments.data());
    if (status != dnnl_success) throw std::runtime_error("oneDNN: a product failed");
    m_stream.wait();
  }

  Product& find(const PackedWeights& weights, Index rows) {
    const Key key{rows, weights.inputs(), weights.outputs(), weights.precision()};
    const auto found = m_products.find(key);
    if (found != m_products.end()) return found->second;
    return detail::try_onednn("making a product", [&]() -> Product& {
      const auto description =
          detail::product_of(m_engine, rows, weights.inputs(), weights.outputs(),
                             weights.precision(), &weights.layout());
      // Memory objects without memory: the handles are set at every call.
      const auto empty = [&](const dnnl::memory::desc& layout) {
        return dnnl::memory(layout, m_engine, nullptr);
      };
      return m_products
          .emplace(key,
                   Product{dnnl::inner_product_forward(description), empty(description.src_desc()),
                           empty(description.weights_desc()), empty(description.dst_desc())})
          .first->second;
    });
  }

  static constexpr Index large_step = 64;  // between buckets of many rows

  dnnl::engine m_engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream m_stream{m_engine};
  std::map<Key, Product> m_products;
  base::Buffer<float> m_result;  // where y has no room for padding
};

}  // namespace dllm_cache::inline v0_1::models
