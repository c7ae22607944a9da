// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

namespace programs {

/// What a user should know about a run that went through: told in one line each on stderr, with
/// --quiet too, and kept for JSON.
class Warnings {
 public:
  /// `program` stands before every line.
  explicit Warnings(std::string program) : m_program(std::move(program)) {}

  /// Says it, once however often it is given.
  void say(std::string text) {
    for (char& letter : text)
      if (letter == '\n') letter = ' ';
    if (std::find(m_said.begin(), m_said.end(), text) != m_said.end()) return;
    std::fprintf(stderr, "%s: warning: %s\n", m_program.c_str(), text.c_str());
    m_said.push_back(std::move(text));
  }
  /// Everything said so far.
  [[nodiscard]] const std::vector<std::string>& said() const { return m_said; }

 private:
  std::string m_program;
  std::vector<std::string> m_said;
};

}  // namespace programs
