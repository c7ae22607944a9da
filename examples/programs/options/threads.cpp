// SPDX-License-Identifier: Apache-2.0
#include "programs/options/threads.hpp"

#ifdef __linux__
#include <sys/auxv.h>
#include <unistd.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#include <cstdlib>
#include <initializer_list>

namespace programs {

namespace {

#if defined(__linux__) && defined(_OPENMP)
void start_again(char** argv) {
  for (const char* name : {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"})
    if (std::getenv(name) != nullptr) return;
  // Started by a loader that was given the program's name: the loader would be started again.
  if (getauxval(AT_BASE) == 0) return;
  // 0.1 ms or so in GNU's OpenMP: longer than most waits between two products, much shorter than
  // another process computes at a stretch. LLVM's OpenMP reads the policy alone. With either set
  // this does not happen again.
  if (setenv("GOMP_SPINCOUNT", "8000", 1) != 0 || setenv("OMP_WAIT_POLICY", "passive", 1) != 0)
    return;
  execv("/proc/self/exe", argv);  // returns where it failed, and nothing is lost
}
#else
void start_again(char**) {}
#endif

}  // namespace

void prepare_threads(char** argv, int threads) {
  if (threads > 1) start_again(argv);
#ifdef _OPENMP
  omp_set_num_threads(threads);
#endif
}

}  // namespace programs
