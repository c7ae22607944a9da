// SPDX-License-Identifier: Apache-2.0
#include "programs/options/command_line.hpp"

#include <map>
#include <ostream>

namespace programs {

namespace models = dllm_cache::models;

void declare_gen_length(CLI::App& app, DecodingSettings& settings) {
  app.add_option("--gen-length", settings.gen_length, "Tokens to generate (default 128)")
      ->group("Decoding");
}

void declare_decoding(CLI::App& app, DecodingSettings& s) {
  const auto option = [&](const char* name, auto& field, const char* help) {
    return app.add_option(name, field, help)->group("Decoding");
  };
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

void declare_caching(CLI::App& app, PolicySettings& s) {
  auto* policy =
      app.add_option(
             "--policy", s.policy,
             "Cache policy, or a goal: exact, balanced (default), fastest; list describes them all")
          ->group("Cache");
  app.add_flag_function(
         "--no-cache", [&s](std::int64_t) { s.policy = "none"; }, "The same as --policy none")
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
  option("--recompute-block", s.recompute_block,
         "dllm-cache: recompute the rows of the active block in every step (default false)");
  option("--similarity-threshold", s.similarity_threshold,
         "dllm-cache: leave rows alone whose values are at least this similar (default none)")
      ->transform(CLI::Transformer(std::map<std::string, std::string>{{"none", "inf"}}));
  option("--refresh-interval", s.refresh_interval,
         "dkv, vicinity, changed-rows: steps between full forwards (default 4, never, never)")
      ->transform(interval);
  option("--prefix-look", s.prefix_look, "vicinity: rows before the block (default 16)");
  option("--after-look", s.after_look, "vicinity: rows after the block (default 16)");
  option("--warmup-steps", s.warmup_steps, "vicinity: full forwards at the start (default 4)");
  option("--keep-active", s.keep_active,
         "changed-rows: steps for which a changed row goes on flowing (default 0)");
}

void declare_threads(CLI::App& app, int& threads) {
  app.add_option("--threads", threads, "Threads to compute with")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096));
}

void declare_compute(CLI::App& app, ComputeSettings& settings) {
  declare_threads(app, settings.threads);
  app.add_option("--backend", settings.model.backend,
                 "Matrix products by eigen or onednn (default: onednn where it was built in)")
      ->transform(CLI::CheckedTransformer(std::map<std::string, models::Backend>{
          {"eigen", models::Backend::Eigen}, {"onednn", models::Backend::OneDnn}}));
  app.add_option("--precision", settings.model.precision,
                 "Weights and products in float32 (default) or bf16")
      ->transform(CLI::CheckedTransformer(std::map<std::string, models::Precision>{
          {"float32", models::Precision::Float32}, {"bf16", models::Precision::Bfloat16}}));
  app.add_option("--features", settings.features,
                 "Features stored as float32 (default) or bf16, which halves cache_bytes")
      ->transform(CLI::CheckedTransformer(std::map<std::string, FeatureType>{
          {"float32", FeatureType::Float32}, {"bf16", FeatureType::Bfloat16}}));
}

PolicySettings with_implied_policy(PolicySettings settings) {
  if (!settings.policy &&
      (settings.prompt_interval || settings.response_interval || settings.ratio ||
       settings.refresh_first_layer || settings.recompute_block || settings.similarity_threshold))
    settings.policy = "dllm-cache";
  return settings;
}

void list_policies(std::ostream& out) {
  for (const PolicyEntry& entry : policies()) {
    out << entry.name << "\n    " << entry.description << '\n';
    for (const std::string& option : entry.options) out << "    --" << option << '\n';
  }
}

}  // namespace programs
