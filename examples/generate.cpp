// SPDX-License-Identifier: Apache-2.0
// dllm-generate: a checkpoint folder and a request in, answers and their cost out.
#include <CLI/CLI.hpp>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "dllm_cache/models/load_model.hpp"
#include "dllm_cache/version.hpp"
#include "support/errors.hpp"
#include "support/generation.hpp"
#include "support/progress.hpp"
#include "support/vocabulary.hpp"

namespace {

using namespace programs;
namespace models = dllm_cache::models;

struct Options {
  std::string model;
  std::string request;
  std::string prompt;
  std::string prompt_file;
  std::string json;
  std::string trace;
  int threads = models::available_threads();
  models::ComputeOptions compute;
  FeatureType features = FeatureType::Float32;
  bool no_cache = false;
  bool quiet = false;
  Settings settings;
};

void declare_decoding(CLI::App& app, DecodingSettings& s) {
  const auto option = [&](const char* name, auto& field, const char* help) {
    return app.add_option(name, field, help)->group("Decoding");
  };
  option("--gen-length", s.gen_length, "Tokens to generate (default 128)");
  option("--block-length", s.block_length,
         "Tokens a block, decoded block after block (default: gen-length)");
  option("--steps", s.steps, "Denoising steps in all, for counted schedules (default: gen-length)");
  option("--temperature", s.temperature,
         "Randomness of tokens: Gumbel noise for LLaDA, categorical for Dream (default 0: none)");
  option("--top-p", s.top_p, "Dream: draw among the likeliest tokens of this share (default 1)");
  option("--top-k", s.top_k, "Dream: draw among this many tokens (default 0: all)");
  option("--seed", s.seed, "Seed of all random numbers (default 0)");
  option("--remasking", s.remasking,
         "LLaDA: which tokens are committed first, low_confidence (default) or random");
  option("--alg", s.alg,
         "Dream's algorithm: origin, maskgit_plus, topk_margin or entropy (its default here)");
  option("--eps", s.eps, "Dream: last time of the schedule (default 0.001)");
  option("--alg-temp", s.alg_temp, "Randomness of the order of commits (default 0: none)");
  auto* threshold =
      option("--threshold", s.threshold,
             "Parallel decoding: commit every token at least this sure, and the best");
  auto* factor = option("--factor", s.factor,
                        "Parallel decoding: the largest n with (n + 1) (1 - confidence) < factor");
  auto* bound = option("--entropy-bound", s.entropy_bound,
                       "Parallel decoding: tokens whose entropies add up to this at most (nats)");
  auto* fixed = option("--tokens-per-step", s.tokens_per_step, "Commit this many tokens a step");
  threshold->excludes(factor)->excludes(bound)->excludes(fixed);
  factor->excludes(bound)->excludes(fixed);
  bound->excludes(fixed);
  option("--cfg-scale", s.guidance_scale, "Strength of classifier-free guidance (default 0: none)");
  option("--guidance-interval", s.guidance_interval,
         "Steps between refreshes of the guidance residual (default 1)");
  app.add_flag_function(
         "--early-stop", [&s](std::int64_t) { s.early_stop = true; },
         "End when a finished block holds end-of-text (default: off)")
      ->group("Decoding");
}

void declare_caching(CLI::App& app, Options& options) {
  PolicySettings& s = options.settings.caching;
  auto* policy = app.add_option("--policy", s.policy,
                                "Cache policy (default dllm-cache); list describes them all")
                     ->group("Cache");
  app.add_flag("--no-cache", options.no_cache, "The same as --policy none")
      ->group("Cache")
      ->excludes(policy);
  const auto interval = CLI::Transformer(
      std::map<std::string, std::string>{{"never", std::to_string(dllm_cache::never)}});
  const auto option = [&](const char* name, auto& field, const char* help) {
    return app.add_option(name, field, help)->group("Cache");
  };
  option("--prompt-interval", s.prompt_interval,
         "dllm-cache: steps between prompt refreshes, K_p (default 100; or never)")
      ->transform(interval);
  option("--response-interval", s.response_interval,
         "dllm-cache: steps between response refreshes, K_r (default 7; or never)")
      ->transform(interval);
  option("--ratio", s.ratio,
         "dllm-cache: share of response rows recomputed in between (default 0.25; 0: none)");
  option("--refresh-first-layer", s.refresh_first_layer,
         "dllm-cache: recompute all flowing rows in layer 0 (default true)");
  option("--refresh-interval", s.refresh_interval,
         "dkv, vicinity, changed-rows: steps between full forwards (default 4, never, never)")
      ->transform(interval);
  option("--prefix-look", s.prefix_look, "vicinity: rows before the block (default 16)");
  option("--after-look", s.after_look, "vicinity: rows after the block (default 16)");
  option("--warmup-steps", s.warmup_steps, "vicinity: full forwards at the start (default 4)");
  option("--keep-active", s.keep_active,
         "changed-rows: steps for which a changed row goes on flowing (default 0)");
}

void declare(CLI::App& app, Options& options) {
  app.set_version_flag("--version", std::string(dllm_cache::version));
  app.add_option("--model", options.model,
                 "Checkpoint folder: config.json and model.safetensors, or its shards with their "
                 "index (required)");
  auto* request =
      app.add_option("--request", options.request,
                     "JSON file with prompt_ids (a list of prompts of any lengths) and, "
                     "optionally, the settings below; an option beats the request");
  auto* prompt =
      app.add_option("--prompt", options.prompt, "A prompt as text, for models with a vocab.txt");
  auto* prompt_file =
      app.add_option("--prompt-file", options.prompt_file, "The same, read from a file");
  prompt->excludes(request)->excludes(prompt_file);
  prompt_file->excludes(request);
  app.add_option("--json", options.json,
                 "Write tokens, steps, forwards, operations, rows, cache_bytes and seconds to this "
                 "file (- for standard output)");
  app.add_option("--trace", options.trace,
                 "Write what happened to every row in every step and layer to this safetensors "
                 "file: final_tokens, tokens_before_step, stepN.layerL.selected, .similarity and "
                 ".treatment (0 absent, 1 reused, 2 verified, 3 recomputed)");
  app.add_option("--threads", options.threads, "Threads to compute with")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096));
  app.add_option("--backend", options.compute.backend,
                 "Matrix products by eigen or onednn (default: onednn where it was built in)")
      ->transform(CLI::CheckedTransformer(std::map<std::string, models::Backend>{
          {"eigen", models::Backend::Eigen}, {"onednn", models::Backend::OneDnn}}));
  app.add_option("--precision", options.compute.precision,
                 "Weights and products in float32 (default) or bf16")
      ->transform(CLI::CheckedTransformer(std::map<std::string, models::Precision>{
          {"float32", models::Precision::Float32}, {"bf16", models::Precision::Bfloat16}}));
  app.add_option("--features", options.features,
                 "Features stored as float32 (default) or bf16, which halves cache_bytes")
      ->transform(CLI::CheckedTransformer(std::map<std::string, FeatureType>{
          {"float32", FeatureType::Float32}, {"bf16", FeatureType::Bfloat16}}));
  app.add_flag("--quiet", options.quiet, "No progress bar and no summary");

  declare_decoding(app, options.settings.decoding);
  declare_caching(app, options);
}

