// SPDX-License-Identifier: Apache-2.0
// dllm-trace as a user runs it: the page holds what the trace holds, other files are refused.
#include <catch2/catch.hpp>
#include <cmath>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "dllm_cache/models/checkpoint/safetensors_file.hpp"
#include "programs/text/safetensors_writer.hpp"
#include "tests/support/golden_case.hpp"
#include "tests/support/program_run.hpp"
#include "tests/support/temporary_folder.hpp"

using dllm_cache::testing::run_program;
using dllm_cache::testing::TemporaryFolder;
using golden::Case;
using Json = nlohmann::json;
namespace models = dllm_cache::models;

namespace {

/// Runs a golden request, shortened to 16 tokens, and writes its trace.
std::filesystem::path make_trace(const TemporaryFolder& folder, const std::string& name) {
  const auto path = folder / "trace.safetensors";
  const std::string model = Case(name).request.at("model");
  REQUIRE(run_program(DLLM_GENERATE " --quiet --threads 1 --gen-length 16 --block-length 8 --steps "
                                    "8 --model " +
                      (golden::folder() / "models" / model).string() + " --request " +
                      (golden::folder() / name / "case.json").string() + " --trace " +
                      path.string())
              .code == 0);
  return path;
}

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

/// Makes the page of a trace and returns its text.
std::string make_page(const TemporaryFolder& folder, const std::filesystem::path& trace,
                      const std::string& options = "") {
  const auto outcome = run_program(DLLM_TRACE " --trace '" + trace.string() + "' --out " +
                                   (folder / "page.html").string() + " " + options);
  INFO(outcome.output);
  REQUIRE(outcome.code == 0);
  CHECK(outcome.output.empty());
  return read_file(folder / "page.html");
}

/// The data that a page shows.
Json data_of(const std::string& page) {
  const std::string begin = "<script type=\"application/json\" id=\"trace\">";
  const std::size_t at = page.find(begin) + begin.size();
  REQUIRE(at > begin.size());
  return Json::parse(page.substr(at, page.find("</script>", at) - at));
}

std::vector<std::uint8_t> from_base64(const std::string& text) {
  const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::vector<std::uint8_t> bytes;
  std::uint32_t held = 0;
  int bits = 0;
  for (const char letter : text) {
    if (letter == '=') break;
    held = held << 6U | static_cast<std::uint32_t>(digits.find(letter));
    bits += 6;
    if (bits < 8) continue;
    bits -= 8;
    bytes.push_back(static_cast<std::uint8_t>(held >> bits & 255U));
  }
  return bytes;
}

template <class T>
T element(const models::Tensor& tensor, std::size_t place) {
  T value;
  REQUIRE((place + 1) * sizeof(T) <= tensor.bytes.size());
  std::memcpy(&value, tensor.bytes.data() + place * sizeof(T), sizeof(T));
  return value;
}

/// Compares every action, similarity and commit of a page with those of a uniform trace.
void compare(const Json& data, const models::SafetensorsFile& trace) {
  const models::Tensor& final_tokens = trace.at("final_tokens");
  const auto batch = static_cast<std::size_t>(final_tokens.shape[0]);
  const auto response = static_cast<std::size_t>(final_tokens.shape[1]);
  REQUIRE(data.at("sequences").size() == batch);
  std::size_t similarities = 0;
  for (std::size_t i = 0; i < batch; ++i) {
    const Json& s = data["sequences"][i];
    const auto prompt = s.at("prompt").get<std::size_t>(),
               layers = s.at("layers").get<std::size_t>();
    const auto forwards = s.at("forwards").get<std::size_t>(), rows = prompt + response;
    const auto steps = s.at("steps").get<std::size_t>();
    REQUIRE(s.at("response") == response);
    const auto packed = from_base64(s.at("treatments"));
    const auto codes = from_base64(s.at("similarities"));
    const std::size_t stride = (rows + 1) / 2;
    REQUIRE(packed.size() == forwards * layers * stride);
    std::size_t verified = 0;
    for (std::size_t place = 0; place < forwards * layers; ++place) {
      const std::string name =
          "step" + std::to_string(place / layers) + ".layer" + std::to_string(place % layers) + ".";
      const models::Tensor& action = trace.at(name + "treatment");
      REQUIRE(action.shape[1] == static_cast<std::int64_t>(rows));
      for (std::size_t row = 0; row < rows; ++row)
        REQUIRE((packed[place * stride + row / 2] >> 4 * (row % 2) & 15) ==
                element<std::uint8_t>(action, i * rows + row));
      const models::Tensor* similarity = trace.find(name + "similarity");
      if (similarity == nullptr) continue;
      REQUIRE(s.at("verified").at(verified) == place);
      for (std::size_t row = 0; row < response; ++row, ++similarities) {
        const std::size_t at = 2 * (verified * response + row);
        const int code = codes.at(at) | codes.at(at + 1) << 8;
        CHECK(code / 65534.0 * 2.0 - 1.0 ==
              Approx(element<float>(*similarity, i * response + row)).margin(2e-5));
      }
      ++verified;
    }
    CHECK(s.at("verified").size() == verified);

    // The commits, done one after the other, are the tokens before each step and at the end.
    std::vector<std::int64_t> tokens = s.at("firstTokens");
    for (std::size_t step = 0; step <= steps; ++step) {
      for (std::size_t row = 0; row < response; ++row)
        REQUIRE(tokens[row] == (step < steps
                                    ? element<std::int64_t>(trace.at("tokens_before_step"),
                                                            (step * batch + i) * response + row)
                                    : element<std::int64_t>(final_tokens, i * response + row)));
      if (step == steps) break;
      const Json& commits = s.at("commits").at(step);
      CHECK(commits.size() > 0);
      for (std::size_t j = 0; j < commits.size(); j += 2)
        tokens.at(commits[j].get<std::size_t>()) = commits[j + 1];
    }
    CHECK(s.at("commits").size() == steps);
  }
  CHECK(similarities > 0);
}

/// Writes a copy of a trace whose tensors went through `change`; false leaves a tensor out.
std::filesystem::path changed(
    const TemporaryFolder& folder, const std::filesystem::path& trace,
    const std::function<bool(models::Tensor& tensor, std::vector<std::byte>& bytes)>& change) {
  const models::SafetensorsFile file(trace);
  programs::SafetensorsWriter writer;
  for (models::Tensor tensor : file.tensors()) {
    std::vector<std::byte> bytes(tensor.bytes.begin(), tensor.bytes.end());
    if (change(tensor, bytes)) writer.add(tensor.name, tensor.type, tensor.shape, bytes);
  }
  const auto path = folder / "changed.safetensors";
  writer.write(path);
  return path;
}

}  // namespace

