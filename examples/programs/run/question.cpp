// SPDX-License-Identifier: Apache-2.0
#include "programs/run/question.hpp"

#include <algorithm>
#include <sstream>

#include "programs/text/fingerprint.hpp"
#include "programs/text/json_reader.hpp"
#include "programs/text/text_file.hpp"

namespace programs {
namespace {

// The token ids of a key, where it is there.
std::optional<std::vector<std::int32_t>> read_ids(const JsonReader& reader, const char* key) {
  const nlohmann::json* list = reader.find(key);
  if (list == nullptr) return std::nullopt;
  return reader.token_ids(key, *list, "a list of token ids in [0, 2^31)");
}

// Prompt and answer of a line of text.
void read_text_line(const JsonReader& reader, const Vocabulary* vocabulary, Question& to) {
  std::optional<std::string> prompt, answer;
  reader.read("prompt", prompt);
  reader.read("answer", answer);
  if (!prompt) reader.refuse("prompt", "a string, or prompt_ids a list of token ids", nullptr);
  if (vocabulary == nullptr)
    throw BadRequest(to.where +
                     ": prompt is text, which needs a model with a vocab.txt; give prompt_ids "
                     "(examples/text.py questions makes them)");
  to.prompt = vocabulary->encode(*prompt, to.where + ": prompt");
  if (answer) to.expected = vocabulary->encode(*answer, to.where + ": answer");
}

Question parse_question(const std::string& line, const std::string& where,
                        const Vocabulary* vocabulary) {
  const nlohmann::json json = parse_object(line, where, "a question");
  const JsonReader reader(json, where);
  constexpr std::array<std::string_view, 6> known = {"prompt",     "answer",     "prompt_ids",
                                                     "answer_ids", "gen_length", "task"};
  reader.refuse_others(known);
  Question question;
  question.where = where;
  const bool is_ids = reader.find("prompt_ids") != nullptr || reader.find("answer_ids") != nullptr;
  if (is_ids && (reader.find("prompt") != nullptr || reader.find("answer") != nullptr))
    throw BadRequest(where +
                     ": must hold text (prompt, answer) or token ids (prompt_ids, answer_ids), got "
                     "both");
  if (is_ids) {
    const auto prompt = read_ids(reader, "prompt_ids");
    if (!prompt) reader.refuse("prompt_ids", "a list of token ids", nullptr);
    question.prompt = *prompt;
    question.expected = read_ids(reader, "answer_ids");
  } else {
    read_text_line(reader, vocabulary, question);
  }
  std::optional<Index> gen_length;
  std::optional<std::string> task;
  reader.read("gen_length", gen_length);
  reader.read("task", task);
  if (!gen_length || *gen_length < 0)
    reader.refuse("gen_length", "an integer of at least 0",
                  gen_length ? nlohmann::json(*gen_length) : nlohmann::json());
  question.gen_length = *gen_length;
  question.task = task.value_or("");
  return question;
}

}  // namespace

std::vector<Question> read_questions(const std::filesystem::path& path,
                                     const Vocabulary* vocabulary, std::optional<Index> count) {
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
  for (const Question& question : questions)
    if (question.expected.has_value() != questions.front().expected.has_value())
      throw BadRequest(question.where +
                       ": an answer must be in every line or in none, the first "
                       "line has " +
                       (questions.front().expected ? "one" : "none"));
  return questions;
}

Index rows_to_fill(const Question& question, std::int32_t mask) {
  return question.gen_length + std::count(question.prompt.begin(), question.prompt.end(), mask);
}

void check_token_ids(const std::vector<Question>& questions, Index vocabulary, std::int32_t mask) {
  const auto check = [&](const Question& question, const char* key,
                         const std::vector<std::int32_t>& ids) {
    for (const std::int32_t id : ids)
      if (id >= vocabulary)
        throw BadRequest(question.where + ": " + key + " must hold token ids in [0, " +
                         std::to_string(vocabulary) + "), got " + std::to_string(id));
  };
  for (const Question& question : questions) {
    check(question, "prompt_ids", question.prompt);
    if (question.expected) check(question, "answer_ids", *question.expected);
    const Index rows = rows_to_fill(question, mask);
    if (rows == 0)
      throw BadRequest(question.where +
                       ": gen_length must be at least 1 where the prompt holds no mask, got 0");
    if (question.expected && static_cast<Index>(question.expected->size()) > rows)
      throw BadRequest(question.where + ": answer must be at most gen_length" +
                       (rows > question.gen_length ? " and the masks of the prompt" : "") + " = " +
                       std::to_string(rows) + " tokens, got " +
                       std::to_string(question.expected->size()));
  }
}

std::string fingerprint(const std::vector<Question>& questions) {
  Fingerprint all;
  const auto add = [&all](const std::vector<std::int32_t>& ids) {
    all.add(static_cast<std::uint64_t>(ids.size()));
    all.add(std::as_bytes(std::span(ids)));
  };
  for (const Question& question : questions) {
    add(question.prompt);
    if (question.expected) add(*question.expected);
    all.add(static_cast<std::uint64_t>(question.gen_length));
  }
  return all.text();
}

}  // namespace programs
