// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

namespace programs {

/// What a character of a frame stands for; decides how it looks.
enum class Ink { Plain, Faint, Provisional, Fresh, Committed, Title, Prompt, Answer, Done };

/// One character of a line.
struct Cell {
  std::string glyph;
  Ink ink = Ink::Plain;
};
using Line = std::vector<Cell>;

/// Characters of UTF-8 text; bytes that could move a terminal's cursor, or are no text, become `?`.
[[nodiscard]] std::vector<std::string> characters(const std::string& text);

/// A line of one ink.
[[nodiscard]] Line inked(const std::string& text, Ink ink);

/// Adds `more` at the end of a line.
void append(Line& to, const Line& more);

/// The line with escape sequences (SGR); without colour only brightness and reversal tell inks
/// apart.
[[nodiscard]] std::string to_text(const Line& line, bool colour);

/// Lines of a text, cut at `width` characters; see characters().
[[nodiscard]] std::vector<std::string> wrap_text(const std::string& text, int width);

}  // namespace programs
