// SPDX-License-Identifier: Apache-2.0
// dllm-eval as a user runs it, beside what dllm-generate answers.
#include <catch2/catch.hpp>
#include <cstdint>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "dllm_cache/base/matrix_view.hpp"
#include "dllm_cache/models/compute/backends.hpp"
#include "tests/support/program_run.hpp"
#include "tests/support/temporary_folder.hpp"
#include "tests/support/text_model.hpp"

using dllm_cache::Index;
using dllm_cache::testing::Outcome;
using dllm_cache::testing::read_json;
using dllm_cache::testing::TemporaryFolder;
using dllm_cache::testing::TextModel;
using Json = nlohmann::json;

namespace {

// Loses much: answers and logits must differ from the uncached ones.
const std::string coarse =
    " --prompt-interval never --response-interval never --ratio 0 --refresh-first-layer false ";

Outcome eval(const std::string& arguments) {
  return dllm_cache::testing::run_program(DLLM_EVAL, arguments);
}

void check_refusal(const Outcome& outcome, int code, const std::string& part) {
  dllm_cache::testing::check_refusal(outcome, "dllm-eval", code, part);
}

std::vector<std::string> lines_of(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

/// Ten questions to the tiny model in lengths of 16 and 8, and dllm-generate's answers to them.
class Quiz {
 public:
  Quiz() {
    for (int i = 0; i < 10; ++i) {
      std::string prompt = "q";
      for (int j = 0; j < 4 + 3 * (i % 4); ++j)
        prompt += TextModel::letter((7 * i + 5 * j) % TextModel::letters);
      prompts.push_back(prompt);
      lengths.push_back(i % 3 == 0 ? 8 : 16);
    }
  }

  [[nodiscard]] std::string model() const { return " --model " + m_model.path().string() + " "; }
  [[nodiscard]] std::filesystem::path file(const std::string& name) const {
    return m_folder.path() / name;
  }

  /// dllm-generate's result for all questions of a length, in their order.
  [[nodiscard]] Json generate(Index length, const std::string& options) const {
    Json request = {{"gen_length", length}, {"block_length", 8}};
    for (const std::size_t i : of_length(length))
      request["prompt_ids"].push_back(TextModel::encode(prompts[i]));
    std::ofstream(file("request.json")) << request.dump();
    const Outcome outcome = dllm_cache::testing::run_program(
        DLLM_GENERATE, model() + "--request " + file("request.json").string() + options +
                           " --threads 1 --quiet --json " + file("generated.json").string());
    INFO(outcome.output);
    REQUIRE(outcome.code == 0);
    return read_json(file("generated.json"));
  }

  /// The tokens of all questions, from results of generate() by length.
  [[nodiscard]] std::vector<Json> tokens(const std::map<Index, Json>& results) const {
    std::vector<Json> all(prompts.size());
    for (const auto& [length, result] : results) {
      const auto places = of_length(length);
      for (std::size_t i = 0; i < places.size(); ++i) all[places[i]] = result.at("tokens").at(i);
    }
    return all;
  }

  /// Writes the data: an even question expects what an uncached run answers, up to the first
  /// special token, an odd one expects another first letter and one letter less.
  [[nodiscard]] std::string write_data() {
    const auto uncached =
        tokens({{8, generate(8, " --no-cache")}, {16, generate(16, " --no-cache")}});
    std::ofstream data(file("data.jsonl"));
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      std::string answer;
      for (const std::int32_t token : uncached[i].get<std::vector<std::int32_t>>()) {
        if (token >= TextModel::letters) break;
        answer += TextModel::letter(token);
      }
      if (i % 2 == 1 && !answer.empty()) {
        answer.pop_back();
        if (!answer.empty()) answer[0] = answer[0] == 'a' ? 'b' : 'a';
      }
      answers.push_back(answer);
      const Json line = {{"prompt", prompts[i]},
                         {"answer", answer},
                         {"gen_length", lengths[i]},
                         {"task", i < 4 ? "first" : "last"}};
      data << line.dump() << '\n';
    }
    return " --data " + file("data.jsonl").string() + " ";
  }

  /// dllm-eval's JSON, block length 8 and one thread.
  [[nodiscard]] Json evaluate(const std::string& options) const {
    const Outcome outcome = eval(model() + options + " --block-length 8 --threads 1 --quiet " +
                                 "--json " + file("out.json").string());
    INFO(outcome.output);
    REQUIRE(outcome.code == 0);
    return read_json(file("out.json"));
  }

  /// Whether tokens say what question `i` expects.
  [[nodiscard]] bool exact(std::size_t i, const Json& tokens) const {
    std::string text;
    for (const auto& token : tokens) {
      if (token == 94) break;
      text += token == 95 ? '?' : TextModel::letter(token);
    }
    return text == answers[i];
  }
  [[nodiscard]] Index right_tokens(std::size_t i, const Json& tokens) const {
    Index right = 0;
    for (std::size_t at = 0; at < tokens.size(); ++at)
      right += tokens[at] == (at < answers[i].size() ? answers[i][at] - '!' : 94) ? 1 : 0;
    return right;
  }

  [[nodiscard]] std::vector<std::size_t> of_length(Index length) const {
    std::vector<std::size_t> places;
    for (std::size_t i = 0; i < lengths.size(); ++i)
      if (lengths[i] == length) places.push_back(i);
    return places;
  }

  std::vector<std::string> prompts;
  std::vector<Index> lengths;
  std::vector<std::string> answers;  // expected

 private:
  TemporaryFolder m_folder;
  TextModel m_model{m_folder.path()};
};

void forget_seconds(Json& json) {
  json.erase("seconds");
  if (json.at("uncached").is_object()) json.at("uncached").erase("seconds");
  json.at("settings").erase("reference");
  json.at("settings").erase("batch");
}

}  // namespace

