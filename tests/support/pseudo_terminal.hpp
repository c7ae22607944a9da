// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <string>
#include <system_error>

namespace dllm_cache::testing {

/// A shell command line running in a terminal of its own.
class PseudoTerminal {
 public:
  /// Starts the command; throws std::system_error when there is no terminal to be had.
  PseudoTerminal(const std::string& command, unsigned short columns, unsigned short rows) {
    winsize size = {};
    size.ws_col = columns;
    size.ws_row = rows;
    m_child = ::forkpty(&m_terminal, nullptr, nullptr, &size);
    if (m_child < 0) throw std::system_error(errno, std::generic_category(), "forkpty");
    if (m_child > 0) return;
    ::execl("/bin/sh", "sh", "-c", ("exec env " + command).c_str(), nullptr);
    ::_exit(127);
  }
  PseudoTerminal(const PseudoTerminal&) = delete;
  PseudoTerminal& operator=(const PseudoTerminal&) = delete;
  ~PseudoTerminal() {
    if (m_child > 0) {
      ::kill(m_child, SIGKILL);
      ::waitpid(m_child, nullptr, 0);
    }
    ::close(m_terminal);
  }

  /// Reads until `part` has been written; false: the command ended before.
  bool read_until(const std::string& part) {
    while (m_output.find(part) == std::string::npos)
      if (!read_some()) return false;
    return true;
  }
  /// Types a key.
  void type(char key) const { static_cast<void>(::write(m_terminal, &key, 1) == 1); }
  /// Waits for the end; returns what waitpid says.
  int finish() {
    while (read_some()) {
    }
    int status = -1;
    ::waitpid(m_child, &status, 0);
    m_child = -1;
    return status;
  }
  /// All that has been read.
  [[nodiscard]] const std::string& output() const { return m_output; }

 private:
  bool read_some() {
    char buffer[4096];
    const ::ssize_t got = ::read(m_terminal, buffer, sizeof buffer);  // an error at the end
    if (got > 0) m_output.append(buffer, static_cast<std::size_t>(got));
    return got > 0;
  }

  int m_terminal = -1;
  ::pid_t m_child = -1;
  std::string m_output;
};

}  // namespace dllm_cache::testing
