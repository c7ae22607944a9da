// SPDX-License-Identifier: Apache-2.0
// Fills gaps: a text on standard input with `_` for every character that is not known, the same
// text without gaps out.
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
  models::TransformerRunner model(models::load_model(folder), models::available_threads());

  // [readme]
  std::vector<std::int32_t> text;
  for (char c = 0; std::cin.get(c);)
    text.push_back(c == '_' ? model.special_tokens().mask
                            : static_cast<std::int32_t>(symbols.find(c)));
  DenoisingLoop loop(model);
  const Index id = loop.add(text, {.response = 0}, balanced_policy());  // nothing behind the text
  loop.run();
  for (const std::int32_t token : loop.sequence(id).tokens())
    std::cout << symbols[static_cast<std::size_t>(token)];
  // [readme]
}
