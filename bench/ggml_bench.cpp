// SPDX-License-Identifier: Apache-2.0
// Seconds a step of one model through ggml, by layers and by whole steps, for several types of
// weights, beside the library's own layers: uncached and cached, in one run; with --llama beside
// llama.cpp's diffusion program, too, on the same files. The model has random weights and the shape
// of bench_generate's; it is written as a checkpoint folder, then as GGUF.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "bench/support/llama_program.hpp"
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

struct Rows {
  Index prompt, response, response_interval;

  // "893 + 256"
  [[nodiscard]] std::string text() const {
    return std::to_string(prompt) + " + " + std::to_string(response);
  }
  // The same tokens for every way of computing.
  [[nodiscard]] std::vector<std::int32_t> prompt_tokens() const {
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(prompt));
    for (std::size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = static_cast<std::int32_t>(i * 2654435761U % 4096);
    return tokens;
  }
};

const std::vector<Rows> usual_rows{{893, 256, 7}, {2016, 32, 8}};

// "893+256/7", where the last is 8 if it is left out; throws std::invalid_argument.
Rows parse_rows(const std::string& text) {
  static const std::regex form(
      "([1-9][0-9]{0,5})\\+([1-9][0-9]{0,5})(?:/([2-9]|[1-9][0-9]{1,5}))?");
  std::smatch found;
  if (!std::regex_match(text, found, form))
    throw std::invalid_argument(
        "--rows: expected PROMPT+RESPONSE or PROMPT+RESPONSE/INTERVAL, got " + text);
  return {std::stol(found[1]), std::stol(found[2]), found[3].matched ? std::stol(found[3]) : 8};
}

struct Options {
  fs::path folder = fs::temp_directory_path() / "dllm_cache_ggml_bench";
  int threads = 1;
  int repetitions = 5;
  Index steps = 32;
  std::vector<std::string> only;
  std::vector<std::string> rows;
  fs::path llama;
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

// Prints the table, and runs llama.cpp's program for it.
class Table {
 public:
  explicit Table(const Options& options) : m_options(options) {
    for (const std::string& text : options.rows) m_rows.push_back(parse_rows(text));
    if (m_rows.empty()) m_rows = usual_rows;
    for (const Rows& rows : m_rows)
      if (options.steps > rows.response)
        throw std::invalid_argument("--steps: expected no more than the " +
                                    std::to_string(rows.response) + " rows of a response, got " +
                                    std::to_string(options.steps));
    if (!options.llama.empty()) m_llama.emplace(options.llama);
    std::printf("| weights | rows | uncached | cached, mean of %td | verified | gain |%s\n",
                options.steps, m_llama ? " llama.cpp / uncached | llama.cpp / cached |" : "");
    std::printf("|---|---|---|---|---|---|%s\n", m_llama ? "---|---|" : "");
    std::fflush(stdout);
  }

  [[nodiscard]] bool has_llama() const { return m_llama.has_value(); }

  // Rows of llama.cpp for the file of that type of weights; before those of `measure`.
  void measure_llama(const std::string& type, const fs::path& file) {
    m_beside.clear();
    for (const Rows& rows : m_rows) {
      const auto tokens = rows.prompt_tokens();
      std::vector<double> seconds;
      for (int i = 0; i < m_options.repetitions; ++i)
        seconds.push_back(m_llama->seconds_a_step({.model = file,
                                                   .prompt = m_options.folder / "prompt.txt",
                                                   .tokens = tokens,
                                                   .response = rows.response,
                                                   .steps = m_options.steps,
                                                   .threads = m_options.threads}));
      m_beside.push_back(median(seconds));
      std::printf("| llama.cpp %s | %s | %.3f s | | | | | |\n", type.c_str(), rows.text().c_str(),
                  m_beside.back());
      std::fflush(stdout);
    }
  }

  template <class Model>
  void measure(const std::string& name, Model& model) {
    for (std::size_t i = 0; i < m_rows.size(); ++i) {
      const Seconds seconds = measure(model, m_rows[i]);
      std::printf("| %s | %s | %.3f s | %.3f s | %.3f s | %.1fx |", name.c_str(),
                  m_rows[i].text().c_str(), seconds.uncached, seconds.mean, seconds.verified,
                  seconds.uncached / seconds.mean);
      if (m_llama)
        std::printf(" %.2f | %.1f |", m_beside[i] / seconds.uncached, m_beside[i] / seconds.mean);
      std::printf("\n");
      std::fflush(stdout);
    }
  }

 private:
  struct Seconds {
    double uncached, mean, verified;
  };

