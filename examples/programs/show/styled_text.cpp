// SPDX-License-Identifier: Apache-2.0
#include "programs/show/styled_text.hpp"

#include <algorithm>
#include <utility>

namespace programs {
namespace {

/// Numbers of an SGR escape sequence; empty: none needed.
const char* codes(Ink ink, bool colour) {
  switch (ink) {
    case Ink::Plain:
      return "";
    case Ink::Faint:
      return colour ? "90" : "2";
    case Ink::Provisional:
      return colour ? "2;36" : "2";
    case Ink::Fresh:
      return colour ? "1;30;42" : "7";
    case Ink::Committed:
    case Ink::Title:
      return "1";
    case Ink::Prompt:
      return colour ? "36" : "";
    case Ink::Answer:
      return colour ? "33" : "";
    case Ink::Done:
      return colour ? "1;32" : "1";
  }
  return "";
}

}  // namespace

std::vector<std::string> characters(const std::string& text) {
  std::vector<std::string> all;
  for (std::size_t at = 0; at < text.size();) {
    const auto lead = static_cast<unsigned char>(text[at]);
    const std::size_t wanted = lead < 0x80   ? 1
                               : lead < 0xC2 ? 0
                               : lead < 0xE0 ? 2
                               : lead < 0xF0 ? 3
                               : lead < 0xF5 ? 4
                                             : 0;
    std::size_t bytes = 1;
    while (bytes < wanted && at + bytes < text.size() &&
           (static_cast<unsigned char>(text[at + bytes]) & 0xC0U) == 0x80U)
      ++bytes;
    const bool control =
        lead < 0x20 || lead == 0x7F ||
        (lead == 0xC2 && bytes == 2 && static_cast<unsigned char>(text[at + 1]) < 0xA0);
    all.push_back(bytes == wanted && !control ? text.substr(at, bytes) : "?");
    at += bytes;
  }
  return all;
}

Line inked(const std::string& text, Ink ink) {
  Line line;
  for (std::string& one : characters(text)) line.push_back({std::move(one), ink});
  return line;
}

void append(Line& to, const Line& more) { to.insert(to.end(), more.begin(), more.end()); }

std::string to_text(const Line& line, bool colour) {
  std::string text;
  Ink last = Ink::Plain;
  for (const Cell& cell : line) {
    if (cell.ink != last) {
      const std::string wanted = codes(cell.ink, colour);
      if (*codes(last, colour) != '\0') text += "\033[0m";
      if (!wanted.empty()) text += "\033[" + wanted + "m";
      last = cell.ink;
    }
    text += cell.glyph;
  }
  if (*codes(last, colour) != '\0') text += "\033[0m";
  return text;
}

std::vector<std::string> wrap_text(const std::string& text, int width) {
  std::vector<std::string> lines;
  std::size_t begin = 0;
  while (begin < text.size()) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    lines.emplace_back();
    int used = 0;
    for (const std::string& one : characters(text.substr(begin, end - begin))) {
      if (used == width) {
        lines.emplace_back();
        used = 0;
      }
      lines.back() += one;
      ++used;
    }
    begin = end + 1;
  }
  return lines;
}

}  // namespace programs