TEST_CASE("dllm-eval: counts and shares are those of dllm-generate's answers", "[programs]") {
  Quiz quiz;
  const std::string data = quiz.write_data();
  const Json result = quiz.evaluate(data + coarse);
  std::map<Index, Json> on, off;
  Index steps = 0, recomputed = 0, head = 0;
  std::uint64_t operations = 0, uncached_operations = 0;
  for (const Index length : {Index{8}, Index{16}}) {
    const Json& one = on[length] = quiz.generate(length, coarse);
    off[length] = quiz.generate(length, " --no-cache");
    steps += static_cast<Index>(one.at("tokens").size()) * one.at("steps").get<Index>();
    recomputed += one.at("rows").at("update").get<Index>();
    head += one.at("rows").at("head").get<Index>();
    operations += one.at("operations").get<std::uint64_t>();
    uncached_operations += off[length].at("operations").get<std::uint64_t>();
  }
  const std::vector<Json> cached = quiz.tokens(on), uncached_tokens = quiz.tokens(off);
  Index exact = 0, exact_uncached = 0, agree = 0, better = 0, worse = 0, right = 0, tokens = 0;
  for (std::size_t i = 0; i < quiz.prompts.size(); ++i) {
    const Json &a = cached[i], &b = uncached_tokens[i];
    exact += quiz.exact(i, a);
    exact_uncached += quiz.exact(i, b);
    agree += a == b;
    better += quiz.exact(i, a) && !quiz.exact(i, b);
    worse += !quiz.exact(i, a) && quiz.exact(i, b);
    right += quiz.right_tokens(i, a);
    tokens += static_cast<Index>(a.size());
  }
  CHECK(exact_uncached > 0);  // or nothing below means anything
  CHECK(exact < exact_uncached);
  CHECK(agree < 10);
  CHECK(result.at("count") == 10);
  CHECK(result.at("exact_match").get<double>() == Approx(static_cast<double>(exact) / 10));
  CHECK(result.at("character_accuracy").get<double>() ==
        Approx(static_cast<double>(right) / static_cast<double>(tokens)));
  CHECK(result.at("agreement").get<double>() == Approx(static_cast<double>(agree) / 10));
  CHECK(result.at("steps") == steps);
  CHECK(result.at("forwards") == steps);
  CHECK(result.at("rows").at("update") == recomputed);
  CHECK(result.at("rows").at("head") == head);
  CHECK(result.at("cache_bytes") == 4 * ((14 + 16) * 2 * 64 + 16 * 64) * 4);  // the longest one
  CHECK(result.at("operations") == operations);
  CHECK(result.at("seconds").get<double>() > 0.0);
  const Json& uncached = result.at("uncached");
  CHECK(uncached.at("exact_match").get<double>() ==
        Approx(static_cast<double>(exact_uncached) / 10));
  CHECK(uncached.at("operations") == uncached_operations);
  CHECK(uncached.at("seconds").get<double>() > 0.0);
  const Json& paired = result.at("paired");
  CHECK(paired.at("better") == better);
  CHECK(paired.at("worse") == worse);
  CHECK(paired.at("difference").get<double>() == Approx(static_cast<double>(better - worse) / 10));
  CHECK(paired.at("low") < paired.at("difference"));
  CHECK(paired.at("high") > paired.at("difference"));
  for (const char* share : {"exact_match", "character_accuracy", "agreement"}) {
    CHECK(result.at("intervals").at(share).at(0) <= result.at(share));
    CHECK(result.at("intervals").at(share).at(1) >= result.at(share));
  }
}

