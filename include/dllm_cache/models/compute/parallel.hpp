// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <exception>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "dllm_cache/base/buffer.hpp"
#include "dllm_cache/base/error.hpp"

namespace dllm_cache::inline v0_1::models {

/// Processors that this process may use, at least 1; 1 when built without OpenMP.
[[nodiscard]] inline int available_threads() {
#ifdef _OPENMP
  return omp_get_num_procs();
#else
  return 1;
#endif
}

/// Sets how many threads OpenMP code called from this thread takes, and puts the setting back; the
/// setting belongs to the calling thread. Does nothing when built without OpenMP.
class OpenMpThreads {
 public:
#ifdef _OPENMP
  explicit OpenMpThreads(int threads) : m_before(omp_get_max_threads()) {
    omp_set_num_threads(threads);
  }
  ~OpenMpThreads() { omp_set_num_threads(m_before); }
#else
  explicit OpenMpThreads(int) {}
#endif
  OpenMpThreads(const OpenMpThreads&) = delete;
  OpenMpThreads& operator=(const OpenMpThreads&) = delete;

#ifdef _OPENMP
 private:
  int m_before;
#endif
};

/// Scratch memory of one thread of a team.
struct Scratch {
  int thread = 0;  ///< Its number in the team, from 0.
  base::Buffer<float> floats;
};

/// Threads and their scratch memory: what a caller lends to the bundled models. One thread uses it
/// at a time.
class ThreadTeam {
 public:
  /// `threads >= 1`; throws std::invalid_argument otherwise.
  explicit ThreadTeam(int threads) : m_threads(threads) {
    if (threads < 1) base::refuse_argument("ThreadTeam: threads must be at least 1, got ", threads);
    m_scratch.resize(static_cast<std::size_t>(threads));
    for (int thread = 0; thread < threads; ++thread)
      m_scratch[static_cast<std::size_t>(thread)].thread = thread;
  }

  [[nodiscard]] int threads() const { return m_threads; }

  /// Memory of the caller's that all tasks see.
  [[nodiscard]] base::Buffer<float>& shared() { return m_shared; }

  /// Calls `work(task, scratch)` for every task in `[0, count)`, spread over the threads where the
  /// `operations` of all tasks together are worth waking them; `scratch` belongs to the thread that
  /// runs the task. Rethrows one exception of the work.
  template <class Work>
  void for_each(Index count, double operations, const Work& work) {
    // Inside a task Eigen and others that ask OpenMP for threads must be told one.
#ifdef _OPENMP
    // Meeting at the end of a region costs some microseconds: about this many operations.
    constexpr double worth_waking = 5e5;
    if (m_threads > 1 && count > 1 && operations > worth_waking) {
      std::exception_ptr error;
#pragma omp parallel num_threads(m_threads)
      {
        const OpenMpThreads one(1);
        Scratch& scratch = m_scratch[static_cast<std::size_t>(omp_get_thread_num())];
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
#else
    static_cast<void>(operations);
#endif
    const OpenMpThreads one(1);
    for (Index task = 0; task < count; ++task) work(task, m_scratch.front());
  }

  /// Calls `work(row)` for every row in `[0, rows)`; `elements` are touched in all, a few
  /// operations each.
  template <class Work>
  void for_rows(Index rows, double elements, const Work& work) {
    const Index chunk = std::max<Index>(1, rows / (Index{4} * m_threads));
    for_each((rows + chunk - 1) / chunk, 8.0 * elements, [&](Index task, Scratch&) {
      for (Index row = task * chunk; row < std::min(rows, (task + 1) * chunk); ++row) work(row);
    });
  }

 private:
  int m_threads;
  std::vector<Scratch> m_scratch;
  base::Buffer<float> m_shared;
};

}  // namespace dllm_cache::inline v0_1::models
