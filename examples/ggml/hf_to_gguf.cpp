// SPDX-License-Identifier: Apache-2.0
// A checkpoint folder of LLaDA or Dream as a GGUF file that llama.cpp's layout and names have.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "gguf_writer.hpp"
#include "programs/text/errors.hpp"

int main(int argc, char** argv) {
  CLI::App app(
      "Writes a checkpoint folder of LLaDA or Dream as a GGUF file.\n"
      "Exit codes: 0 done, 1 a file cannot be used, 2 a bad option.",
      "hf_to_gguf");
  std::string folder, file;
  ggml_type type = GGML_TYPE_F32;
  app.add_option("FOLDER", folder, "config.json and safetensors files")->required();
  app.add_option("OUT.gguf", file, "the file to write")->required();
  const std::map<std::string, ggml_type> types = {{"f32", GGML_TYPE_F32},
                                                  {"bf16", GGML_TYPE_BF16},
                                                  {"q8_0", GGML_TYPE_Q8_0},
                                                  {"q4_k", GGML_TYPE_Q4_K}};
  app.add_option("--type", type, "type of the matrices: f32, bf16, q8_0 or q4_k")
      ->transform(CLI::CheckedTransformer(types));
  bool numbers = false;
  app.add_flag(
      "--token-numbers", numbers,
      "a tokenizer in which the text of token 17 is <17>, for programs of llama.cpp, which\n"
      "refuse a file without one");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return programs::run_program("hf_to_gguf", [&] {
    const auto tokenizer =
        numbers ? ggml_runtime::Tokenizer::Numbers : ggml_runtime::Tokenizer::None;
    std::string line;
    for (const auto& [name, count] : ggml_runtime::write_gguf(folder, file, type, tokenizer))
      line += (line.empty() ? "" : ", ") + std::to_string(count) + " " + name;
    std::printf("%s: tensors: %s\n", file.c_str(), line.c_str());
    return 0;
  });
}