TEST_CASE("dllm-eval: the results of the tasks add up to those of all questions", "[programs]") {
  Quiz quiz;
  const Json result = quiz.evaluate(quiz.write_data() + coarse);
  const Json& first = result.at("tasks").at("first");
  const Json& last = result.at("tasks").at("last");
  CHECK(result.at("tasks").size() == 2);
  CHECK(first.at("count") == 4);
  CHECK(last.at("count") == 6);
  for (const char* sum : {"steps", "forwards"})
    CHECK(first.at(sum).get<Index>() + last.at(sum).get<Index>() == result.at(sum));
  for (const char* share : {"exact_match", "agreement"})
    CHECK((4 * first.at(share).get<double>() + 6 * last.at(share).get<double>()) / 10 ==
          Approx(result.at(share).get<double>()));
  CHECK(first.at("paired").at("worse").get<Index>() + last.at("paired").at("worse").get<Index>() ==
        result.at("paired").at("worse"));
}

TEST_CASE("dllm-eval: the size of a batch does not change the answers", "[programs]") {
  Quiz quiz;
  const std::string data = quiz.write_data();
  const auto answers = [&](const std::string& options) {
    static_cast<void>(quiz.evaluate(data + options + " --no-comparison --save-answers " +
                                    quiz.file("answers.jsonl").string()));
    std::vector<std::string> lines = lines_of(quiz.file("answers.jsonl"));
    lines.erase(lines.begin());  // what the run took
    return lines;
  };
  // A counted schedule, sequences that end at different times, and random numbers.
  for (const std::string options : {"", " --threshold 0.9", " --temperature 0.7 --seed 3"}) {
    INFO(options);
    const auto alone = answers(options + " --batch 1");
    CHECK(alone.size() == 10);
    std::set<Json> steps;
    for (const std::string& line : alone) steps.insert(Json::parse(line).at("steps"));
    CHECK(steps.size() >= 2);
    CHECK(answers(options + " --batch 3") == alone);
    CHECK(answers(options + " --batch 16") == alone);
  }
  CHECK(answers(" --temperature 0.7 --seed 3") != answers(" --temperature 0.7 --seed 4"));
}

