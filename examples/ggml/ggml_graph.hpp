// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpp.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "dllm_cache/eigen.hpp"
#include "dllm_cache/layer.hpp"

// Everything that is needed to run ggml graphs under the cache: copy this file.
namespace ggml_runtime {

using dllm_cache::Index;
using dllm_cache::MatrixView;

/// ggml's name of an element type.
template <class T>
inline constexpr ggml_type type_of = std::is_same_v<T, float>             ? GGML_TYPE_F32
                                     : std::is_same_v<T, std::int32_t>    ? GGML_TYPE_I32
                                     : std::is_same_v<T, Eigen::bfloat16> ? GGML_TYPE_BF16
                                     : std::is_same_v<T, Eigen::half>     ? GGML_TYPE_F16
                                                                          : GGML_TYPE_COUNT;

/// ggml's CPU backend with its threads, and the memory of graphs, which are built anew for each
/// call. One thread uses it at a time.
class Runtime {
 public:
  /// `threads >= 1`; throws std::bad_alloc where ggml does not start.
  explicit Runtime(int threads) : m_backend(ggml_backend_cpu_init()) {
    ggml_threadpool_params params = ggml_threadpool_params_default(threads);
    m_pool.reset(ggml_threadpool_new(&params));
    if (m_backend == nullptr || m_pool == nullptr) throw std::bad_alloc();
    ggml_backend_cpu_set_n_threads(m_backend.get(), threads);
    ggml_backend_cpu_set_threadpool(m_backend.get(), m_pool.get());
    m_memory.reset(ggml_gallocr_new(ggml_backend_get_default_buffer_type(m_backend.get())));
  }
  [[nodiscard]] ggml_backend_t backend() const { return m_backend.get(); }

 private:
  friend class Graph;
  struct FreePool {
    void operator()(ggml_threadpool* pool) const { ggml_threadpool_free(pool); }
  };

  std::unique_ptr<ggml_threadpool, FreePool> m_pool;  // outlives the backend
  ggml_backend_ptr m_backend;
  ggml_gallocr_ptr m_memory;
  std::vector<std::uint8_t> m_tensors;  // what ggml keeps about the tensors of the graph
};

/// A graph over the library's memory: ggml leaves tensors alone whose data is set. One at a time.
class Graph {
 public:
  /// Room for so many tensors, views and results of operations alike.
  explicit Graph(Runtime& runtime, std::size_t tensors = 64) : m_runtime(runtime) {
    const std::size_t bytes =
        tensors * ggml_tensor_overhead() + ggml_graph_overhead_custom(tensors, false);
    if (runtime.m_tensors.size() < bytes) runtime.m_tensors.resize(bytes);
    m_context.reset(ggml_init({runtime.m_tensors.size(), runtime.m_tensors.data(), true}));
    if (m_context == nullptr) throw std::bad_alloc();
    m_graph = ggml_new_graph_custom(m_context.get(), tensors, false);
  }
  [[nodiscard]] ggml_context* context() const { return m_context.get(); }

  /// Tensor `[cols, rows]` in ggml's order, which is `[rows, cols]` here, over the memory of a
  /// view: nothing is copied. One over a view of const elements must not be written.
  template <class T>
  [[nodiscard]] ggml_tensor* over(const MatrixView<T>& view) {
    using Element = std::remove_const_t<T>;
    static_assert(type_of<Element> != GGML_TYPE_COUNT);
    ggml_tensor* const t = ggml_new_tensor_2d(context(), type_of<Element>, view.cols, view.rows);
    t->data = const_cast<Element*>(view.data);
    t->nb[1] = static_cast<std::size_t>(view.stride) * sizeof(Element);
    t->nb[2] = t->nb[3] = t->nb[1] * static_cast<std::size_t>(view.rows);
    return t;
  }
  /// Tensor `[size]` over the memory of a span of numbers: tokens or positions.
  [[nodiscard]] ggml_tensor* over(std::span<const std::int32_t> numbers) {
    ggml_tensor* const t =
        ggml_new_tensor_1d(context(), GGML_TYPE_I32, static_cast<std::int64_t>(numbers.size()));
    t->data = const_cast<std::int32_t*>(numbers.data());
    return t;
  }

  /// Has the graph compute `result`, the outcome of an operation and no view of another tensor,
  /// where `view` lies: in place where the view is dense, as the library's always are.
  void into(ggml_tensor* result, const MatrixView<float>& view) {
    if (view.stride == view.cols)
      result->data = view.data;
    else
      result =
          ggml_cpy(context(), ggml_reshape_2d(context(), result, view.cols, view.rows), over(view));
    ggml_build_forward_expand(m_graph, result);
  }

  /// Computes it. Throws std::bad_alloc without memory, std::runtime_error where ggml says so.
  void run() {
    if (!ggml_gallocr_alloc_graph(m_runtime.m_memory.get(), m_graph)) throw std::bad_alloc();
    if (ggml_backend_graph_compute(m_runtime.backend(), m_graph) != GGML_STATUS_SUCCESS)
      throw std::runtime_error("ggml: a graph was not computed");
  }

 private:
  Runtime& m_runtime;
  ggml_context_ptr m_context;
  ggml_cgraph* m_graph = nullptr;
};

}  // namespace ggml_runtime
