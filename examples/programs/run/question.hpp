// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "dllm_cache/base/matrix_view.hpp"
#include "programs/text/vocabulary.hpp"

namespace programs {

using dllm_cache::Index;

/// A prompt and, where it is known, the answer that is expected: one line of a data file.
struct Question {
  std::string where;                 ///< File and line, for messages.
  std::vector<std::int32_t> prompt;  ///< Token ids.
  /// Tokens of the answer, at most `gen_length`, without the end of text.
  std::optional<std::vector<std::int32_t>> expected;
  Index gen_length = 0;  ///< Tokens to generate, at least 1.
  std::string task;      ///< "" where the line names none.
};

/// Reads a data file, one JSON object a line: `prompt` and `answer` (text, for models with a
/// vocabulary) or `prompt_ids` and `answer_ids` (token ids), `gen_length` and, optionally, `task`;
/// at most the first `count` lines. Answers are in every line or in none.
///
/// `vocabulary` may be null: then text is refused. Throws BadRequest naming file, line and key, and
/// std::runtime_error when the file cannot be read.
[[nodiscard]] std::vector<Question> read_questions(const std::filesystem::path& path,
                                                   const Vocabulary* vocabulary,
                                                   std::optional<Index> count = {});

/// Refuses token ids outside [0, vocabulary); throws BadRequest naming file, line and key.
void check_token_ids(const std::vector<Question>& questions, Index vocabulary);

/// A hash of prompts, answers and lengths, in hexadecimal.
[[nodiscard]] std::string fingerprint(const std::vector<Question>& questions);

}  // namespace programs
