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
#include "dllm_cache/models/compute/available_threads.hpp"

namespace dllm_cache::inline v0_1::models {

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

/// Threads out of `threads` that work of so many `operations` is worth: all, or one where waking
/// the others and waiting for the last of them would cost more than they save.
[[nodiscard]] constexpr int worth_threads(double operations, int threads) {
  // Some 20 microseconds of every thread: what a sleeping thread needs to wake up and to meet the
  // others. Nothing between one and all: OpenMP ends threads that a smaller team leaves out.
  constexpr double worth_waking = 2.5e6;
  return operations > worth_waking * threads ? threads : 1;
}

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

  /// Threads that work of so many `operations` is worth; see worth_threads().
  [[nodiscard]] int threads_for(double operations) const {
    return worth_threads(operations, m_threads);
  }

  /// Calls `work(task, scratch)` for every task in `[0, count)`, spread over threads_for() the
  /// `operations` of all tasks together; `scratch` belongs to the thread that runs the task.
  /// Rethrows one exception of the work.
  template <class Work>
  void for_each(Index count, double operations, const Work& work) {
    // Inside a task Eigen and others that ask OpenMP for threads must be told one.
#ifdef _OPENMP
    if (count > 1 && threads_for(operations) > 1) {
      std::exception_ptr error;
#pragma omp parallel num_threads(m_threads)
      {
        const OpenMpThreads one(1);
        Scratch& scratch = m_scratch[static_cast<std::size_t>(omp_get_thread_num())];
        // Whoever is free takes the next task; all meet once, at the end of the region.
#pragma omp for schedule(dynamic, 1) nowait
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

  /// Calls `work(row)` for every row in `[0, rows)`; `elements` are touched in all, each of which
  /// takes as long as tens of operations of a product.
  template <class Work>
  void for_rows(Index rows, double elements, const Work& work) {
    const Index chunk = std::max<Index>(1, rows / (Index{4} * m_threads));
    for_each((rows + chunk - 1) / chunk, 32.0 * elements, [&](Index task, Scratch&) {
      for (Index row = task * chunk; row < std::min(rows, (task + 1) * chunk); ++row) work(row);
    });
  }

 private:
  int m_threads;
  std::vector<Scratch> m_scratch;
  base::Buffer<float> m_shared;
};

}  // namespace dllm_cache::inline v0_1::models
