// SPDX-License-Identifier: Apache-2.0
// How many threads there are by default, and what is worth them.
#include <catch2/catch.hpp>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "dllm_cache/models/compute/linear.hpp"
#include "dllm_cache/models/compute/row_operations.hpp"
#include "tests/models/all_options.hpp"
#include "tests/support/random_numbers.hpp"
#include "tests/support/temporary_folder.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;
namespace detail = models::detail;

namespace {

// Threads that tasks of so many operations ran on, as the team numbers them.
std::set<int> threads_of(models::ThreadTeam& team, double operations) {
  std::vector<int> ran(64, -1);
  team.for_each(64, operations, [&](Index task, models::Scratch& scratch) {
    ran[static_cast<std::size_t>(task)] = scratch.thread;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // long enough for all to come
  });
  return {ran.begin(), ran.end()};
}

}  // namespace

TEST_CASE("Threads: small work runs on the calling thread alone", "[models][threads]") {
  for (const int threads : {1, 2, 7}) {
    models::ThreadTeam team(threads);
    CHECK(team.threads_for(0.0) == 1);
    CHECK(team.threads_for(1e6) == 1);
    CHECK(team.threads_for(1e12) == threads);
    std::set<std::thread::id> ran;
    team.for_each(8, 1e6, [&](Index, models::Scratch&) { ran.insert(std::this_thread::get_id()); });
    CHECK(ran == std::set<std::thread::id>{std::this_thread::get_id()});
    CHECK(threads_of(team, 1e6) == std::set<int>{0});
  }
}

#ifdef _OPENMP
TEST_CASE("Threads: large work runs on all threads of the team", "[models][threads]") {
  models::ThreadTeam team(2);
  CHECK(threads_of(team, 1e12) == std::set<int>{0, 1});
}
#endif

TEST_CASE("Threads: an exception of a task reaches the caller from one thread and from many",
          "[models][threads]") {
  models::ThreadTeam team(2);
  for (const double operations : {1e3, 1e12})
    CHECK_THROWS_AS(team.for_each(8, operations,
                                  [](Index task, models::Scratch&) {
                                    if (task == 5) throw std::runtime_error("task 5");
                                  }),
                    std::runtime_error);
}

TEST_CASE("Threads: reading the weights of few rows counts as work", "[models][threads]") {
  CHECK(models::product_effort(1, 1024, 1024) == models::product_effort(16, 1024, 1024));
  CHECK(models::product_effort(64, 10, 20) == 2.0 * 64 * 10 * 20);
  const models::ThreadTeam team(2);
  CHECK(team.threads_for(models::product_effort(1, 1024, 1024)) == 2);
  CHECK(team.threads_for(models::product_effort(88, 64, 160)) == 1);
}

TEST_CASE("Threads: row operations give the same bits with any number of threads",
          "[models][threads]") {
  // On both sides of what is worth threads.
  for (const Index rows : {3, 700}) {
    constexpr Index width = 512;
    RandomNumbers random(11);
    const std::vector<float> x = random.vector<float>(rows * width);
    models::RmsNorm norm{.weight = random.vector<float>(width), .bias = {}};
    std::vector<float> alone(x.size()), together(x.size());
    models::ThreadTeam one(1), three(3);
    const auto from = dense_view(x.data(), rows, width);
    norm.apply(from, dense_view(alone.data(), rows, width), one);
    norm.apply(from, dense_view(together.data(), rows, width), three);
    CHECK((alone == together));
    models::gate_silu(from, from, dense_view(alone.data(), rows, width), one);
    models::gate_silu(from, from, dense_view(together.data(), rows, width), three);
    CHECK((alone == together));
  }
}

TEST_CASE("Threads: small products give the same bits with any number of threads",
          "[models][threads]") {
  RandomNumbers random(12);
  constexpr Index rows = 40, inputs = 64, outputs = 96;
  const auto weights = random.vector<float>(outputs * inputs);
  const auto x = random.vector<float>(models::Products::padded_rows(rows) * inputs);
  const models::Tensor tensor{.name = "weight",
                              .shape = {outputs, inputs},
                              .bytes = std::as_bytes(std::span<const float>(weights))};
  for (const models::ComputeOptions& options : all_options()) {
    const models::Linear linear(tensor, nullptr, options);
    std::vector<std::vector<float>> found;
    for (const int threads : {1, 2}) {
      models::ThreadTeam team(threads);
      models::Products products(team);
      auto& y = found.emplace_back(static_cast<std::size_t>(rows * outputs));
      products.apply(dense_view(x.data(), rows, inputs),
                     {{&linear, dense_view(y.data(), rows, outputs)}});
    }
    CHECK((found[0] == found[1]));
  }
}

