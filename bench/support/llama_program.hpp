// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <span>
#include <stdexcept>
#include <string>

#include "dllm_cache/base/matrix_view.hpp"

namespace bench {

using dllm_cache::Index;

/// The diffusion program of llama.cpp, `llama-diffusion-cli`, and what it says of its time.
///
/// Files need a tokenizer that numbers tokens (ggml_runtime::Tokenizer::Numbers): then the prompt
/// goes in as token ids, and the answer that comes out can be counted.
class LlamaProgram {
 public:
  /// Throws std::invalid_argument where `program` is no file that can be run.
  explicit LlamaProgram(const std::filesystem::path& program)
      : m_program(std::filesystem::absolute(program)) {
    if (!std::filesystem::is_regular_file(m_program) || access(m_program.c_str(), X_OK) != 0)
      throw std::invalid_argument("--llama " + m_program.string() +
                                  ": expected a program that can be run, llama-diffusion-cli of "
                                  "llama.cpp");
  }

  struct Request {
    std::filesystem::path model;   ///< A GGUF file.
    std::filesystem::path prompt;  ///< A file that is written, with the text of the prompt.
    std::span<const std::int32_t> tokens;
    Index response = 0;
    Index steps = 0;
    int threads = 1;
  };

  /// Runs the program once, on the processor alone, and gives its own mean of seconds a step:
  /// greedily, the whole answer as one block, in the order of confidence.
  ///
  /// Throws std::runtime_error with the end of its output where it ends with another code than 0,
  /// tells of other steps, gives no time or an answer of another length.
  [[nodiscard]] double seconds_a_step(const Request& request) const {
    {
      std::ofstream prompt(request.prompt);
      for (const std::int32_t token : request.tokens) prompt << '<' << token << '>';
      if (!prompt.flush())
        throw std::runtime_error(request.prompt.string() + ": cannot be written");
    }
    const auto rows = std::to_string(static_cast<Index>(request.tokens.size()) + request.response);
    const std::string threads = std::to_string(request.threads);
    const std::string command =
        quoted(m_program) + " -m " + quoted(request.model) + " -f " + quoted(request.prompt) +
        " -ub " + rows + " -b " + rows + " -c " + rows + " -t " + threads + " -tb " + threads +
        " --device none --temp 0 --top-k 1 --diffusion-algorithm 4 --diffusion-steps " +
        std::to_string(request.steps) + " --diffusion-block-length " + rows;
    const std::string output = run(command);
    return understood(output, request);
  }

 private:
  [[noreturn]] void refuse(const std::string& what, const std::string& output) const {
    constexpr std::size_t shown = 400;
    std::string tail = output.substr(output.size() - std::min(output.size(), shown));
    std::replace(tail.begin(), tail.end(), '\r', '\n');  // its progress writes over itself
    throw std::runtime_error(m_program.string() + ": " + what + "; its output ends with: " + tail);
  }

  [[nodiscard]] static std::string quoted(const std::filesystem::path& path) {
    std::string text = "'";
    for (const char letter : path.string())
      text += letter == '\'' ? "'\\''" : std::string(1, letter);
    return text + "'";
  }

  // What a shell command says, which must end with 0.
  [[nodiscard]] std::string run(const std::string& command) const {
    FILE* const pipe = popen(("exec " + command + " 2>&1 </dev/null").c_str(), "r");
    if (pipe == nullptr) throw std::runtime_error(m_program.string() + ": cannot be run");
    std::string output;
    char buffer[4096];
    for (std::size_t got = 0; (got = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;)
      output.append(buffer, got);
    const int status = pclose(pipe);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
      refuse(WIFEXITED(status) ? "ended with code " + std::to_string(WEXITSTATUS(status))
                               : std::string("was ended by a signal"),
             output);
    return output;
  }

  // The seconds a step that an output gives, checked against all else that it gives.
  [[nodiscard]] double understood(const std::string& output, const Request& request) const {
    static const std::regex step("diffusion step: ([0-9]+)/([0-9]+) ");
    static const std::regex time(R"(total time: ([0-9.]+)ms, time per step: ([0-9.]+)ms)");
    static const std::regex token("<[0-9]+>");
    Index steps = 0;
    for (std::sregex_iterator at(output.begin(), output.end(), step), end; at != end; ++at) {
      if (std::stoll((*at)[1]) != steps || std::stoll((*at)[2]) != request.steps)
        refuse("expected \"diffusion step: " + std::to_string(steps) + "/" +
                   std::to_string(request.steps) + "\", got \"" + at->str() + "\"",
               output);
      ++steps;
    }
    if (steps != request.steps)
      refuse("expected " + std::to_string(request.steps) + " lines \"diffusion step\", got " +
                 std::to_string(steps),
             output);
    std::smatch found;
    if (!std::regex_search(output, found, time))
      refuse("expected \"total time: Nms, time per step: Nms\"", output);
    const double total = std::stod(found[1]), each = std::stod(found[2]);
    if (!(each > 0) || std::abs(total / static_cast<double>(steps) - each) > 0.02)
      refuse(
          "expected a time per step that is the total over the steps, got \"" + found.str() + "\"",
          output);
    const std::string answer = found.suffix();
    const auto tokens = std::distance(std::sregex_iterator(answer.begin(), answer.end(), token),
                                      std::sregex_iterator());
    if (tokens != request.response)
      refuse("expected an answer of " + std::to_string(request.response) + " tokens, got " +
                 std::to_string(tokens),
             output);
    return each / 1000;
  }

  std::filesystem::path m_program;
};

}  // namespace bench
