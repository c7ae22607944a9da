// SPDX-License-Identifier: Apache-2.0
// dllm-demo as a user runs it, in a terminal and without one, and the frames that it draws.
#include <catch2/catch.hpp>
#include <set>
#include <string>
#include <vector>

#include "programs/measure/comparison.hpp"
#include "programs/show/side_by_side.hpp"
#include "programs/show/styled_text.hpp"
#include "tests/support/program_run.hpp"
#include "tests/support/pseudo_terminal.hpp"

using namespace programs;
using dllm_cache::testing::Outcome;
using dllm_cache::testing::PseudoTerminal;
using dllm_cache::testing::run_program;

namespace {

const std::string demo = DLLM_DEMO " --model " DLLM_RECORDS "/model --threads 1 ";
const std::string question = demo + "--prompt '>get a' --gen-length 16 --block-length 8 ";

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

bool shows_cursor_again(const std::string& output) {
  const std::size_t hidden = output.rfind("\033[?25l");
  return hidden != std::string::npos && contains(output.substr(hidden), "\033[?25h");
}

/// A line without its escape sequences.
std::string plain(const std::string& line) {
  std::string text;
  for (std::size_t at = 0; at < line.size(); ++at) {
    if (line[at] == '\033')
      at = line.find('m', at);
    else
      text += line[at];
  }
  return text;
}

/// The escape sequence that the first `token` of a line is under.
std::string look_of(const std::string& line, const std::string& token) {
  std::string look;
  for (std::size_t at = 0; at < line.size(); ++at) {
    if (line[at] == '\033') {
      const std::size_t end = line.find('m', at);
      look = line.substr(at, end - at);
      at = end;
    } else if (line.compare(at, token.size(), token) == 0) {
      return look;
    }
  }
  return "not there";
}

/// An answer with one token in each state, then `rest` masked ones.
SideView side(std::size_t rest = 20) {
  SideView view{.title = "a title",
                .tokens = {{.text = "c", .state = TokenState::Committed},
                           {.text = "f", .state = TokenState::Fresh},
                           {.text = "p", .state = TokenState::Provisional}},
                .prompt = 30,
                .step = 3,
                .steps = 23,
                .seconds = 1.5};
  view.tokens.resize(3 + rest);
  view.recomputed.assign(30 + view.tokens.size(), 0.5F);
  return view;
}

/// All lines of a frame without escape sequences.
std::string joined(const Frame& frame) {
  std::string all;
  for (const std::string& line : frame.lines) all += plain(line) + "\n";
  return all;
}

}  // namespace

TEST_CASE("dllm-demo: piped output has no escape codes and says whether tokens are equal",
          "[programs]") {
  const Outcome same = run_program(question + "--policy none");
  CHECK(same.code == 0);
  CHECK_FALSE(contains(same.output, "\033"));
  CHECK_FALSE(contains(same.output, "\r"));
  CHECK(contains(same.output, "Tokens: all equal (16 of 16)"));
  CHECK(contains(same.output, ">get a"));
  CHECK(contains(same.output, "layers: attn, FFN"));
  // 22 rows, 16 steps, 6 layers.
  CHECK(contains(same.output, "2,112"));
  const Outcome cached = run_program("FORCE_COLOR=1 " + question);
  CHECK(cached.code == 0);
  CHECK_FALSE(contains(cached.output, "\033"));
  CHECK(contains(cached.output, "Tokens: "));
  CHECK(contains(cached.output, "fewer"));
}

TEST_CASE("dllm-demo: a terminal gets frames, and its cursor back", "[programs]") {
  PseudoTerminal terminal("TERM=xterm LC_ALL=C.UTF-8 NO_COLOR= " + question, 80, 30);
  CHECK(WEXITSTATUS(terminal.finish()) == 0);
  const std::string& output = terminal.output();
  CHECK(contains(output, "step 0 of 16"));
  CHECK(contains(output, "\033[90m"));
  CHECK(contains(output, "done in "));
  CHECK(contains(output, "Tokens: "));
  CHECK(shows_cursor_again(output));
}

