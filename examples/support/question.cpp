// SPDX-License-Identifier: Apache-2.0
#include "support/question.hpp"

#include <sstream>

#include "support/fingerprint.hpp"
#include "support/json_reader.hpp"
#include "support/text_file.hpp"

namespace programs {
namespace {

Question parse_question(const std::string& line, const std::string& where,
                        const Vocabulary& vocabulary) {
  const nlohmann::json json = parse_object(line, where, "a question");
  const JsonReader reader(json, where);
  constexpr std::array<std::string_view, 4> known = {"prompt", "answer", "gen_length", "task"};
  reader.refuse_others(known);
  std::optional<std::string> prompt, answer, task;
  std::optional<Index> gen_length;
  reader.read("prompt", prompt);
  reader.read("answer", answer);
  reader.read("gen_length", gen_length);
  reader.read("task", task);
  if (!prompt) reader.refuse("prompt", "a string", nullptr);
  if (!answer) reader.refuse("answer", "a string", nullptr);
  if (!gen_length || *gen_length < 1)
    reader.refuse("gen_length", "an integer of at least 1",
                  gen_length ? nlohmann::json(*gen_length) : nlohmann::json());
  Question question{.where = where,
                    .prompt = vocabulary.encode(*prompt, where + ": prompt"),
                    .answer = *answer,
                    .expected = vocabulary.encode(*answer, where + ": answer"),
                    .gen_length = *gen_length,
                    .task = task.value_or("")};
  if (static_cast<Index>(question.expected.size()) > question.gen_length)
    throw BadRequest(
        where + ": answer must be at most gen_length = " + std::to_string(question.gen_length) +
        " tokens, got " + std::to_string(question.expected.size()));
  return question;
}

}  // namespace

std::vector<Question> read_questions(const std::filesystem::path& path,
                                     const Vocabulary& vocabulary, std::optional<Index> count) {
  std::istringstream text(read_text(path));
  std::vector<Question> questions;
  std::string line;
  for (Index number = 1; !(count && number > *count) && std::getline(text, line); ++number) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    questions.push_back(
        parse_question(line, path.string() + ": line " + std::to_string(number), vocabulary));
  }
  if (questions.empty()) throw BadRequest(path.string() + ": no questions");
  if (count && static_cast<Index>(questions.size()) < *count)
    throw BadRequest("count must be at most " + std::to_string(questions.size()) +
                     ", the lines of " + path.string() + ", got " + std::to_string(*count));
  return questions;
}

std::string fingerprint(const std::vector<Question>& questions) {
  Fingerprint all;
  for (const Question& question : questions) {
    all.add(static_cast<std::uint64_t>(question.prompt.size()));
    all.add(std::as_bytes(std::span(question.prompt)));
    all.add(question.answer);
    all.add(static_cast<std::uint64_t>(question.gen_length));
  }
  return all.text();
}

}  // namespace programs
