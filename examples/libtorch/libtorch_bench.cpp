// SPDX-License-Identifier: Apache-2.0
// Seconds a step of a model of a given shape with random weights, by plan in libtorch: uncached and
// under two policies. The default shape is LLaDA-8B's.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "device_options.hpp"
#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/dllm_cache.hpp"
#include "programs/options/command_line.hpp"
#include "torch_steps.hpp"

namespace {

using namespace dllm_cache;

// The mean of steps of all kinds but the first one. Wanted logits come down at the end of every
// step, so the clock sees all of it.
double mean_step(torch_runtime::TorchStepModel& model, Index prompt, Index response, Index steps,
                 const AnyPolicy& policy) {
  DenoisingLoop<torch_runtime::TorchStepModel> loop(model);
  loop.add(std::vector<std::int32_t>(static_cast<std::size_t>(prompt), 1),
           {.response = response, .block_length = std::min<Index>(32, response)}, policy);
  loop.step();  // a plain forward in any case, and the first use of memory
  Index done = 0;
  const auto start = std::chrono::steady_clock::now();
  for (; done < steps && !loop.finished(); ++done) loop.step();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return seconds.count() / static_cast<double>(std::max<Index>(done, 1));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Seconds a step by plan in libtorch, with random weights", "libtorch_bench");
  models::TransformerConfig config;
  config.layers = 32;
  config.width = 4096;
  config.heads.heads = 32;
  config.feed_forward = 12288;
  config.vocabulary = 126464;
  Index steps = 32;
  std::string device = "cpu", type = "float32";
  std::vector<Index> rows{893, 256, 2016, 32};
  app.add_option("--layers", config.layers)->check(CLI::PositiveNumber);
  app.add_option("--width", config.width)->check(CLI::PositiveNumber);
  app.add_option("--heads", config.heads.heads)->check(CLI::PositiveNumber);
  app.add_option("--ffn", config.feed_forward)->check(CLI::PositiveNumber);
  app.add_option("--vocab", config.vocabulary)->check(CLI::Range(4, 1 << 30));
  app.add_option("--steps", steps, "steps timed")->check(CLI::PositiveNumber);
  app.add_option("--rows", rows, "prompt and response rows, in pairs");
  app.add_option("--device", device, "cpu, cuda or cuda:N");
  app.add_option("--dtype", type, "float32, bfloat16 or float16");
  return programs::run_command_line(app, argc, argv, [&] {
    if (config.width % (2 * config.heads.heads) != 0 || rows.size() % 2 != 0)
      throw std::invalid_argument("--width must be an even multiple of --heads; --rows are pairs");
    config.heads.kv_heads = config.heads.heads;
    config.heads.head_dim = config.width / config.heads.heads;
    config.special.mask = static_cast<std::int32_t>(config.vocabulary - 1);
    torch_runtime::TorchStepModel model(config, torch::Device(device),
                                        torch_runtime::type_named(type));
    for (std::size_t i = 0; i < rows.size(); i += 2) {
      const auto mean = [&](const AnyPolicy& policy) {
        return mean_step(model, rows[i], rows[i + 1], steps, policy);
      };
      BlockVerifyPolicy verify = balanced_policy();
      verify.similarity_threshold = no_similarity_threshold;  // saves nothing by plan
      const double plain = mean(NoCache{});
      const double cached =
          mean(DllmCachePolicy{.prompt_interval = 100, .response_interval = 7, .ratio = 0.25});
      const double block = mean(verify);
      std::printf(
          "%td + %td rows: uncached %.6f s, dllm-cache %.6f s (%.2f), block-verify %.6f s (%.2f)\n",
          rows[i], rows[i + 1], plain, cached, plain / cached, block, plain / block);
    }
    return 0;
  });
}
