// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace dllm_cache::testing {

/// Counts every operator new of this program while `counting` is set; allocation_counter.cpp must
/// be one of its sources.
struct AllocationCounter {
  bool counting = false;
  long counted = 0;
  long failing = -1;  ///< This one of the counted allocations fails; -1: none.
};
extern AllocationCounter allocation_counter;

/// Allocations made by `action`, of which number `failing` fails (-1: none does).
template <class Action>
long allocations(Action&& action, long failing = -1) {
  struct Scope {
    explicit Scope(long fails) { allocation_counter = {true, 0, fails}; }
    ~Scope() { allocation_counter.counting = false; }
  };
  {
    const Scope scope(failing);
    action();
  }
  return allocation_counter.counted;
}

}  // namespace dllm_cache::testing