/// What the options say of the policy: naming a setting of dllm-cache turns it on.
Settings option_settings(const Options& options) {
  Settings settings = options.settings;
  PolicySettings& caching = settings.caching;
  if (options.no_cache)
    caching.policy = "none";
  else if (!caching.policy && (caching.prompt_interval || caching.response_interval ||
                               caching.ratio || caching.refresh_first_layer))
    caching.policy = "dllm-cache";
  return settings;
}

void list_policies() {
  for (const PolicyEntry& entry : policies()) {
    std::cout << entry.name << "\n    " << entry.description << '\n';
    for (const std::string& option : entry.options) std::cout << "    --" << option << '\n';
  }
}

std::string prompt_text(const Options& options) {
  if (options.prompt_file.empty()) return options.prompt;
  std::ifstream file(options.prompt_file, std::ios::binary);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf()))
    throw std::runtime_error(options.prompt_file + ": cannot be read");
  return text.str();
}

nlohmann::ordered_json to_json(const GenerationResult& result) {
  return {{"tokens", result.tokens},
          {"steps", result.steps},
          {"forwards", result.forwards},
          {"operations", static_cast<std::uint64_t>(result.operations)},
          {"rows",
           {{"flow", result.rows.flow},
            {"value", result.rows.value},
            {"update", result.rows.update},
            {"head", result.rows.head}}},
          {"cache_bytes", result.cache_bytes},
          {"seconds", result.seconds}};
}

