// SPDX-License-Identifier: Apache-2.0
// The shortest useful program: a model folder in, a prompt on standard input, the answer out.
// [readme]
#include <fstream>
#include <iostream>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/dllm_cache.hpp"
#include "dllm_cache/models/load_model.hpp"

int main(int argc, char** argv) {
  using namespace dllm_cache;
  const std::string folder = argc > 1 ? argv[1] : "examples/records/model";
  std::ifstream vocabulary(folder + "/vocab.txt");  // of this model: one character a token
  std::string symbols;
  for (std::string s; std::getline(vocabulary, s);) symbols += s == "\\n" ? '\n' : s[0];
  std::vector<std::int32_t> prompt;
  for (char c = 0; std::cin.get(c);) prompt.push_back(static_cast<std::int32_t>(symbols.find(c)));

  models::TransformerRunner model(models::load_model(folder), models::available_threads());
  DenoisingLoop loop(model);
  const Index id = loop.add(prompt, {.response = 64, .block_length = 32}, balanced_policy());
  loop.run();
  for (const std::int32_t token : loop.sequence(id).response()) {
    if (model.special_tokens().end_of_text.contains(token)) break;
    std::cout << symbols[static_cast<std::size_t>(token)];
  }
}
// [readme]
