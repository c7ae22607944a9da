// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "dllm_cache/matrix_view.hpp"
#include "support/vocabulary.hpp"

namespace programs {

using dllm_cache::Index;

/// A prompt and the answer that is expected, one line of a data file.
struct Question {
  std::string where;                 ///< File and line, for messages.
  std::vector<std::int32_t> prompt;  ///< Token ids.
  std::string answer;
  std::vector<std::int32_t> expected;  ///< Tokens of the answer, at most `gen_length`.
  Index gen_length = 0;                ///< Tokens to generate, at least 1.
  std::string task;                    ///< "" where the line names none.
};

/// Reads a data file, one JSON object a line with `prompt`, `answer`, `gen_length` and, optionally,
/// `task`; at most the first `count` lines.
///
/// Throws BadRequest naming file, line and key, and std::runtime_error when the file cannot be
/// read.
[[nodiscard]] std::vector<Question> read_questions(const std::filesystem::path& path,
                                                   const Vocabulary& vocabulary,
                                                   std::optional<Index> count = {});

/// A hash of prompts, answers and lengths, in hexadecimal.
[[nodiscard]] std::string fingerprint(const std::vector<Question>& questions);

}  // namespace programs