void write_json(const std::string& path, const GenerationResult& result) {
  const std::string text = to_json(result).dump() + "\n";
  if (path == "-") {
    std::cout << text << std::flush;
    return;
  }
  std::ofstream file(path, std::ios::binary);
  if (!(file << text << std::flush)) throw std::runtime_error(path + ": cannot be written");
}

void print_answers(const GenerationResult& result, const Vocabulary* vocabulary,
                   std::int32_t end_of_text) {
  for (const auto& tokens : result.tokens) {
    if (vocabulary != nullptr) {
      std::cout << vocabulary->decode(tokens, end_of_text) << '\n';
      continue;
    }
    for (std::size_t i = 0; i < tokens.size(); ++i) std::cout << (i > 0 ? " " : "") << tokens[i];
    std::cout << '\n';
  }
}

int run(const Options& options) {
  if (options.settings.caching.policy == "list") {
    list_policies();
    return 0;
  }
  if (options.model.empty()) throw BadRequest("--model is required");
  if (options.request.empty() && options.prompt.empty() && options.prompt_file.empty())
    throw BadRequest("one of --request, --prompt and --prompt-file must be given");
  Request request;
  if (!options.request.empty()) request = read_request(options.request);
  request.settings = merge(option_settings(options), request.settings);
  check_policy_options(options.settings.caching,
                       request.settings.caching.policy.value_or("dllm-cache"));
  const Index steps = planned_steps(request);
  static_cast<void>(
      make_policy(request.settings.caching));  // refuse before a large model is opened

  const auto model = models::load_model(options.model, options.compute);
  std::optional<Vocabulary> vocabulary;
  if (Vocabulary::exists(options.model)) vocabulary.emplace(options.model);
  if (options.request.empty()) {
    if (!vocabulary)
      throw BadRequest("--prompt needs a model with a vocab.txt, " + options.model +
                       " has none: use --request");
    request.prompts.push_back(vocabulary->encode(prompt_text(options)));
  }

  models::TransformerRunner runner(model, options.threads);
  Trace trace;
  Progress progress(!options.quiet);
  const GenerationResult result = generate(
      runner, request, options.trace.empty() ? nullptr : &trace,
      [&](const dllm_cache::StepReport& report) {
        const auto left =
            std::count(report.tokens.begin(), report.tokens.end(), model->config.special.mask);
        progress.show(report.step + 1, steps,
                      "steps, sequence " + std::to_string(report.id) + ": " + std::to_string(left) +
                          " tokens masked");
        return true;
      },
      options.features);
  if (!options.trace.empty()) trace.write(options.trace);
  if (!options.json.empty()) write_json(options.json, result);
  if (options.json != "-" && !options.quiet) {
    print_answers(result, vocabulary ? &*vocabulary : nullptr, model->config.special.end_of_text);
    std::fprintf(stderr, "%td steps, %td forwards, %.3f s, %.3g operations, %td rows recomputed\n",
                 result.steps, result.forwards, result.seconds, result.operations,
                 result.rows.update);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Generates text with a masked diffusion language model (LLaDA, Dream), with a feature "
      "cache.\n"
      "Exit codes: 0 done, 1 a file cannot be used, 2 a bad option or request.",
      "dllm-generate");
  Options options;
  declare(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    return app.exit(help);
  } catch (const CLI::CallForVersion& version) {
    return app.exit(version);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "dllm-generate: %s\n", error.what());
    return 2;
  }
  return run_program("dllm-generate", [&] { return run(options); });
}