TEST_CASE("dllm-trace: the page holds the treatments, similarities and commits of the trace",
          "[programs]") {
  const TemporaryFolder folder;
  const auto trace = make_trace(folder, "cache-half-steps-batch2");
  const Json data = data_of(make_page(folder, trace));
  compare(data, models::SafetensorsFile(trace));
  CHECK(data.at("title") == "trace.safetensors");
  CHECK(data.at("texts").empty());
  const Case golden("cache-half-steps-batch2");
  for (dllm_cache::Index i = 0; i < 2; ++i)
    CHECK(data["sequences"][static_cast<std::size_t>(i)].at("promptTokens") ==
          Json(golden.prompt(i)));
}

TEST_CASE("dllm-trace: guided forwards are placed in their steps", "[programs]") {
  const TemporaryFolder folder;
  const auto trace = make_trace(folder, "cfg-interval4");
  const Json data = data_of(make_page(folder, trace));
  compare(data, models::SafetensorsFile(trace));
  const Json& s = data["sequences"][0];
  const std::vector<int> steps = s.at("stepOfForward");
  CHECK(s.at("forwards").get<std::size_t>() == steps.size());
  CHECK(steps.size() > s.at("steps").get<std::size_t>());
  // Steps 0 to 4, and every fourth one, have an unconditional forward behind the conditional one.
  std::vector<int> expected;
  for (int step = 0; step < s.at("steps").get<int>(); ++step)
    expected.insert(expected.end(), step < 5 || step % 4 == 0 ? 2 : 1, step);
  CHECK(steps == expected);
}

TEST_CASE("dllm-trace: sequences of different lengths are all there", "[programs]") {
  const TemporaryFolder folder;
  Json request = Case("cache-kp100-kr7-rho025").request;
  for (const char* key : {"gen_length", "block_length", "steps"}) request[key] = 8;
  request["prompt_ids"] = {{5, 6, 7}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, {42}};
  const auto path = folder.write("request.json", request.dump());
  const auto trace = folder / "trace.safetensors";
  REQUIRE(run_program(DLLM_GENERATE " --quiet --threads 1 --model " +
                      (golden::folder() / "models" / "llada-tiny").string() + " --request " +
                      path.string() + " --trace " + trace.string())
              .code == 0);
  const Json data = data_of(make_page(folder, trace));
  REQUIRE(data.at("sequences").size() == 3);
  for (std::size_t i = 0; i < 3; ++i)
    CHECK(data["sequences"][i].at("promptTokens") == request["prompt_ids"][i]);
}

TEST_CASE("dllm-trace: a vocabulary gives tokens their text, and no name ends the script",
          "[programs]") {
  const TemporaryFolder folder;
  const auto trace = folder / "a<b>.safetensors";
  const std::string records = DLLM_RECORDS "/model";
  REQUIRE(run_program(DLLM_GENERATE " --quiet --model " + records +
                      " --prompt '>get a' --gen-length 8 --threads 1 --trace '" + trace.string() +
                      "'")
              .code == 0);
  const std::string page = make_page(folder, trace, "--vocab " + records);
  const Json data = data_of(page);
  CHECK(data.at("title") == "a<b>.safetensors");
  std::string prompt;
  for (const auto& token : data["sequences"][0].at("promptTokens"))
    prompt += data.at("texts").at(std::to_string(token.get<int>())).get<std::string>();
  CHECK(prompt == ">get a");
  for (const auto& token : data["sequences"][0].at("firstTokens"))
    CHECK(data.at("texts").at(std::to_string(token.get<int>())) == "<mask>");
  const std::size_t at = page.find("id=\"trace\">") + 11;
  CHECK(page.substr(at, page.find("</script>", at) - at).find('<') == std::string::npos);
  for (const char* outside : {"http://", "https://", "src=", "@import"})
    CHECK(page.find(outside) == std::string::npos);
}

