// SPDX-License-Identifier: Apache-2.0
// LLaDA and Dream in libtorch under the library's denoising loop, by three functions a layer: a
// checkpoint folder and a request of dllm-generate in; the answers, and what the cache saved, out.
#include <cstdio>

#include "programs/run/both_ways.hpp"
#include "torch_model.hpp"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: libtorch_layers MODEL-FOLDER REQUEST.json\n");
    return 2;
  }
  return programs::run_program("libtorch_layers", [&] {
    const programs::Request request = programs::read_request(argv[2]);
    torch_runtime::TorchModel model{dllm_cache::models::CheckpointFolder(argv[1])};
    return programs::answer_both_ways(model, request, {.decoder = model.config().decoder});
  });
}
