// SPDX-License-Identifier: Apache-2.0
// Seconds a step of one model through ggml, by layers and by whole steps, for several types of
// weights, beside the library's own layers: uncached and cached, in one run. The model has random
// weights and the shape of bench_generate's; it is written as a checkpoint folder, then as GGUF.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/dllm_cache.hpp"
#include "dllm_cache/models/load_model.hpp"
#include "dllm_cache/models/transformer_runner.hpp"
#include "ggml/ggml_layers.hpp"
#include "ggml/ggml_steps.hpp"
#include "ggml/gguf_writer.hpp"
#include "programs/options/command_line.hpp"
#include "programs/options/threads.hpp"
#include "tests/support/random_checkpoint.hpp"

namespace {

using namespace dllm_cache;
namespace fs = std::filesystem;

constexpr Index steps = 32;  // of a generation, as the mean below has it

struct Rows {
  Index prompt, response, response_interval;
};

struct Options {
  fs::path folder = fs::temp_directory_path() / "dllm_cache_ggml_bench";
  int threads = 1;
  int repetitions = 5;
  std::vector<std::string> only;
};

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

template <class Loop>
double timed_step(Loop& loop) {
  const auto start = std::chrono::steady_clock::now();
  loop.step();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Seconds of an uncached step and of steps of each kind under dLLM-Cache: medians.
template <class Model>
void measure(const std::string& name, Model& model, const Rows& rows, int repetitions) {
  std::vector<std::int32_t> prompt(static_cast<std::size_t>(rows.prompt));
  for (std::size_t i = 0; i < prompt.size(); ++i)
    prompt[i] = static_cast<std::int32_t>(i * 2654435761U % 4096);
  const DecodingOptions options{.response = rows.response, .steps = steps};
  DenoisingLoop<Model> plain(model), cached(model);
  plain.add(prompt, options, NoCache{});
  cached.add(prompt, options,
             DllmCachePolicy{.prompt_interval = 100, .response_interval = rows.response_interval});
  timed_step(plain);  // takes memory
  std::vector<double> uncached, verified, due;
  const double first = timed_step(cached);
  // As many steps of each kind as were asked for; due ones are the rarest.
  for (Index step = 1; static_cast<int>(due.size()) < repetitions && !cached.finished(); ++step) {
    const double seconds = timed_step(cached);
    (step % rows.response_interval == 0 ? due : verified).push_back(seconds);
    if (static_cast<int>(uncached.size()) < repetitions) uncached.push_back(timed_step(plain));
  }
  if (due.empty()) due.push_back(0.0);
  const auto refreshes = static_cast<double>((steps - 1) / rows.response_interval);
  const double mean =
      (first + refreshes * median(due) + (steps - 1 - refreshes) * median(verified)) / steps;
  std::printf("| %s | %td + %td | %.3f s | %.3f s | %.3f s | %.1fx |\n", name.c_str(), rows.prompt,
              rows.response, median(uncached), mean, median(verified), median(uncached) / mean);
  std::fflush(stdout);
}

int run(const Options& options) {
  const fs::path folder = options.folder / "model";
  if (!fs::exists(folder / "model.safetensors")) {
    std::fprintf(stderr, "writing a model with random weights to %s\n", folder.c_str());
    testing::RandomCheckpoint(folder, {{"model_type", "llada"},
                                       {"d_model", 1024},
                                       {"n_heads", 16},
                                       {"n_kv_heads", 16},
                                       {"mlp_hidden_size", 3072},
                                       {"n_layers", 16},
                                       {"vocab_size", 16384},
                                       {"mask_token_id", 16383},
                                       {"rope_theta", 500000.0}});
  }
  const auto wants = [&](const std::string& name) {
    return options.only.empty() ||
           std::find(options.only.begin(), options.only.end(), name) != options.only.end();
  };
  const std::vector<Rows> shapes{{893, 256, 7}, {2016, 32, 8}};
  const auto measure_all = [&](const std::string& name, auto& model) {
    for (const Rows& rows : shapes) measure(name, model, rows, options.repetitions);
  };
  std::printf("| weights | rows | uncached | cached, mean of 32 | verified | gain |\n");
  std::printf("|---|---|---|---|---|---|\n");
  if (wants("own")) {
    models::TransformerRunner own(models::load_model(folder), options.threads);
    measure_all("own float32", own);
  }
  const std::vector<std::pair<std::string, ggml_type>> types = {{"f32", GGML_TYPE_F32},
                                                                {"bf16", GGML_TYPE_BF16},
                                                                {"q8_0", GGML_TYPE_Q8_0},
                                                                {"q4_k", GGML_TYPE_Q4_K}};
  for (const auto& [name, type] : types) {
    if (!wants(name)) continue;
    const fs::path file = options.folder / (name + ".gguf");
    if (!fs::exists(file)) ggml_runtime::write_gguf(folder, file, type);
    const auto opened = std::make_shared<ggml_runtime::GgufFile>(file);
    const ggml_backend_ptr cpu(ggml_backend_cpu_init());
    const bool repack = type != GGML_TYPE_F32;
    {
      ggml_runtime::GgmlModel model(
          ggml_runtime::Weights(
              opened, repack ? ggml_runtime::repacked(cpu.get()) : ggml_runtime::in_place()),
          options.threads, ggml_runtime::AttentionBy::Library);
      measure_all("ggml " + name + ", by layers", model);
    }
    if (type == GGML_TYPE_F32) {
      ggml_runtime::GgmlModel model(ggml_runtime::Weights(opened), options.threads,
                                    ggml_runtime::AttentionBy::Flash);
      measure_all("ggml " + name + ", by layers, ggml's flash", model);
    }
    ggml_runtime::GgmlStepsModel model(opened, "cpu", options.threads);
    measure_all("ggml " + name + ", by steps", model);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Seconds a step through ggml beside the library's own layers", "bench_ggml");
  Options options;
  app.add_option("--folder", options.folder, "where models are written, some 3 GB; kept")
      ->capture_default_str();
  app.add_option("--threads", options.threads, "threads")
      ->check(CLI::Range(1, 512))
      ->capture_default_str();
  app.add_option("--repetitions", options.repetitions, "steps of each kind, at least")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--only", options.only, "of own, f32, bf16, q8_0, q4_k");
  return programs::run_command_line(app, argc, argv, [&] {
    programs::prepare_threads(argv, options.threads);
    return run(options);
  });
}
