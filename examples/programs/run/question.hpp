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
  /// Tokens of the answer, without the end of text: at the masks of the prompt, if it has any, and
  /// behind it.
  std::optional<std::vector<std::int32_t>> expected;
  Index gen_length = 0;  ///< Tokens to generate behind the prompt.
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

/// Tokens that a question asks for: masks in its prompt, and `gen_length` behind it.
[[nodiscard]] Index rows_to_fill(const Question& question, std::int32_t mask);

/// Refuses token ids outside [0, vocabulary), answers longer than what is to be filled, and
/// questions that ask for nothing; throws BadRequest naming file, line and key.
void check_token_ids(const std::vector<Question>& questions, Index vocabulary, std::int32_t mask);

/// A hash of prompts, answers and lengths, in hexadecimal.
[[nodiscard]] std::string fingerprint(const std::vector<Question>& questions);

}  // namespace programs