TEST_CASE("dllm-eval: a reference stands for the uncached run", "[programs]") {
  Quiz quiz;
  const std::string data = quiz.write_data();
  const std::string path = quiz.file("reference.jsonl").string();
  const Json off = quiz.evaluate(data + "--no-cache --save-answers " + path);
  CHECK(off.at("agreement") == 1.0);
  CHECK(off.at("paired").at("difference") == 0.0);
  CHECK(off.at("uncached").at("seconds") == off.at("seconds"));  // nothing ran twice
  Json both = quiz.evaluate(data + coarse);
  Json read = quiz.evaluate(data + coarse + "--reference " + path);
  CHECK(read.at("settings").at("reference") == path);
  CHECK(read.at("uncached").at("seconds") == off.at("seconds"));
  forget_seconds(both);
  forget_seconds(read);
  CHECK(both == read);

  const std::string good = quiz.model() + data + "--reference " + path + " --quiet ";
  const auto refused = [&](const std::string& arguments, const std::string& part) {
    INFO(arguments);
    check_refusal(eval(arguments), 2, part);
  };
  refused(good + "--block-length 8 --count 9", "count is 10 there, 9 here");
  refused(good + "--block-length 4", "block_length is 8 there, 4 here");
  refused(good + "--block-length 8 --threshold 0.5", "threshold is null there, 0.5 here");
  refused(good + "--block-length 8 --no-comparison", "--no-comparison");
  const auto replaced = [&](std::size_t number, const std::string& line) {
    std::vector<std::string> lines = lines_of(path);
    lines[number] = line;
    std::ofstream file(quiz.file("changed.jsonl"));
    for (const std::string& one : lines) file << one << '\n';
    return quiz.model() + data + "--block-length 8 --reference " +
           quiz.file("changed.jsonl").string();
  };
  const Json head = Json::parse(lines_of(path)[0]);
  Json other = head;
  other["data"] = "0123456789abcdef";
  refused(replaced(0, other.dump()), "hash of the data");
  other = head;
  other["model"] = "0123456789abcdef";
  refused(replaced(0, other.dump()), "hash of the model");
  other = head;
  other["policy"]["policy"] = "dual";
  refused(replaced(0, other.dump()), "policy");
  other = head;
  other["count"] = 11;
  refused(replaced(0, other.dump()), "expected 11 answers, got 10");
  refused(replaced(0, "{}"), "line 1: format");
  refused(replaced(3, "{\"tokens\": 7}"), "line 4: tokens");
  Json answer = Json::parse(lines_of(path)[3]);
  answer["tokens"].erase(0);
  refused(replaced(3, answer.dump()), "line 4: expected 16 tokens, got 15");
  check_refusal(eval(quiz.model() + data + "--reference /nonexistent"), 1, "nonexistent");
}

TEST_CASE("dllm-eval: without a comparison nothing is said of one", "[programs]") {
  Quiz quiz;
  const Json result = quiz.evaluate(quiz.write_data() + "--no-comparison --count 2");
  CHECK(result.at("count") == 2);
  for (const char* key : {"agreement", "uncached", "paired"}) CHECK(result.at(key).is_null());
  CHECK(result.at("settings").at("policy") == "block-verify");
  CHECK(result.at("settings").at("preset") == "balanced");
  CHECK(result.at("settings").at("policy_options").at("response_interval") == 32);  // balanced
  CHECK(result.at("settings").at("policy_options").at("recompute_block") == true);
  CHECK(result.at("settings").at("policy_options").at("similarity_threshold") == 0.99);
  CHECK(result.at("settings").at("decoding").at("block_length") == 8);
}

TEST_CASE("dllm-eval: the backend of bf16 is the one that has products of it", "[programs]") {
  using namespace dllm_cache::models;
  const Quiz quiz;
  std::ofstream(quiz.file("data.jsonl"))
      << R"({"prompt": "a", "answer": "b", "gen_length": 8})" << '\n';
  const std::string asked =
      "--data " + quiz.file("data.jsonl").string() + " --no-comparison --precision bf16";
  const bool onednn = can_compute({Backend::OneDnn, Precision::Bfloat16});
  for (const bool eigen : {false, true}) {
    const Json settings = quiz.evaluate(asked + (eigen ? " --backend eigen" : "")).at("settings");
    CHECK(settings.at("precision") == "bf16");
    CHECK(settings.at("backend") == (onednn && !eigen ? "onednn" : "eigen"));
  }
}

