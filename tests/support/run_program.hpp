// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/wait.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdio>
#include <string>

namespace dllm_cache::testing {

/// What a program left behind.
struct Outcome {
  int code = -1;
  std::string output;  // standard output and error together
};

/// Runs a shell command line without a terminal.
inline Outcome run_program(const std::string& command) {
  Outcome outcome;
  FILE* pipe = popen((command + " 2>&1 </dev/null").c_str(), "r");
  REQUIRE(pipe != nullptr);
  char buffer[4096];
  for (std::size_t got = 0; (got = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;)
    outcome.output.append(buffer, got);
  const int status = pclose(pipe);
  outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return outcome;
}

/// Checks an exit code and that the output is one line of `program` that holds `part`.
inline void check_refused(const Outcome& outcome, const std::string& program, int code,
                          const std::string& part) {
  INFO(outcome.output);
  CHECK(outcome.code == code);
  CHECK(outcome.output.find(part) != std::string::npos);
  CHECK(outcome.output.rfind(program + ": ", 0) == 0);
  CHECK(std::count(outcome.output.begin(), outcome.output.end(), '\n') == 1);
}

}  // namespace dllm_cache::testing
