// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "dllm_cache/base/matrix_view.hpp"

namespace programs {

using dllm_cache::Index;

/// How far one token of an answer is.
enum class TokenState {
  Masked,
  Provisional,  ///< Predicted in the last step, but not committed.
  Fresh,        ///< Committed a moment ago.
  Committed
};

/// One token of an answer as it is shown; `end` stands for end of text, whose text does not matter.
struct TokenView {
  std::string text = {};
  TokenState state = TokenState::Masked;
  bool end = false;
};

/// One generation in progress.
struct SideView {
  std::string title = {};
  std::vector<TokenView> tokens = {};  ///< The answer.
  std::vector<float> recomputed =
      {};            ///< Share of layers `[0, 1]` in the last step, one entry a row.
  Index prompt = 0;  ///< How many of these rows are the prompt.
  Index step = 0;    ///< Steps done.
  Index steps = 0;   ///< Steps planned.
  double seconds = 0.0;
  double work = 0.0;  ///< Mean share of rows and layers recomputed, over all steps.
  bool finished = false;
};

/// Where a frame is drawn.
struct FrameStyle {
  int columns = 80;  ///< At least 80.
  int rows = 24;     ///< A frame has at most one line less; at least 12.
  bool colour = false;
  bool unicode = false;
  int text_lines = 0;  ///< Lines that the answers take at least, where there is room for them.
};

/// A frame and the lines that its answers took, to be asked for by the next one.
struct Frame {
  std::vector<std::string> lines = {};
  int text_lines = 0;
};

/// Draws two generations side by side; the last lines explain the marks. Without colour tokens are
/// told apart by brightness. Where the answers do not fit, the part being worked on is shown.
[[nodiscard]] Frame render_frame(const SideView& left, const SideView& right,
                                 const FrameStyle& style);

/// Two texts in columns of `width` characters with the gap of frames; long lines go on below.
[[nodiscard]] std::vector<std::string> render_columns(const std::string& left,
                                                      const std::string& right, int width);

/// Characters of a column of a frame that is `columns` wide.
[[nodiscard]] int column_width(int columns);

}  // namespace programs
