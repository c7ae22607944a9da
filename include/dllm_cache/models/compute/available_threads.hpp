// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace dllm_cache::inline v0_1::models {

namespace detail {

/// The whole number that `text` begins with, and `text` without it and the blanks around; none
/// where it begins with something else.
[[nodiscard]] inline std::optional<long long> take_number(std::string_view& text) {
  const auto skip_blanks = [&] {
    text.remove_prefix(std::min(text.find_first_not_of(" \t\r\n"), text.size()));
  };
  skip_blanks();
  long long number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  skip_blanks();
  return number;
}

/// Processors of a quota of Linux's control groups: "QUOTA PERIOD" in microseconds, as cpu.max has
/// it; none without a limit ("max", -1) and for texts that say something else.
[[nodiscard]] inline std::optional<double> processors_of_quota(std::string_view text) {
  const auto quota = take_number(text);
  const auto period = quota ? take_number(text) : std::nullopt;
  if (!period || *quota <= 0 || *period <= 0 || !text.empty()) return std::nullopt;
  return static_cast<double>(*quota) / static_cast<double>(*period);
}

/// Threads that a text like that of OMP_NUM_THREADS asks for, "4" or of nested regions "4,2"; none
/// for texts that say something else.
[[nodiscard]] inline std::optional<int> threads_of_setting(std::string_view text) {
  const auto number = take_number(text);
  if (!number || *number < 1 || *number > std::numeric_limits<int>::max() ||
      !(text.empty() || text.front() == ','))
    return std::nullopt;
  return static_cast<int>(*number);
}

/// Smallest quota in processors along the folders of this process's control groups; `groups` is
/// /proc/self/cgroup, `mounted` where the groups are: /sys/fs/cgroup. None where there is no limit.
[[nodiscard]] inline std::optional<double> quota_of_groups(const std::string& groups,
                                                           const std::string& mounted) {
  std::optional<double> least;
  const auto text_of = [](const std::string& file) {
    std::string text;
    std::ifstream stream(file);
    std::getline(stream, text);
    return text;
  };
  const auto take = [&](const std::string& quota) {
    if (const auto found = processors_of_quota(quota))
      least = std::min(*found, least.value_or(*found));
  };
  std::ifstream stream(groups);
  for (std::string line; std::getline(stream, line);) {  // NUMBER:CONTROLLERS:/FOLDER
    const auto first = line.find(':');
    const auto second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool unified = controllers == ",,";
    if (!unified && controllers.find(",cpu,") == std::string::npos) continue;
    // A container may see its own group as the root: what is not there is skipped.
    std::string folder = line.substr(second + 1);
    for (;;) {
      if (folder == "/") folder.clear();
      for (const char* root : {"", "/unified", "/cpu", "/cpu,cpuacct"}) {
        const std::string here = mounted + root + folder;
        if (unified)
          take(text_of(here + "/cpu.max"));
        else
          take(text_of(here + "/cpu.cfs_quota_us") + " " + text_of(here + "/cpu.cfs_period_us"));
      }
      if (folder.empty()) break;
      folder.erase(folder.rfind('/') == std::string::npos ? 0 : folder.rfind('/'));
    }
  }
  return least;
}

}  // namespace detail

/// Threads that are worth starting here, at least 1: OMP_NUM_THREADS where it is set, else the
/// processors that this process may run on, or what its control groups on Linux leave of them,
/// rounded up. 1 when built without OpenMP. Reads files at every call; thread-safe while nobody
/// changes the environment.
[[nodiscard]] inline int available_threads() {
#ifdef _OPENMP
  if (const char* const setting = std::getenv("OMP_NUM_THREADS"))
    if (const auto asked = detail::threads_of_setting(setting)) return *asked;
  const int processors = std::max(omp_get_num_procs(), 1);
  const auto quota = detail::quota_of_groups("/proc/self/cgroup", "/sys/fs/cgroup");
  return quota && *quota < processors ? std::max(static_cast<int>(std::ceil(*quota)), 1)
                                      : processors;
#else
  return 1;
#endif
}

}  // namespace dllm_cache::inline v0_1::models