  // Seconds of an uncached step and of steps of each kind under dLLM-Cache: medians.
  template <class Model>
  [[nodiscard]] Seconds measure(Model& model, const Rows& rows) const {
    const auto prompt = rows.prompt_tokens();
    const Index steps = m_options.steps;
    const DecodingOptions options{.response = rows.response, .steps = steps};
    DenoisingLoop<Model> plain(model), cached(model);
    plain.add(prompt, options, NoCache{});
    cached.add(
        prompt, options,
        DllmCachePolicy{.prompt_interval = 100, .response_interval = rows.response_interval});
    timed_step(plain);  // takes memory
    std::vector<double> uncached, verified, due;
    const double first = timed_step(cached);
    // As many steps of each kind as were asked for; due ones are the rarest.
    const auto enough = [&](const std::vector<double>& kind) {
      return static_cast<int>(kind.size()) >= m_options.repetitions;
    };
    for (Index step = 1; !enough(due) && !cached.finished(); ++step) {
      const double seconds = timed_step(cached);
      (step % rows.response_interval == 0 ? due : verified).push_back(seconds);
      if (!enough(uncached) && !plain.finished()) uncached.push_back(timed_step(plain));
    }
    const auto refreshes = static_cast<double>((steps - 1) / rows.response_interval);
    const auto rest = static_cast<double>(steps - 1) - refreshes;
    const double mean = (first + (refreshes > 0 ? refreshes * median(due) : 0.0) +
                         (rest > 0 ? rest * median(verified) : 0.0)) /
                        static_cast<double>(steps);
    return {median(uncached), mean, median(verified)};
  }

  const Options& m_options;
  std::vector<Rows> m_rows;
  std::optional<bench::LlamaProgram> m_llama;
  std::vector<double> m_beside;  // llama.cpp's seconds a step, for each of m_rows
};

int run(const Options& options) {
  Table table(options);
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
  const std::vector<std::pair<std::string, ggml_type>> types = {{"f32", GGML_TYPE_F32},
                                                                {"bf16", GGML_TYPE_BF16},
                                                                {"q8_0", GGML_TYPE_Q8_0},
                                                                {"q4_k", GGML_TYPE_Q4_K}};
  for (const auto& [name, type] : types) {
    // The library's own layers need no file; llama.cpp beside them reads that of float32.
    const bool own = type == GGML_TYPE_F32 && wants("own");
    const bool beside = table.has_llama() && (own || wants(name));
    const fs::path file = options.folder / (name + "-numbers.gguf");
    if ((beside || wants(name)) && !fs::exists(file))
      ggml_runtime::write_gguf(folder, file, type, ggml_runtime::Tokenizer::Numbers);
    if (beside) table.measure_llama(name, file);
    if (own) {
      models::TransformerRunner runner(models::load_model(folder), options.threads);
      table.measure("own float32", runner);
    }
    if (!wants(name)) continue;
    const auto opened = std::make_shared<ggml_runtime::GgufFile>(file);
    const ggml_backend_ptr cpu(ggml_backend_cpu_init());
    const bool repack = type != GGML_TYPE_F32;
    {
      ggml_runtime::GgmlModel model(
          ggml_runtime::Weights(
              opened, repack ? ggml_runtime::repacked(cpu.get()) : ggml_runtime::in_place()),
          options.threads, ggml_runtime::AttentionBy::Library);
      table.measure("ggml " + name + ", by layers", model);
    }
    if (type == GGML_TYPE_F32) {
      ggml_runtime::GgmlModel model(ggml_runtime::Weights(opened), options.threads,
                                    ggml_runtime::AttentionBy::Flash);
      table.measure("ggml " + name + ", by layers, ggml's flash", model);
    }
    ggml_runtime::GgmlStepsModel model(opened, "cpu", options.threads);
    table.measure("ggml " + name + ", by steps", model);
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
  app.add_option("--steps", options.steps, "of a generation")
      ->check(CLI::Range(3, 1000))
      ->capture_default_str();
  app.add_option("--only", options.only, "of own, f32, bf16, q8_0, q4_k");
  app.add_option("--rows", options.rows,
                 "PROMPT+RESPONSE or PROMPT+RESPONSE/INTERVAL of refreshes (default: 893+256/7 and "
                 "2016+32/8)");
  app.add_option("--llama", options.llama,
                 "llama.cpp's llama-diffusion-cli, to stand beside it on the same files");
  return programs::run_command_line(app, argc, argv, [&] {
    programs::prepare_threads(argv, options.threads);
    return run(options);
  });
}
