// SPDX-License-Identifier: Apache-2.0
// The C interface from C++17, linked with the library that was compiled as C++20: errors that only
// a failing allocation brings about, and threads.
#include "dllm_cache/c_api.h"

static_assert(__cplusplus < 202002L, "this file is C++17");

#include <atomic>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"

namespace {

// The allocation that is to fail, counted from 1; 0: none. And how it fails.
std::atomic<long> fails_in{0};
enum class Failure { NoMemory, Exception, Number };
Failure failure = Failure::NoMemory;

void* allocate(std::size_t size) {
  if (fails_in > 0 && --fails_in == 0) {
    if (failure == Failure::Exception) throw std::runtime_error("not known here");
    if (failure == Failure::Number) throw 5;
    throw std::bad_alloc();
  }
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t size) { return allocate(size); }
void* operator new[](std::size_t size) { return allocate(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

struct Destroy {
  void operator()(dllm_planner* planner) const { dllm_planner_destroy(planner); }
};
using Planner = std::unique_ptr<dllm_planner, Destroy>;

dllm_shape shape_of(int64_t prompt, int64_t response) {
  dllm_shape shape{};
  shape.size = sizeof shape;
  shape.prompt = prompt;
  shape.response = response;
  return shape;
}

dllm_step_input block_of(int64_t begin, int64_t end) {
  dllm_step_input input{};
  input.size = sizeof input;
  input.block_begin = begin;
  input.block_end = end;
  return input;
}

dllm_planner_info info_of(const Planner& planner) {
  dllm_planner_info info{};
  info.size = sizeof info;
  CHECK(dllm_planner_get_info(planner.get(), &info) == DLLM_OK);
  return info;
}

Planner planner_of(const char* policy, const dllm_shape& shape) {
  dllm_planner* made = nullptr;
  CHECK(dllm_planner_create(policy, nullptr, &shape, 3, &made) == DLLM_OK);
  return Planner(made);
}

// Lets each allocation of a call fail in turn until it succeeds; answers how many failed.
template <class Call, class Check>
int fail_each_allocation(Call call, Check unchanged) {
  for (int allocation = 1;; ++allocation) {
    fails_in = allocation;
    const dllm_status status = call();
    fails_in = 0;
    if (status == DLLM_OK) return allocation - 1;
    const dllm_status expected = failure == Failure::NoMemory ? DLLM_NO_MEMORY : DLLM_UNKNOWN;
    CHECK(status == expected);
    const char* const message = failure == Failure::NoMemory    ? "no memory"
                                : failure == Failure::Exception ? "not known here"
                                                                : "unknown error";
    CHECK(std::string(dllm_last_error()) == message);
    unchanged();
  }
}

void allocations_fail() {
  const dllm_shape small = shape_of(4, 6), large = shape_of(400, 600);
  const dllm_step_input input = block_of(4, 6);
  dllm_step step{};
  step.size = sizeof step;
  dllm_planner* made = nullptr;
  CHECK(fail_each_allocation([&] { return dllm_planner_create("dual", "", &small, 3, &made); },
                             [&] { CHECK(made == nullptr); }) > 3);
  const Planner planner(made);
  made = nullptr;
  CHECK(fail_each_allocation([&] { return dllm_step_begin(planner.get(), &input, &step); },
                             [&] {
                               CHECK(info_of(planner).step_open == 0);
                               CHECK(info_of(planner).stale == 1 && info_of(planner).step == 0);
                             }) > 3);
  CHECK(step.row_count == 10);
  CHECK(dllm_step_commit(planner.get()) == DLLM_OK);
  CHECK(fail_each_allocation([&] { return dllm_planner_clone(planner.get(), &made); },
                             [&] { CHECK(made == nullptr); }) > 3);
  const Planner copy(made);
  CHECK(fail_each_allocation(
            [&] { return dllm_planner_reshape(planner.get(), &large, 10); },
            [&] { CHECK(info_of(planner).rows == 10 && info_of(planner).stale == 0); }) > 0);
  CHECK(fail_each_allocation([&] { return dllm_planner_reset(copy.get(), &large); },
                             [&] { CHECK(info_of(copy).rows == 10 && info_of(copy).step == 1); }) >
        0);
  // More rows each time, as scratch memory stays.
  const std::vector<dllm_sums> sums(100 << static_cast<int>(failure), dllm_sums{1.0, 1.0, 1.0});
  std::vector<int32_t> selected(4);
  std::size_t count = 99;
  CHECK(fail_each_allocation(
            [&] { return dllm_select(sums.data(), sums.size(), 4, 2.0, selected.data(), &count); },
            [&] { CHECK(count == 99); }) > 0);
  CHECK(count == 4);
  std::vector<char> bytes(8192);
  std::size_t needed = 0;
  CHECK(fail_each_allocation(
            [&] { return dllm_planner_save(planner.get(), bytes.data(), bytes.size(), &needed); },
            [&] { CHECK(needed == 0); }) > 0);
  CHECK(dllm_planner_mark_stale(planner.get()) == DLLM_OK);
  if (failure == Failure::NoMemory)  // a runtime error in restore is a bad snapshot
    CHECK(fail_each_allocation(
              [&] { return dllm_planner_restore(planner.get(), bytes.data(), needed); },
              [&] { CHECK(info_of(planner).step == 1); }) > 0);
}

void steps_allocate_nothing() {
  const Planner planner = planner_of("balanced", shape_of(40, 60));
  dllm_step_input input = block_of(40, 60);
  dllm_step step{};
  step.size = sizeof step;
  for (int number = 0; number < 40; ++number) {
    if (number == 2) fails_in = 1;  // after the first step of each kind the next one would fail
    input.block_step = number;
    CHECK(dllm_step_begin(planner.get(), &input, &step) == DLLM_OK);
    CHECK(dllm_step_commit(planner.get()) == DLLM_OK);
  }
  CHECK(fails_in == 1);
  fails_in = 0;
}

void threads_have_planners_and_messages_of_their_own() {
  std::vector<std::thread> threads;
  std::atomic<int> done{0};
  for (int number = 0; number < 4; ++number)
    threads.emplace_back([number, &done] {
      CHECK(dllm_last_error()[0] == '\0');
      const Planner planner = planner_of("dual", shape_of(4 + number, 60));
      dllm_step step{};
      step.size = sizeof step;
      for (int i = 0; i < 200; ++i) {
        const dllm_step_input outside = block_of(0, 65 + number);
        CHECK(dllm_step_begin(planner.get(), &outside, &step) == DLLM_INVALID_ARGUMENT);
        const std::string got = "got [0, " + std::to_string(65 + number) + ")";
        CHECK(std::string(dllm_last_error()).find(got) != std::string::npos);
        dllm_step_input block = block_of(4 + number, 12 + number);
        block.block_step = i;
        CHECK(dllm_step_begin(planner.get(), &block, &step) == DLLM_OK);
        CHECK(step.row_count == (i == 0 ? 64 + number : 8));
        CHECK(dllm_step_commit(planner.get()) == DLLM_OK);
      }
      ++done;
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(done == 4);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc == 2 ? argv[1] : "";
  if (name == "memory") {
    allocations_fail();
    steps_allocate_nothing();
  } else if (name == "exceptions") {
    CHECK(dllm_policy_count() > 0);
    for (const Failure one : {Failure::Exception, Failure::Number}) {
      failure = one;
      allocations_fail();
    }
  } else if (name == "threads") {
    threads_have_planners_and_messages_of_their_own();
  } else {
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}