TEST_CASE("dllm-eval: the table fits into 80 columns", "[programs]") {
  Quiz quiz;
  const Outcome outcome = eval(quiz.model() + quiz.write_data() + "--block-length 8 --threads 1");
  CHECK(outcome.code == 0);
  std::istringstream text(outcome.output);
  for (std::string line; std::getline(text, line);) {
    INFO(line);
    CHECK(line.size() <= 80);
  }
  for (const char* word : {"10 questions", "exact match", "agreement", "first", "last", "p ="})
    CHECK(outcome.output.find(word) != std::string::npos);
}

TEST_CASE("dllm-eval: questions in token ids are judged as text is, on a model without vocab.txt",
          "[programs]") {
  Quiz quiz;
  Json text = quiz.evaluate(quiz.write_data() + coarse);
  std::ofstream data(quiz.file("ids.jsonl"));
  for (std::size_t i = 0; i < quiz.prompts.size(); ++i)
    data << Json{{"prompt_ids", TextModel::encode(quiz.prompts[i])},
                 {"answer_ids", TextModel::encode(quiz.answers[i])},
                 {"gen_length", quiz.lengths[i]},
                 {"task", i < 4 ? "first" : "last"}}
                .dump()
         << '\n';
  data.close();
  std::filesystem::remove(quiz.file("model/vocab.txt"));
  Json ids = quiz.evaluate(" --data " + quiz.file("ids.jsonl").string() + coarse);
  for (Json* one : {&text, &ids}) forget_seconds(*one);
  CHECK(ids == text);  // the hash of the data too: they are the same questions
}

TEST_CASE("dllm-eval: without known answers it says how much changes", "[programs]") {
  Quiz quiz;
  const Json known = quiz.evaluate(quiz.write_data() + coarse);
  std::ofstream data(quiz.file("open.jsonl"));
  for (std::size_t i = 0; i < quiz.prompts.size(); ++i)
    data << Json{{"prompt_ids", TextModel::encode(quiz.prompts[i])},
                 {"gen_length", quiz.lengths[i]},
                 {"task", i < 4 ? "first" : "last"}}
                .dump()
         << '\n';
  data.close();
  const std::string open = " --data " + quiz.file("open.jsonl").string();
  const Json result = quiz.evaluate(open + coarse);
  for (const char* key : {"exact_match", "character_accuracy", "paired"})
    CHECK(result.at(key).is_null());
  CHECK(result.at("agreement") == known.at("agreement"));
  CHECK(result.at("token_agreement") == known.at("token_agreement"));
  CHECK(result.at("token_agreement") > result.at("agreement"));
  CHECK(result.at("token_agreement") < 1);
  CHECK(result.at("tasks").at("last").at("agreement") ==
        known.at("tasks").at("last").at("agreement"));
  const Outcome outcome = eval(quiz.model() + open + coarse + "--block-length 8 --threads 1");
  CHECK(outcome.code == 0);
  CHECK(outcome.output.find("exact match") == std::string::npos);
  for (const char* word : {"10 questions", "agreement", "tokens the same", "first", "last"})
    CHECK(outcome.output.find(word) != std::string::npos);
}

