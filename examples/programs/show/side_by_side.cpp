// SPDX-License-Identifier: Apache-2.0
#include "programs/show/side_by_side.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "programs/show/styled_text.hpp"

namespace programs {
namespace {

std::string number(const char* format, double value) {
  std::array<char, 64> buffer = {};
  std::snprintf(buffer.data(), buffer.size(), format, value);
  return buffer.data();
}

/// The glyphs of a style.
struct Glyphs {
  std::string masked, line_break, end, rule, bar;
  std::vector<std::string> levels;  // nothing to everything
};

const Glyphs& glyphs(bool unicode) {
  static const Glyphs fancy = {"·", "↵", "∎",
                               "─", "│", {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"}};
  static const Glyphs plain = {".", "\\", "$", "-", "|", {" ", ".", ":", "-", "=", "+", "*", "#"}};
  return unicode ? fancy : plain;
}

Ink ink_of(TokenState state) {
  switch (state) {
    case TokenState::Masked:
      return Ink::Faint;
    case TokenState::Provisional:
      return Ink::Provisional;
    case TokenState::Fresh:
      return Ink::Fresh;
    case TokenState::Committed:
      return Ink::Committed;
  }
  return Ink::Plain;
}

/// The answer as lines; `active` is the last line on which something is known.
struct Text {
  std::vector<Line> lines = {{}};
  std::size_t active = 0;
};

Text flow_text(const SideView& side, int width, const Glyphs& marks) {
  Text text;
  for (const TokenView& token : side.tokens) {
    const bool settled = token.state == TokenState::Fresh || token.state == TokenState::Committed;
    if (token.end && settled && side.finished) break;
    Line cells = inked(token.text, ink_of(token.state));
    if (token.state == TokenState::Masked)
      cells = {{marks.masked, Ink::Faint}};
    else if (token.end)
      cells = {{marks.end, settled ? Ink::Faint : Ink::Provisional}};
    else if (token.text == "\n")
      cells = {{marks.line_break, ink_of(token.state)}};
    const bool breaks = token.text == "\n" && settled && !token.end;
    // A line break is seen as a mark while it is news, and as what it does later on.
    if (breaks && token.state == TokenState::Committed) cells.clear();
    for (Cell& cell : cells) {
      if (text.lines.back().size() == static_cast<std::size_t>(width)) text.lines.emplace_back();
      text.lines.back().push_back(std::move(cell));
    }
    if (token.state != TokenState::Masked) text.active = text.lines.size() - 1;
    if (breaks) text.lines.emplace_back();
  }
  while (text.lines.size() > 1 && text.lines.back().empty()) text.lines.pop_back();
  text.active = std::min(text.active, text.lines.size() - 1);
  return text;
}

/// `count` lines of a text: all of it, or those up to a little behind the active one.
std::vector<Line> window(const Text& text, std::size_t count) {
  const std::size_t all = text.lines.size();
  const std::size_t last = all <= count ? all : std::clamp(text.active + 2, count, all);
  const std::size_t first = last - std::min(last, count);
  return {text.lines.begin() + static_cast<std::ptrdiff_t>(first),
          text.lines.begin() + static_cast<std::ptrdiff_t>(last)};
}

double mean(const std::vector<float>& shares, std::size_t begin, std::size_t end) {
  double sum = 0.0;
  for (std::size_t i = begin; i < end; ++i) sum += static_cast<double>(shares[i]);
  return end > begin ? sum / static_cast<double>(end - begin) : 0.0;
}

/// One cell for some neighbouring rows each, as high as their share of recomputed layers.
void append_shares(Line& line, const SideView& side, std::size_t begin, std::size_t end,
                   std::size_t cells, Ink ink, const Glyphs& marks) {
  for (std::size_t i = 0; i < cells; ++i) {
    const std::size_t from = begin + (end - begin) * i / cells;
    const std::size_t to = std::max(begin + (end - begin) * (i + 1) / cells, from + 1);
    const double share = mean(side.recomputed, from, std::min(to, end));
    // Any work at all is seen.
    const auto level = static_cast<std::size_t>(
        std::ceil(std::clamp(share, 0.0, 1.0) * static_cast<double>(marks.levels.size() - 1)));
    line.push_back({marks.levels[level], ink});
  }
}

Line work_line(const SideView& side, int width, const Glyphs& marks) {
  if (side.finished)
    return inked(number("%.0f%% of rows and layers recomputed", 100.0 * side.work), Ink::Done);
  const std::string percent =
      number("%4.0f%%", 100.0 * mean(side.recomputed, 0, side.recomputed.size()));
  const auto cells = static_cast<std::size_t>(width) - percent.size() - 1;
  const auto prompt = static_cast<std::size_t>(side.prompt);
  std::size_t first = 0;
  Line line;
  if (prompt > 0 && !side.recomputed.empty()) {
    first = std::clamp<std::size_t>(cells * prompt / side.recomputed.size(), 1, cells - 1);
    append_shares(line, side, 0, prompt, first, Ink::Prompt, marks);
  }
  line.push_back({marks.bar, Ink::Faint});
  append_shares(line, side, prompt, side.recomputed.size(), cells - first, Ink::Answer, marks);
  append(line, inked(percent, Ink::Plain));
  return line;
}

Line clock_line(const SideView& side, int width) {
  const std::string steps =
      side.finished ? std::to_string(side.step) + " steps"
                    : "step " + std::to_string(side.step) + " of " + std::to_string(side.steps);
  const std::string time = number(side.finished ? "done in %.2f s" : "%.2f s", side.seconds);
  const Ink ink = side.finished ? Ink::Done : Ink::Title;
  Line line = inked(steps, Ink::Plain);
  line.resize(std::max(line.size(), static_cast<std::size_t>(width) - time.size()), {" "});
  append(line, inked(time, ink));
  return line;
}

Line legend(const Glyphs& marks) {
  Line line;
  const auto entry = [&](const std::string& sample, Ink ink, const std::string& words) {
    append(line, inked(sample, ink));
    append(line, inked(words + "  ", Ink::Faint));
  };
  entry(marks.masked, Ink::Faint, " masked");
  entry("abc", Ink::Provisional, " predicted");
  entry("abc", Ink::Fresh, " just committed");
  entry("abc", Ink::Committed, " committed");
  entry(marks.end, Ink::Faint, " end of text");
  return line;
}

Line work_legend(const Glyphs& marks) {
  Line line = inked("work of a step: ", Ink::Faint);
  append(line, inked("prompt", Ink::Prompt));
  append(line, {{marks.bar, Ink::Faint}});
  append(line, inked("answer", Ink::Answer));
  append(line, inked(" rows, height: share of layers recomputed", Ink::Faint));
  return line;
}

}  // namespace

int column_width(int columns) {
  constexpr int widest = 60;
  return std::min((columns - 4) / 2, widest);
}

Frame render_frame(const SideView& left, const SideView& right, const FrameStyle& style) {
  const int width = column_width(style.columns);
  const Glyphs& marks = glyphs(style.unicode);
  const Text texts[] = {flow_text(left, width, marks), flow_text(right, width, marks)};

  constexpr int other_lines = 8;  // titles, two rules, work, clock, three of explanation
  const int room = std::max(style.rows - 1 - other_lines, 1);
  const auto longest = std::max(texts[0].lines.size(), texts[1].lines.size());
  const int text_lines = std::min(
      std::max(static_cast<int>(std::min<std::size_t>(longest, 1'000'000)), style.text_lines),
      room);
  const std::vector<Line> shown[] = {window(texts[0], static_cast<std::size_t>(text_lines)),
                                     window(texts[1], static_cast<std::size_t>(text_lines))};

  Frame frame{.text_lines = text_lines};
  const auto add = [&](Line a, const Line& b) {
    if (a.size() > static_cast<std::size_t>(width)) a.resize(static_cast<std::size_t>(width));
    a.resize(static_cast<std::size_t>(width) + 2, {" "});
    a.insert(a.begin(), {" "});
    append(a, {b.begin(), b.begin() + std::min<std::ptrdiff_t>(std::ssize(b), width)});
    frame.lines.push_back(to_text(a, style.colour));
  };
  Line rule;
  for (int i = 0; i < width; ++i) rule.push_back({marks.rule, Ink::Faint});

  add(inked(left.title, Ink::Title), inked(right.title, Ink::Title));
  add(rule, rule);
  for (std::size_t i = 0; i < static_cast<std::size_t>(text_lines); ++i)
    add(i < shown[0].size() ? shown[0][i] : Line{}, i < shown[1].size() ? shown[1][i] : Line{});
  add(rule, rule);
  add(work_line(left, width, marks), work_line(right, width, marks));
  add(clock_line(left, width), clock_line(right, width));
  for (Line line : {legend(marks), work_legend(marks),
                    inked("Both sides take turns; each clock counts its own side's seconds alone.",
                          Ink::Faint)}) {
    line.insert(line.begin(), {" "});
    frame.lines.push_back(to_text(line, style.colour));
  }
  return frame;
}

std::vector<std::string> render_columns(const std::string& left, const std::string& right,
                                        int width) {
  const auto a = wrap_text(left, width), b = wrap_text(right, width);
  std::vector<std::string> lines;
  for (std::size_t i = 0; i < std::max(a.size(), b.size()); ++i) {
    std::string line = i < a.size() ? a[i] : "";
    const auto used = characters(line).size();
    line.append(static_cast<std::size_t>(width) + 2 - used, ' ');
    if (i < b.size()) line += b[i];
    line.erase(line.find_last_not_of(' ') + 1);
    lines.push_back(" " + line);
  }
  return lines;
}

}  // namespace programs