TEST_CASE("dllm-demo: without colours it draws in brightness alone", "[programs]") {
  for (const std::string& asked :
       {std::string("NO_COLOR=1 ") + question, question + "--no-color"}) {
    PseudoTerminal terminal("TERM=xterm LC_ALL=C " + asked, 80, 30);
    CHECK(WEXITSTATUS(terminal.finish()) == 0);
    CHECK(contains(terminal.output(), "\033[?25l"));
    CHECK(contains(terminal.output(), "\033[7m"));
    const std::string& output = terminal.output();
    for (std::size_t at = output.find('\033'); at != std::string::npos;
         at = output.find('\033', at + 1)) {
      const std::size_t end = output.find_first_not_of("?;0123456789", at + 2);
      const std::string code = output.substr(at + 2, end - at - 2);
      INFO(code);
      if (output[end] == 'm') CHECK((code == "0" || code == "1" || code == "2" || code == "7"));
    }
    for (const char letter : terminal.output()) CHECK(static_cast<unsigned char>(letter) < 128);
  }
}

TEST_CASE("dllm-demo: a narrow or dumb terminal gets plain text", "[programs]") {
  // The progress bar goes to standard error, away from the terminal that is looked at.
  const std::string quiet = question + "2>/dev/null";
  const auto columns = GENERATE(60, 80);
  PseudoTerminal terminal((columns < 80 ? "TERM=xterm " : "TERM=dumb ") + quiet,
                          static_cast<unsigned short>(columns), 30);
  CHECK(WEXITSTATUS(terminal.finish()) == 0);
  CHECK_FALSE(contains(terminal.output(), "\033"));
  CHECK(contains(terminal.output(), "Tokens: "));
  for (const std::string& line : wrap_text(terminal.output(), 1000)) {
    INFO(line);
    CHECK(static_cast<int>(line.size()) <= columns + 1);  // with the terminal's \r
  }
}

TEST_CASE("dllm-demo: Ctrl-C shows the cursor again and ends the program", "[programs]") {
  PseudoTerminal terminal("TERM=xterm " + question + "--speed 0.01", 80, 30);
  REQUIRE(terminal.read_until("step 1 of 16"));
  terminal.type('\003');
  const int status = terminal.finish();
  CHECK(WIFSIGNALED(status));
  CHECK(WTERMSIG(status) == SIGINT);
  CHECK(shows_cursor_again(terminal.output()));
  CHECK_FALSE(contains(terminal.output(), "Tokens: "));
}

TEST_CASE("dllm-demo: bad options and files are refused in one line", "[programs]") {
  const auto refused = [](const std::string& command, int code, const std::string& part) {
    check_refusal(run_program(command), "dllm-demo", code, part);
  };
  refused(demo, 2, "--prompt");
  refused(question + "--prompt-file x", 2, "--prompt-file");
  refused(question + "--speed 0", 2, "--speed");
  refused(question + "--policy best", 2, "policy");
  refused(question + "--block-length 5", 2, "block_length");
  refused(demo + "--prompt 'na\xC3\xAFve'", 2, "\xC3\xAF");
  refused(demo + "--prompt-file /nonexistent.txt", 1, "nonexistent");
  refused(question + "--model /nonexistent", 1, "nonexistent");
}

TEST_CASE("dllm-demo: a frame fits its terminal whatever the answers hold", "[programs]") {
  SideView hostile = side(2000);
  hostile.title = std::string(200, 't');
  for (std::size_t i = 0; i < hostile.tokens.size(); ++i)
    if (i % 3 == 0)
      hostile.tokens[i] = {.text = i % 2 == 0 ? "\n" : "\033[2J\t\xFF long \xE2\x86\x92",
                           .state = static_cast<TokenState>(i % 4)};
  for (const int columns : {80, 81, 120, 200})
    for (const int rows : {16, 24, 60})
      for (const bool fancy : {false, true}) {
        const Frame frame = render_frame(
            side(), hostile, {.columns = columns, .rows = rows, .colour = fancy, .unicode = fancy});
        CHECK(static_cast<int>(frame.lines.size()) < rows);
        for (const std::string& line : frame.lines) {
          INFO(columns << " columns: " << line);
          CHECK(static_cast<int>(characters(plain(line)).size()) < columns);
          CHECK_FALSE(contains(plain(line), "?[2J\t"));
        }
        CHECK(contains(joined(frame), "?[2J??"));
      }
}

