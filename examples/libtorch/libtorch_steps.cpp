// SPDX-License-Identifier: Apache-2.0
// LLaDA and Dream in libtorch by plan: whole steps on a device, features included. Prints what
// libtorch_llada does.
#include <CLI/CLI.hpp>

#include "compare_runs.hpp"
#include "device_options.hpp"
#include "programs/options/command_line.hpp"
#include "torch_steps.hpp"

int main(int argc, char** argv) {
  CLI::App app("Answers a request uncached and cached, with libtorch", "libtorch_steps");
  std::string folder, file, device = "cpu", type = "float32";
  app.add_option("folder", folder, "checkpoint folder")->required();
  app.add_option("request", file, "request of dllm-generate")->required();
  app.add_option("--device", device, "cpu, cuda or cuda:N");
  app.add_option("--dtype", type, "float32, bfloat16 or float16");
  return dllm_cache::programs::run_command_line(app, argc, argv, [&] {
    const auto request = torch_runtime::read_request(file.c_str());
    torch_runtime::TorchStepModel model(dllm_cache::models::CheckpointFolder(folder),
                                        torch::Device(device), torch_runtime::type_named(type));
    torch_runtime::compare_runs(model, request);
    return 0;
  });
}
