// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <exception>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "dllm_cache/detail/buffer.hpp"

namespace dllm_cache::models {

/// Processors that this process may use, at least 1; 1 when built without OpenMP.
[[nodiscard]] inline int available_threads() {
#ifdef _OPENMP
  return omp_get_num_procs();
#else
  return 1;
#endif
}

/// Threads and their scratch memory: what a caller lends to the bundled models. One thread uses it
/// at a time.
class ThreadTeam {
 public:
  /// `threads >= 1`; throws std::invalid_argument otherwise.
  explicit ThreadTeam(int threads) : m_threads(threads) {
    if (threads < 1)
      dllm_cache::detail::refuse_argument("ThreadTeam: threads must be at least 1, got ", threads);
    m_scratch.resize(static_cast<std::size_t>(threads));
  }

  [[nodiscard]] int threads() const { return m_threads; }

  /// Calls `work(task, scratch)` for every task in `[0, count)`, spread over the threads where the
  /// `operations` of all tasks together are worth waking them; `scratch` is a detail::Buffer<float>
  /// of the thread that runs it. Rethrows one exception of the work.
  template <class Work>
  void for_each(Index count, double operations, const Work& work) {
    std::exception_ptr error;
#ifdef _OPENMP
    // Meeting at the end of a region costs some microseconds: about this many operations.
    constexpr double worth_waking = 5e5;
    if (m_threads > 1 && count > 1 && operations > worth_waking) {
#pragma omp parallel num_threads(m_threads)
      {
        const SerialEigen serial;
        auto& scratch = m_scratch[static_cast<std::size_t>(omp_get_thread_num())];
#pragma omp for schedule(dynamic, 1)
        for (Index task = 0; task < count; ++task) {
          try {
            work(task, scratch);
          } catch (...) {  // an exception must not leave a parallel region
#pragma omp critical(dllm_cache_thread_team)
            error = std::current_exception();
          }
        }
      }
      if (error) std::rethrow_exception(error);
      return;
    }
    const SerialEigen serial;
#else
    static_cast<void>(operations);
#endif
    for (Index task = 0; task < count; ++task) work(task, m_scratch.front());
  }

 private:
#ifdef _OPENMP
  // Eigen asks OpenMP how many threads a product may take; inside a task the answer must be one.
  // The setting belongs to the calling thread and is put back.
  struct SerialEigen {
    SerialEigen() : before(omp_get_max_threads()) { omp_set_num_threads(1); }
    ~SerialEigen() { omp_set_num_threads(before); }
    SerialEigen(const SerialEigen&) = delete;
    SerialEigen& operator=(const SerialEigen&) = delete;
    int before;
  };
#endif

  int m_threads;
  std::vector<dllm_cache::detail::Buffer<float>> m_scratch;
};

}  // namespace dllm_cache::models
