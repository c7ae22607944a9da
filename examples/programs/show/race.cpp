// SPDX-License-Identifier: Apache-2.0
#include "programs/show/race.hpp"

#include <chrono>
#include <optional>
#include <thread>

#include "programs/show/side_by_side.hpp"

namespace programs {
namespace {

class Race {
 public:
  Race(const Side& off, const Side& on, const Vocabulary& vocabulary,
       const dllm_cache::EndTokens& ends, const RaceOptions& options)
      : m_off(off), m_on(on), m_vocabulary(vocabulary), m_ends(ends), m_options(options) {}

  bool run() {
    m_screen.emplace();
    draw();
    while (!m_off.run.finished() || !m_on.run.finished()) {
      const double seconds = behind().step();
      if (m_options.speed < 1.0)
        std::this_thread::sleep_for(
            std::chrono::duration<double>(seconds * (1.0 / m_options.speed - 1.0)));
      const bool last = m_off.run.finished() && m_on.run.finished();
      if (last || Clock::now() - m_drawn >= frame_time) draw();
    }
    const bool shown = m_screen.has_value();
    m_screen.reset();
    return shown;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds frame_time{16};

  StepwiseRun& behind() {
    if (m_on.run.finished()) return m_off.run;
    if (m_off.run.finished()) return m_on.run;
    return m_off.run.seconds() <= m_on.run.seconds() ? m_off.run : m_on.run;
  }

  void draw() {
    if (!m_screen) return;
    const TerminalTraits now = detect_terminal(m_options.colour);
    if (now.columns != m_terminal.columns || now.rows != m_terminal.rows) m_screen->clear();
    m_terminal = now;
    if (!can_race(now)) return m_screen.reset();
    const Frame frame =
        render_frame(m_off.run.view(m_off.title, m_options.steps, m_vocabulary, m_ends),
                     m_on.run.view(m_on.title, m_options.steps, m_vocabulary, m_ends),
                     {.columns = now.columns,
                      .rows = now.rows,
                      .colour = now.colour,
                      .unicode = now.unicode,
                      .text_lines = m_text_lines});
    m_text_lines = frame.text_lines;
    m_screen->draw(frame.lines);
    m_drawn = Clock::now();
  }

  Side m_off;
  Side m_on;
  const Vocabulary& m_vocabulary;
  const dllm_cache::EndTokens& m_ends;
  RaceOptions m_options;
  TerminalTraits m_terminal = detect_terminal(m_options.colour);
  std::optional<LiveScreen> m_screen;
  Clock::time_point m_drawn;
  int m_text_lines = 0;
};

}  // namespace

bool can_race(const TerminalTraits& terminal) {
  constexpr int least_rows = 16;
  return terminal.interactive && terminal.columns >= race_columns && terminal.rows >= least_rows;
}

bool race(const Side& off, const Side& on, const Vocabulary& vocabulary,
          const dllm_cache::EndTokens& ends, const RaceOptions& options) {
  return Race(off, on, vocabulary, ends, options).run();
}

}  // namespace programs
