// SPDX-License-Identifier: Apache-2.0
#include "programs/measure/answer_file.hpp"

#include <algorithm>
#include <sstream>

#include "programs/options/settings_json.hpp"
#include "programs/text/fingerprint.hpp"
#include "programs/text/json_reader.hpp"
#include "programs/text/text_file.hpp"

namespace programs {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* format = "dllm-eval answers 1";

Index read_count(const JsonReader& reader, const char* key) {
  std::optional<Index> value;
  reader.read(key, value);
  if (!value || *value < 0)
    reader.refuse(key, "an integer of at least 0",
                  value ? nlohmann::json(*value) : nlohmann::json());
  return *value;
}

double read_cost(const JsonReader& reader, const char* key) {
  std::optional<double> value;
  reader.read(key, value);
  if (!value || !(*value >= 0.0))
    reader.refuse(key, "a number of at least 0", value ? nlohmann::json(*value) : nlohmann::json());
  return *value;
}

std::string read_string(const JsonReader& reader, const char* key) {
  std::optional<std::string> value;
  reader.read(key, value);
  if (!value) reader.refuse(key, "a string", nullptr);
  return *value;
}

Json read_object(const JsonReader& reader, const char* key) {
  const nlohmann::json* value = reader.find(key);
  if (value == nullptr || !value->is_object())
    reader.refuse(key, "an object", value == nullptr ? nlohmann::json() : *value);
  return *value;
}

SavedAnswers read_header(const std::string& line, const std::string& where) {
  const nlohmann::json json = parse_object(line, where, "the head of a file of answers");
  const JsonReader reader(json, where);
  if (read_string(reader, "format") != format)
    reader.refuse("format", '"' + std::string(format) + '"', json.at("format"));
  SavedAnswers saved;
  saved.origin = {.count = read_count(reader, "count"),
                  .data = read_string(reader, "data"),
                  .model = read_string(reader, "model"),
                  .decoding = read_object(reader, "decoding"),
                  .policy = read_object(reader, "policy"),
                  .compute = read_object(reader, "compute")};
  saved.answers.operations = read_cost(reader, "operations");
  saved.answers.seconds = read_cost(reader, "seconds");
  return saved;
}

Answer read_answer(const std::string& line, const std::string& where) {
  const nlohmann::json json = parse_object(line, where, "an answer");
  const JsonReader reader(json, where);
  Answer answer;
  const char* legal = "a list of token ids in [0, 2^31)";
  const nlohmann::json* tokens = reader.find("tokens");
  answer.tokens = reader.token_ids("tokens", tokens == nullptr ? nlohmann::json() : *tokens, legal);
  answer.steps = read_count(reader, "steps");
  answer.forwards = read_count(reader, "forwards");
  answer.cache_bytes = read_count(reader, "cache_bytes");
  const nlohmann::json rows = read_object(reader, "rows");
  const JsonReader rows_reader(rows, where + ": rows");
  answer.rows = {{.rows = read_count(rows_reader, "flow"),
                  .values = read_count(rows_reader, "value"),
                  .recomputed = read_count(rows_reader, "update")},
                 read_count(rows_reader, "head")};
  return answer;
}

}  // namespace

AnswerOrigin make_origin(const std::filesystem::path& model_folder,
                         const std::vector<Question>& questions, const Settings& settings,
                         const dllm_cache::models::ComputeOptions& compute, FeatureType features) {
  return {.count = static_cast<Index>(questions.size()),
          .data = fingerprint(questions),
          .model = model_fingerprint(model_folder),
          .decoding = decoding_json(settings.decoding, settings.model),
          .policy = policy_json(settings.policy),
          .compute = compute_json(compute, features)};
}

void write_answers(const std::filesystem::path& path, const Answers& answers,
                   const AnswerOrigin& origin) {
  const Json head = {{"format", format},
                     {"count", origin.count},
                     {"data", origin.data},
                     {"model", origin.model},
                     {"decoding", origin.decoding},
                     {"policy", origin.policy},
                     {"compute", origin.compute},
                     {"operations", answers.operations},
                     {"seconds", answers.seconds}};
  std::string text = head.dump() + "\n";
  for (const Answer& answer : answers.each) {
    const Json line = {{"tokens", answer.tokens},
                       {"steps", answer.steps},
                       {"forwards", answer.forwards},
                       {"rows", rows_json(answer.rows)},
                       {"cache_bytes", answer.cache_bytes}};
    text += line.dump() + "\n";
  }
  write_text(path.string(), text);
}

SavedAnswers read_answers(const std::filesystem::path& path) {
  std::istringstream text(read_text(path));
  std::string line;
  if (!std::getline(text, line)) throw BadRequest(path.string() + ": empty");
  const auto where = [&](std::size_t number) {
    return path.string() + ": line " + std::to_string(number);
  };
  SavedAnswers saved = read_header(line, where(1));
  while (std::getline(text, line))
    saved.answers.each.push_back(read_answer(line, where(saved.answers.each.size() + 2)));
  if (static_cast<Index>(saved.answers.each.size()) != saved.origin.count)
    throw BadRequest(path.string() + ": expected " + std::to_string(saved.origin.count) +
                     " answers, got " + std::to_string(saved.answers.each.size()));
  return saved;
}

void check_reference(const std::filesystem::path& path, const SavedAnswers& reference,
                     const AnswerOrigin& origin, const std::vector<Question>& questions,
                     std::int32_t mask) {
  const auto refuse = [&](const std::string& what, const std::string& there,
                          const std::string& here) {
    throw BadRequest(path.string() + ": does not fit: " + what + " is " + there + " there, " +
                     here + " here");
  };
  const AnswerOrigin& other = reference.origin;
  if (other.count != origin.count)
    refuse("count", std::to_string(other.count), std::to_string(origin.count));
  if (other.data != origin.data) refuse("the hash of the data", other.data, origin.data);
  if (other.model != origin.model) refuse("the hash of the model", other.model, origin.model);
  const Json policy = other.policy.value("policy", Json());
  if (policy != "none") refuse("policy", policy.dump(), "\"none\" wanted");
  const Json defaults = decoding_json({}, {});  // of options that the file is older than
  for (const auto& [key, value] : origin.decoding.items()) {
    const Json there = other.decoding.contains(key) ? other.decoding.at(key) : defaults.at(key);
    if (there != value) refuse(key, there.dump(), value.dump());
  }
  for (std::size_t i = 0; i < questions.size(); ++i) {
    const Index expected = rows_to_fill(questions[i], mask);
    if (static_cast<Index>(reference.answers.each[i].tokens.size()) != expected)
      throw BadRequest(path.string() + ": line " + std::to_string(i + 2) + ": expected " +
                       std::to_string(expected) + " tokens, got " +
                       std::to_string(reference.answers.each[i].tokens.size()));
  }
}

}  // namespace programs
