// SPDX-License-Identifier: Apache-2.0
#include "programs/show/terminal.hpp"

#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace programs {
namespace {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool locale_is_utf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    std::string value = environment(name);
    if (value.empty()) continue;
    std::transform(value.begin(), value.end(), value.begin(),
                   [](unsigned char letter) { return static_cast<char>(std::tolower(letter)); });
    return value.find("utf-8") != std::string::npos || value.find("utf8") != std::string::npos;
  }
  return false;
}

void write_all(std::string_view text) {
  while (!text.empty()) {
    const ::ssize_t written = ::write(STDOUT_FILENO, text.data(), text.size());
    if (written < 0 && errno != EINTR) return;  // the terminal is gone; the program goes on
    if (written > 0) text.remove_prefix(static_cast<std::size_t>(written));
  }
}

constexpr std::string_view show_cursor = "\033[?25h\033[0m";
constexpr std::string_view hide_cursor = "\033[?25l";
constexpr std::array<int, 4> ending_signals = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};

// What the signal handler puts back; plain memory, because a handler may touch nothing else.
termios saved_keys;
bool keys_saved = false;
std::array<struct sigaction, ending_signals.size()> saved_actions;

void restore_terminal() {  // only what a signal handler may call
  write_all(show_cursor);
  if (keys_saved) ::tcsetattr(STDIN_FILENO, TCSANOW, &saved_keys);
}

extern "C" void end_on_signal(int signal) {
  restore_terminal();
  write_all("\n");
  std::signal(signal, SIG_DFL);
  ::raise(signal);
}

void hide_keys() {
  // A job in the background would be stopped by tcsetattr.
  keys_saved = ::isatty(STDIN_FILENO) != 0 && ::tcgetpgrp(STDIN_FILENO) == ::getpgrp() &&
               ::tcgetattr(STDIN_FILENO, &saved_keys) == 0;
  if (!keys_saved) return;
  termios quiet = saved_keys;
  quiet.c_lflag &= ~static_cast<tcflag_t>(ECHO);
  ::tcsetattr(STDIN_FILENO, TCSANOW, &quiet);
}

}  // namespace

TerminalTraits detect_terminal(bool colour_wanted) {
  TerminalTraits traits;
  const std::string term = environment("TERM");
  const bool is_terminal = ::isatty(STDOUT_FILENO) != 0;
  traits.interactive = is_terminal && !term.empty() && term != "dumb";
  winsize size = {};
  if (is_terminal && ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    traits.columns = size.ws_col;
    traits.rows = size.ws_row > 0 ? size.ws_row : traits.rows;
  }
  traits.colour = colour_wanted && traits.interactive && environment("NO_COLOR").empty();
  traits.unicode = locale_is_utf8();
  return traits;
}

LiveScreen::LiveScreen() {
  std::fflush(stdout);
  hide_keys();
  struct sigaction action = {};
  action.sa_handler = end_on_signal;
  for (std::size_t i = 0; i < ending_signals.size(); ++i) {
    ::sigaction(ending_signals[i], nullptr, &saved_actions[i]);
    // What is ignored (nohup) stays ignored.
    if (saved_actions[i].sa_handler != SIG_IGN) ::sigaction(ending_signals[i], &action, nullptr);
  }
  write_all(hide_cursor);
}

LiveScreen::~LiveScreen() {
  restore_terminal();
  for (std::size_t i = 0; i < ending_signals.size(); ++i)
    ::sigaction(ending_signals[i], &saved_actions[i], nullptr);
}

void LiveScreen::draw(const std::vector<std::string>& lines) {
  std::string frame;
  if (m_lines > 0) frame = "\033[" + std::to_string(m_lines) + "A\r";
  for (const std::string& line : lines) frame += line + "\033[K\n";
  if (lines.size() < m_lines) frame += "\033[J";
  m_lines = lines.size();
  write_all(frame);  // in one piece, so that it does not flicker
}

void LiveScreen::clear() {
  write_all("\033[H\033[2J");
  m_lines = 0;
}

}  // namespace programs
