// SPDX-License-Identifier: Apache-2.0
// LLaDA and Dream in libtorch by plan: whole steps on a device, features included. Prints what
// libtorch_layers does.
#include <CLI/CLI.hpp>

#include "device_options.hpp"
#include "programs/options/command_line.hpp"
#include "programs/run/both_ways.hpp"
#include "torch_steps.hpp"

int main(int argc, char** argv) {
  CLI::App app(
      "Answers a request with a LLaDA or Dream in libtorch, a whole step at a time on one device, "
      "without and with the cache.\nExit codes: 0 done, 1 a file cannot be used, 2 a bad option or "
      "request.",
      "libtorch_steps");
  std::string folder, file, device = "cpu", type = "float32";
  app.add_option("MODEL-FOLDER", folder, "checkpoint folder")->required();
  app.add_option("REQUEST.json", file, "as dllm-generate takes it")->required();
  app.add_option("--device", device, "cpu, cuda or cuda:N")->capture_default_str();
  app.add_option("--dtype", type, "float32, bfloat16 or float16: of weights and features")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}))
      ->capture_default_str();
  return programs::run_command_line(app, argc, argv, [&] {
    const programs::Request request = programs::read_request(file);
    torch_runtime::TorchStepModel model(dllm_cache::models::CheckpointFolder(folder),
                                        torch::Device(device), torch_runtime::type_named(type));
    return programs::answer_both_ways(model, request, {.decoder = model.config().decoder});
  });
}