TEST_CASE("dllm-demo: a frame tells masked, predicted and committed tokens apart", "[programs]") {
  for (const bool colour : {false, true})
    for (const bool unicode : {false, true}) {
      const Frame frame = render_frame(side(), side(), {.colour = colour, .unicode = unicode});
      const std::string& text = frame.lines.at(2);
      INFO(text);
      const std::string dot = unicode ? "\u00b7" : ".";
      CHECK(contains(plain(text), " cfp" + dot + dot + dot));
      std::set<std::string> looks;
      for (const std::string& token : {std::string("c"), std::string("f"), std::string("p")})
        looks.insert(look_of(text, token));
      CHECK(looks.size() == 3);
      CHECK((looks.contains(look_of(text, dot)) ? !colour : colour));  // the dot says enough
    }
}

TEST_CASE("dllm-demo: a frame shows the work of the step in its place", "[programs]") {
  SideView idle = side();
  std::fill_n(idle.recomputed.begin(), 30, 0.0F);
  std::fill(idle.recomputed.begin() + 30, idle.recomputed.end(), 1.0F);
  const std::string frame = joined(render_frame(side(), idle, {}));
  CHECK(contains(frame, " 50%"));
  CHECK(contains(frame, "  |###"));
  CHECK(contains(frame, " 43%"));  // 23 of 53 rows
  CHECK(contains(frame, "step 3 of 23"));
  idle.finished = true;
  idle.work = 0.25;
  const std::string done = joined(render_frame(side(), idle, {}));
  CHECK(contains(done, "25% of rows and layers recomputed"));
  CHECK(contains(done, "done in 1.50 s"));
}

TEST_CASE("dllm-demo: an answer ends at its end of text when it is finished", "[programs]") {
  SideView view = side(0);
  view.tokens = {{.text = "a", .state = TokenState::Committed},
                 {.text = "\n", .state = TokenState::Committed},
                 {.text = "b", .state = TokenState::Committed},
                 {.text = "<eos>", .state = TokenState::Committed, .end = true},
                 {.text = "x", .state = TokenState::Committed}};
  const Frame growing = render_frame(view, view, {});
  CHECK(plain(growing.lines.at(2)).substr(0, 4) == " a  ");
  CHECK(plain(growing.lines.at(3)).substr(0, 5) == " b$x ");
  view.finished = true;
  CHECK(plain(render_frame(view, view, {}).lines.at(3)).substr(0, 4) == " b  ");
}

TEST_CASE("dllm-demo: the comparison names what differs", "[programs]") {
  const RunRecord off{.tokens = {1, 2, 3},
                      .steps = 3,
                      .rows = 1234567,
                      .operations = 8e9,
                      .cache_bytes = 0,
                      .seconds = 4.0,
                      .layers = {.value = 1.0, .query_key = 1.0, .delta = 1.0},
                      .decoding_seconds = 0.5};
  RunRecord on = off;
  on.tokens[1] = 7;
  on.seconds = 2.0;
  on.operations = 1e9;
  std::string text;
  for (const std::string& line : compare_runs(off, on)) {
    CHECK(line.size() < 80);
    text += line + "\n";
  }
  for (const char* part : {"not all equal (2 of 3)", "2.0x faster", "8.0x fewer", "1,234,567",
                           "1.00 s  25%", "1.00 s  50%", "0.50 s  12%"})
    CHECK(contains(text, part));
}
