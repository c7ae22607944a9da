// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <cstdio>
#include <string>

namespace programs {

/// A progress bar on stderr, drawn only when that is a terminal and only when it has moved.
class Progress {
 public:
  explicit Progress(bool wanted) : m_shown(wanted && isatty(STDERR_FILENO) != 0) {}
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() {
    if (m_shown && m_drawn >= 0) std::fputs("\r\033[K", stderr);
  }

  /// `done` of `all` units, and a few words behind the bar.
  void show(long done, long all, const std::string& words) {
    if (!m_shown) return;
    constexpr long width = 40;
    const long filled = all > 0 ? done * width / all : width;
    std::string bar(static_cast<std::size_t>(filled), '#');
    bar.resize(width, '.');
    std::fprintf(stderr, "\r[%s] %ld/%ld %s\033[K", bar.c_str(), done, all, words.c_str());
    std::fflush(stderr);
    m_drawn = filled;
  }

 private:
  bool m_shown;
  long m_drawn = -1;
};

}  // namespace programs