TEST_CASE("Threads: a quota is read as processors, and anything else as none",
          "[models][threads]") {
  CHECK(detail::processors_of_quota("150000 100000\n") == 1.5);
  CHECK(detail::processors_of_quota("50000\t100000") == 0.5);
  for (const char* text :
       {"", "max 100000\n", "-1 100000", "0 100000", "100000", "100000 0", "100000 -5",
        "1e5 100000", "100000 100000 7", "garbage", "99999999999999999999 100000"})
    CHECK(detail::processors_of_quota(text) == std::nullopt);
}

TEST_CASE("Threads: OMP_NUM_THREADS is a number or a list whose first counts",
          "[models][threads]") {
  CHECK(detail::threads_of_setting("4") == 4);
  CHECK(detail::threads_of_setting(" 3 ,2") == 3);
  for (const char* text : {"", "0", "-2", "four", "4x", ",4", "99999999999"})
    CHECK(detail::threads_of_setting(text) == std::nullopt);
}

TEST_CASE("Threads: the smallest quota of a control group and those above it counts",
          "[models][threads]") {
  const TemporaryFolder folder;
  const auto put = [&](const std::string& where, const std::string& file, const char* text) {
    std::filesystem::create_directories(folder / where);
    return folder.write(where.empty() ? file : where + "/" + file, text).string();
  };
  const std::string root = folder.path().string();
  const std::string groups = put("", "cgroup", "4:memory:/a\n0::/outer/middle/inner\n");
  CHECK(detail::quota_of_groups(groups, root) == std::nullopt);
  put("outer/middle/inner", "cpu.max", "max 100000\n");
  CHECK(detail::quota_of_groups(groups, root) == std::nullopt);
  put("outer", "cpu.max", "250000 100000\n");
  CHECK(detail::quota_of_groups(groups, root) == 2.5);
  put("outer/middle", "cpu.max", "300000 100000\n");
  CHECK(detail::quota_of_groups(groups, root) == 2.5);
  put("", "cpu.max", "150000 100000\n");  // of a container whose own group is the root
  CHECK(detail::quota_of_groups(groups, root) == 1.5);

  const std::string first = put("", "cgroup1", "3:cpuset:/x\n2:cpu,cpuacct:/box\n1:memory:/box\n");
  put("cpu,cpuacct/box", "cpu.cfs_quota_us", "-1\n");
  put("cpu,cpuacct/box", "cpu.cfs_period_us", "100000\n");
  CHECK(detail::quota_of_groups(first, root) == std::nullopt);
  put("cpu,cpuacct/box", "cpu.cfs_quota_us", "75000\n");
  CHECK(detail::quota_of_groups(first, root) == 0.75);

  CHECK(detail::quota_of_groups(root + "/missing", root) == std::nullopt);
  CHECK(detail::quota_of_groups(put("", "bad", "no colons\n1:cpu\n0::\n0::a\n"), root + "/none") ==
        std::nullopt);
}

#ifdef _OPENMP
TEST_CASE("Threads: by default there is at least one, and as many as OMP_NUM_THREADS says",
          "[models][threads]") {
  const char* const before = std::getenv("OMP_NUM_THREADS");
  const std::string kept = before != nullptr ? before : "";
  unsetenv("OMP_NUM_THREADS");
  CHECK(models::available_threads() >= 1);
  CHECK(models::available_threads() <= omp_get_num_procs());
  setenv("OMP_NUM_THREADS", "5,2", 1);
  CHECK(models::available_threads() == 5);
  if (before != nullptr)
    setenv("OMP_NUM_THREADS", kept.c_str(), 1);
  else
    unsetenv("OMP_NUM_THREADS");
}
#endif