TEST_CASE("dllm-trace: damaged and foreign files are refused, naming file and tensor",
          "[programs]") {
  const TemporaryFolder folder;
  const auto refused = [&](const std::filesystem::path& trace, const std::string& part) {
    const auto outcome = run_program(DLLM_TRACE " --trace " + trace.string() + " --out " +
                                     (folder / "page.html").string());
    check_refusal(outcome, "dllm-trace", 1, part);
    CHECK(outcome.output.find(trace.filename().string()) != std::string::npos);
    CHECK_FALSE(std::filesystem::exists(folder / "page.html"));
  };
  refused("/nonexistent.safetensors", "nonexistent");
  refused(golden::folder() / "models" / "llada-tiny" / "model.safetensors", "\"final_tokens\"");
  refused(folder.write("text.safetensors", "this is no trace"), "text.safetensors");

  const auto trace = make_trace(folder, "cache-half-steps-batch2");
  const auto without = [&](const std::string& name) {
    return changed(folder, trace, [&](auto& tensor, auto&) { return tensor.name != name; });
  };
  refused(without("tokens_before_step"), "\"tokens_before_step\"");
  refused(without("step3.layer1.treatment"), "\"step3.layer1.treatment\"");
  refused(without("step1.layer1.selected"), "\"step1.layer1.selected\"");
  const auto altered = [&](const std::string& name, auto change) {
    return changed(folder, trace, [&](models::Tensor& tensor, std::vector<std::byte>& bytes) {
      if (tensor.name == name) change(tensor, bytes);
      return true;
    });
  };
  refused(altered("step2.layer0.treatment", [](auto&, auto& bytes) { bytes[5] = std::byte{6}; }),
          "\"step2.layer0.treatment\": expected treatments 0 to 5, got 6");
  refused(altered("step2.layer1.treatment",
                  [](auto& tensor, auto&) { std::swap(tensor.shape[0], tensor.shape[1]); }),
          "\"step2.layer1.treatment\"");
  refused(
      altered("final_tokens", [](auto& tensor, auto&) { tensor.type = models::TensorType::F64; }),
      "\"final_tokens\": expected I64");
  refused(altered("step1.layer1.selected",
                  [](auto&, auto& bytes) { std::fill_n(bytes.begin(), 8, std::byte{0xFF}); }),
          "\"step1.layer1.selected\"");
  refused(altered("step_of_forward",
                  [](auto&, auto& bytes) { std::fill_n(bytes.begin(), 8, std::byte{0x7F}); }),
          "\"step_of_forward\"");
  refused(altered("prompt_tokens",
                  [](auto& tensor, auto&) {
                    tensor.shape = {1, tensor.shape[0] * tensor.shape[1]};
                  }),
          "\"prompt_tokens\"");
  const auto renamed = [&](const std::string& name, const std::string& to) {
    return altered(name, [&](models::Tensor& tensor, auto&) { tensor.name = to; });
  };
  refused(renamed("step1.layer1.treatment", "step2000000000.layer1.treatment"),
          "\"step1.layer1.treatment\"");
  std::filesystem::resize_file(trace, std::filesystem::file_size(trace) - 8);
  refused(trace, "trace.safetensors");
}

TEST_CASE("dllm-trace: traces from before prompts and steps were written can be read",
          "[programs]") {
  const TemporaryFolder folder;
  const auto trace = make_trace(folder, "cache-half-steps-batch2");
  const auto older = changed(folder, trace, [](auto& tensor, auto&) {
    return tensor.name != "prompt_tokens" && tensor.name != "step_of_forward";
  });
  const Json data = data_of(make_page(folder, older));
  compare(data, models::SafetensorsFile(trace));
  CHECK(data["sequences"][0].at("promptTokens").empty());
}

TEST_CASE("dllm-trace: bad options end with 2, a page that cannot be written with 1",
          "[programs]") {
  const TemporaryFolder folder;
  const auto trace = make_trace(folder, "cache-half-steps-batch2").string();
  const std::string program = DLLM_TRACE " ";
  check_refusal(run_program(program), "dllm-trace", 2, "--trace");
  check_refusal(run_program(program + "--trace " + trace), "dllm-trace", 2, "--out");
  check_refusal(run_program(program + "--trace " + trace + " --out /nonexistent/page.html"),
                "dllm-trace", 1, "nonexistent");
  check_refusal(run_program(program + "--trace " + trace + " --out /dev/null --vocab /nonexistent"),
                "dllm-trace", 1, "vocab.txt");
  CHECK(run_program(program + "--help").code == 0);
  CHECK(run_program(program + "--version").code == 0);
}
