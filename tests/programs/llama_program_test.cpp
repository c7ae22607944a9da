// SPDX-License-Identifier: Apache-2.0
// What the benchmark makes of llama.cpp's program: scripts stand in for it.
#include "bench/support/llama_program.hpp"

#include <array>
#include <catch2/catch.hpp>
#include <filesystem>
#include <string>

#include "tests/support/temporary_folder.hpp"

namespace {

namespace fs = std::filesystem;
using dllm_cache::testing::TemporaryFolder;

constexpr const char* steps =
    R"(printf '\rdiffusion step: 0/2 [   ] 0%%\rdiffusion step: 1/2 [= ] 50%%'
)";
constexpr const char* time_line =
    R"(printf '\ntotal time: 24.01ms, time per step: 12.01ms, sampling'
)";
constexpr const char* answer = R"(printf '\n<7><95><0>\n'
)";

// Seconds a step that a script of that body gives for two steps over 2 + 3 rows.
double seconds(const std::string& body) {
  const TemporaryFolder folder;
  const fs::path script = folder.write("it's a program", "#!/bin/sh\n" + body);
  fs::permissions(script, fs::perms::owner_all);
  constexpr std::array<std::int32_t, 2> prompt = {17, 4};
  return bench::LlamaProgram(script).seconds_a_step({.model = folder / "a model",
                                                     .prompt = folder / "prompt",
                                                     .tokens = prompt,
                                                     .response = 3,
                                                     .steps = 2,
                                                     .threads = 4});
}
void check_refused(const std::string& body, const std::string& part) {
  CHECK_THROWS_WITH(seconds(body), Catch::Contains("it's a program: ") && Catch::Contains(part));
}

}  // namespace

TEST_CASE("llama.cpp's program: its seconds a step are read", "[llama]") {
  CHECK(seconds(std::string(steps) + time_line + answer) == Approx(0.01201));
}

TEST_CASE("llama.cpp's program: it gets the model, the tokens and the shape", "[llama]") {
  CHECK(
      seconds(std::string(
                  "test \"$1 $3\" = '-m -f' && test \"$(cat \"$4\")\" = '<17><4>' || exit 9\n"
                  "case \"$2\" in *'/a model') ;; *) exit 8;; esac\n"
                  "case \"$*\" in *' -ub 5 -b 5 -c 5 -t 4 -tb 4 '*) ;; *) exit 7;; esac\n"
                  "case \"$*\" in *'-steps 2 --diffusion-block-length 5') ;; *) exit 6;; esac\n") +
              steps + time_line + answer) == Approx(0.01201));
}

TEST_CASE("llama.cpp's program: what is not understood is refused", "[llama]") {
  const std::string all = std::string(steps) + time_line + answer;
  check_refused("echo no such model >&2\nexit 1\n",
                "ended with code 1; its output ends with: no such");
  check_refused(all + "kill -9 $$\n", "was ended by a signal");
  check_refused(std::string(time_line) + answer, "expected 2 lines \"diffusion step\", got 0");
  check_refused("printf 'diffusion step: 0/9 ['\n" + all, "expected \"diffusion step: 0/2\"");
  check_refused("printf 'diffusion step: 0/2 ['\n" + all, "expected \"diffusion step: 1/2\"");
  check_refused(std::string(steps) + answer, "expected \"total time");
  check_refused(std::string(steps) + "echo total time: 24.00ms, time per step: 2.00ms\n" + answer,
                "total over the steps");
  check_refused(std::string(steps) + time_line + "echo '<7><8>'\n", "answer of 3 tokens, got 2");
}

TEST_CASE("llama.cpp's program: a file that cannot be run is refused", "[llama]") {
  const TemporaryFolder folder;
  for (const fs::path& file : {folder.path(), folder / "none", folder.write("text", "a text")})
    CHECK_THROWS_WITH(bench::LlamaProgram(file), Catch::Contains("program that can be run"));
}
