// SPDX-License-Identifier: Apache-2.0
// Part of a prompt are rows that no text stands for, as in multimodal models (LLaDA-V, MMaDA): an
// encoder computes them, the loop and the cache treat them like any other rows. The encoder here
// gives the embeddings of known tokens, so that the answer must be that of the plain prompt.
#include <cstdio>
#include <vector>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/dllm_cache.hpp"
#include "dllm_cache/models/load_model.hpp"

using namespace dllm_cache;
using Tokens = std::vector<std::int32_t>;

namespace {

// What stands for a vision tower and its projector: rows [image rows, width].
RowMajorMatrix<float> encode(const models::TransformerRunner& model, const Tokens& image) {
  RowMajorMatrix<float> rows(static_cast<Index>(image.size()), model.shape().width);
  model.embed(image, as_view(rows));
  return rows;
}

Tokens answer(models::TransformerRunner& model, const Tokens& prompt, double guidance) {
  DenoisingLoop loop(model);
  const Index id = loop.add(prompt, {.response = 24, .block_length = 8, .guidance_scale = guidance},
                            balanced_policy());
  loop.run();
  const auto response = loop.sequence(id).response();
  return {response.begin(), response.end()};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fputs("usage: image_rows MODEL_FOLDER\n", stderr);
    return 2;
  }
  models::TransformerRunner model(models::load_model(argv[1]), models::available_threads());
  const Tokens before{5, 9, 33}, image{21, 7, 60, 2}, after{18, 44, 3, 31, 12};

  // [readme]
  // Tokens from vocabulary() on name the rows, in their order.
  const RowMajorMatrix<float> rows = encode(model, image);  // must live as long as it is used
  model.set_more_embeddings(as_view(rows));
  Tokens prompt = before;
  for (Index i = 0; i < rows.rows(); ++i)
    prompt.push_back(static_cast<std::int32_t>(model.vocabulary() + i));
  prompt.insert(prompt.end(), after.begin(), after.end());
  // [readme]

  Tokens plain = before;
  plain.insert(plain.end(), image.begin(), image.end());
  plain.insert(plain.end(), after.begin(), after.end());
  for (const double guidance : {0.0, 1.5}) {
    const Tokens with_image = answer(model, prompt, guidance);
    if (with_image != answer(model, plain, guidance)) {
      std::fprintf(stderr, "image_rows: another answer than the plain prompt's\n");
      return 1;
    }
    for (const std::int32_t token : with_image) std::printf("%d ", token);
    std::printf("(guidance %.1f)\n", guidance);
  }
}