TEST_CASE("dllm-eval: a bad line is refused with file, line and key", "[programs]") {
  const TemporaryFolder folder;
  const TextModel model(folder.path());
  const std::string path = (folder.path() / "bad.jsonl").string();
  const auto refused = [&](const std::string& line, const std::string& part) {
    std::ofstream(path) << R"({"prompt": "a", "answer": "b", "gen_length": 8})" << '\n'
                        << line << '\n';
    INFO(line);
    check_refusal(eval("--model " + model.path().string() + " --data " + path), 2,
                  path + ": line 2: " + part);
  };
  refused("", "not JSON");
  refused("[1]", "a question must be a JSON object");
  refused(R"({"answer": "b", "gen_length": 8})", "prompt must be a string");
  refused(R"({"prompt": "a", "gen_length": 8})", "an answer must be in every line or in none");
  refused(R"({"prompt": "a", "prompt_ids": [1], "answer": "b", "gen_length": 8})",
          "must hold text (prompt, answer) or token ids (prompt_ids, answer_ids), got both");
  refused(R"({"answer_ids": [1], "gen_length": 8})", "prompt_ids must be a list of token ids");
  refused(R"({"prompt_ids": 7, "answer_ids": [1], "gen_length": 8})", "prompt_ids must be a list");
  refused(R"({"prompt_ids": [1], "answer_ids": [-1], "gen_length": 8})", "answer_ids must be");
  refused(R"({"prompt_ids": [1.5], "answer_ids": [1], "gen_length": 8})", "prompt_ids must be");
  refused(R"({"prompt_ids": [96], "answer_ids": [1], "gen_length": 8})",
          "prompt_ids must hold token ids in [0, 96), got 96");
  refused(R"({"prompt_ids": [1], "answer_ids": [1, 2, 3], "gen_length": 2})",
          "answer must be at most gen_length = 2 tokens, got 3");
  refused(R"({"prompt": 7, "answer": "b", "gen_length": 8})", "prompt must be a string, got 7");
  refused(R"({"prompt": "a", "answer": "b"})", "gen_length must be");
  refused(R"({"prompt": "a", "answer": "b", "gen_length": 0})", "gen_length must be");
  refused(R"({"prompt": "a", "answer": "b", "gen_length": 1.5})", "gen_length must be");
  refused(R"({"prompt": "a", "answer": "bcd", "gen_length": 2})",
          "answer must be at most gen_length = 2 tokens, got 3");
  refused(R"({"prompt": "a b", "answer": "b", "gen_length": 8})", "prompt: character ' '");
  refused(R"({"prompt": "a", "answer": "b c", "gen_length": 8})", "answer: character ' '");
  refused(R"({"prompt": "a", "answer": "b", "gen_length": 8, "task": 1})", "task must be");
  refused(R"({"prompt": "a", "answer": "b", "gen_length": 8, "surprise": 1})", "unknown key");
}

TEST_CASE("dllm-eval: bad options end with 2, bad files with 1", "[programs]") {
  const TemporaryFolder folder;
  const TextModel model(folder.path());
  const auto data = folder.write("data.jsonl", R"({"prompt": "a", "answer": "b", "gen_length": 8})"
                                               "\n");
  const std::string good =
      "--model " + model.path().string() + " --data " + data.string() + " --threads 1 ";
  check_refusal(eval("--data " + data.string()), 2, "--model");
  check_refusal(eval("--model " + model.path().string()), 2, "--data");
  check_refusal(eval(good + "--batch 0"), 2, "batch");
  check_refusal(eval(good + "--count 2"), 2, "count must be at most 1");
  check_refusal(eval(good + "--gen-length 8"), 2, "gen-length");
  check_refusal(eval(good + "--block-length 3"), 2, "line 1: block_length must divide gen_length");
  check_refusal(eval(good + "--policy none --ratio 0.5"), 2, "--ratio");
  check_refusal(eval(good + "--policy unknown"), 2, "policy");
  check_refusal(
      eval("--data " + data.string() + " --model " DLLM_CACHE_TEST_DATA "/models/llada-tiny"), 2,
      "vocab.txt");
  check_refusal(eval("--model " + model.path().string() + " --data /nonexistent"), 1,
                "nonexistent");
  check_refusal(eval(good + "--quiet --json /nonexistent/out.json"), 1, "nonexistent");
  const auto empty = folder.write("empty.jsonl", "");
  check_refusal(eval("--model " + model.path().string() + " --data " + empty.string()), 2,
                "no questions");
  CHECK(eval("--help").code == 0);
  CHECK(eval("--version").code == 0);
}
