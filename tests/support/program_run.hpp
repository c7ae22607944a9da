// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/wait.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

namespace dllm_cache::testing {

/// How a program ended and what it said.
struct Outcome {
  int code = -1;
  std::string output;  // standard output and error together
};

/// Runs a program as a shell would, with nothing to read.
inline Outcome run_program(const std::string& program, const std::string& arguments = "") {
  const std::string command = program + " " + arguments + " 2>&1 </dev/null";
  Outcome outcome;
  FILE* pipe = popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  char buffer[4096];
  for (std::size_t got = 0; (got = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;)
    outcome.output.append(buffer, got);
  const int status = pclose(pipe);
  outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return outcome;
}

/// Checks that program `name` ended with `code` and one line of its own that holds `part`.
inline void check_refusal(const Outcome& outcome, const std::string& name, int code,
                          const std::string& part) {
  INFO(outcome.output);
  CHECK(outcome.code == code);
  CHECK(outcome.output.find(part) != std::string::npos);
  CHECK(outcome.output.rfind(name + ": ", 0) == 0);
  CHECK(std::count(outcome.output.begin(), outcome.output.end(), '\n') == 1);
}

/// The JSON in a file.
inline nlohmann::json read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  return nlohmann::json::parse(file);
}

}  // namespace dllm_cache::testing
