// SPDX-License-Identifier: Apache-2.0
// Feeds every target with the files of its corpus folder: fuzz_replay CORPUS, or one file alone:
// fuzz_replay TARGET FILE. An input that fails ends the program, after its name was printed.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include "tests/fuzz/targets.hpp"

namespace {

using namespace dllm_cache::fuzz;

void replay(const Target& target, const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  must(file.is_open(), "the file can be read");
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  std::printf("%s\n", path.c_str());
  std::fflush(stdout);
  target.run({reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()});
}

int run(int count, char** arguments) {
  for (const Target& target : targets) {
    if (count == 3 && target.name == arguments[1]) replay(target, arguments[2]);
    if (count != 2) continue;
    std::vector<std::filesystem::path> files;
    for (const auto& entry :
         std::filesystem::directory_iterator(std::filesystem::path(arguments[1]) / target.name))
      files.push_back(entry.path());
    must(!files.empty(), "each target has a corpus");
    std::sort(files.begin(), files.end());
    for (const auto& file : files) replay(target, file);
  }
  return count == 2 || count == 3 ? 0 : 2;
}

}  // namespace

int main(int count, char** arguments) {
  try {
    return run(count, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fuzz_replay: not documented: %s\n", error.what());
    return 1;
  }
}
