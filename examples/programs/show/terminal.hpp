// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

namespace programs {

/// What standard output can show.
struct TerminalTraits {
  bool interactive = false;  ///< A terminal with a cursor that can be moved.
  int columns = 80;
  int rows = 24;
  bool colour = false;
  bool unicode = false;
};

/// Looks at standard output and the environment: TERM=dumb cannot move its cursor, NO_COLOR wants
/// no colours, LC_ALL, LC_CTYPE or LANG say whether text is UTF-8.
[[nodiscard]] TerminalTraits detect_terminal(bool colour_wanted);

/// Draws frames over each other at the cursor of an interactive standard output.
///
/// The cursor is hidden and typed keys are not shown meanwhile; both come back when the object goes
/// and when the program is ended by a signal (Ctrl-C). One at a time.
class LiveScreen {
 public:
  LiveScreen();
  LiveScreen(const LiveScreen&) = delete;
  LiveScreen& operator=(const LiveScreen&) = delete;
  ~LiveScreen();

  /// Replaces the frame before; fewer lines than the terminal has rows, none wider than it.
  void draw(const std::vector<std::string>& lines);

  /// Empties the whole terminal, for when its size has changed: the next frame begins at the top.
  void clear();

 private:
  std::size_t m_lines = 0;  // of the frame on the screen, whose end the cursor stands at
};

}  // namespace programs
