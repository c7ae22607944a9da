// SPDX-License-Identifier: Apache-2.0
#include "programs/options/settings.hpp"

#include <algorithm>

#include "programs/text/errors.hpp"

namespace programs {

namespace d = dllm_cache;

namespace {

template <class Group, class... Fields>
void fill(Group& stronger, const Group& weaker, Fields... fields) {
  const auto one = [&](auto field) {
    if (!(stronger.*field)) stronger.*field = weaker.*field;
  };
  (one(fields), ...);
}

bool has_rule(const DecodingSettings& s) {
  return s.threshold || s.factor || s.entropy_bound || s.tokens_per_step;
}

void require_positive(const char* key, const std::optional<Index>& value) {
  // The library reads 0 as "not given"; somebody who writes 0 means something else.
  if (value && *value < 1)
    throw BadRequest(std::string(key) + " must be at least 1, got " + std::to_string(*value));
}

/// Dream's algorithms: how sure a row is, and which schedule goes with it.
void set_algorithm(d::DecodingOptions& options, const std::string& alg, double eps) {
  options.sampling = d::Sampling::Categorical;
  options.commit = d::TimestepCommit{eps};
  if (alg == "maskgit_plus") {
    options.confidence = d::Confidence::Probability;
  } else if (alg == "topk_margin") {
    options.confidence = d::Confidence::Margin;
  } else if (alg == "entropy") {
    options.confidence = d::Confidence::NegativeEntropy;
  } else if (alg == "origin") {
    options.confidence = d::Confidence::Random;
    options.commit = d::BernoulliCommit{eps};
  } else {
    throw BadRequest("alg must be origin, maskgit_plus, topk_margin or entropy, got \"" + alg +
                     "\"");
  }
}

}  // namespace

Settings merge(const Settings& stronger, const Settings& weaker) {
  Settings merged = stronger;
  DecodingSettings& s = merged.decoding;
  using D = DecodingSettings;
  if (!has_rule(s))
    fill(s, weaker.decoding, &D::threshold, &D::factor, &D::entropy_bound, &D::tokens_per_step,
         &D::eps);
  fill(s, weaker.decoding, &D::gen_length, &D::block_length, &D::steps, &D::temperature, &D::top_p,
       &D::top_k, &D::seed, &D::guidance_scale, &D::guidance_interval, &D::alg, &D::alg_temp,
       &D::early_stop);
  if (!stronger.decoding.alg && !s.remasking) s.remasking = weaker.decoding.remasking;
  using P = PolicySettings;
  fill(merged.caching, weaker.caching, &P::policy, &P::prompt_interval, &P::response_interval,
       &P::ratio, &P::refresh_first_layer, &P::recompute_block, &P::similarity_threshold,
       &P::refresh_interval, &P::prefix_look, &P::after_look, &P::warmup_steps, &P::keep_active);
  return merged;
}

d::DecodingOptions decoding_options(const DecodingSettings& settings, bool dream) {
  d::DecodingOptions options;
  require_positive("gen_length", settings.gen_length);
  require_positive("block_length", settings.block_length);
  require_positive("steps", settings.steps);
  options.response = settings.gen_length.value_or(options.response);
  options.block_length = settings.block_length.value_or(0);
  options.steps = settings.steps.value_or(0);
  options.temperature = settings.temperature.value_or(0.0);
  options.seed = settings.seed.value_or(0);
  options.guidance_scale = settings.guidance_scale.value_or(0.0);
  options.guidance_interval = settings.guidance_interval.value_or(1);
  options.early_stop = settings.early_stop.value_or(false);

  const std::string remasking = settings.remasking.value_or("low_confidence");
  if (remasking == "random")
    options.confidence = d::Confidence::Random;
  else if (remasking != "low_confidence")
    throw BadRequest("remasking must be low_confidence or random, got \"" + remasking + "\"");
  if (settings.remasking && (settings.alg || dream))
    throw BadRequest("remasking belongs to LLaDA, it does not go with alg \"" +
                     settings.alg.value_or("entropy") + "\", got \"" + remasking + "\"");
  if (settings.alg || dream)
    set_algorithm(options, settings.alg.value_or("entropy"), settings.eps.value_or(1e-3));
  else if (settings.eps)
    throw BadRequest("eps belongs to alg, which is not given, got " +
                     std::to_string(*settings.eps));
  options.top_p = settings.top_p.value_or(1.0);
  options.top_k = settings.top_k.value_or(0);
  options.order_temperature = settings.alg_temp.value_or(0.0);

  const int rules = settings.threshold.has_value() + settings.factor.has_value() +
                    settings.entropy_bound.has_value() + settings.tokens_per_step.has_value();
  if (rules > 1)
    throw BadRequest(
        "at most one of threshold, factor, entropy_bound and tokens_per_step may be given");
  if (rules > 0 && settings.eps)
    throw BadRequest(
        "eps belongs to a schedule of steps, it does not go with threshold, factor, "
        "entropy_bound or tokens_per_step, got " +
        std::to_string(*settings.eps));
  if (settings.threshold) options.commit = d::ThresholdCommit{*settings.threshold};
  if (settings.factor) options.commit = d::FactorCommit{*settings.factor};
  if (settings.entropy_bound) options.commit = d::EntropyBoundCommit{*settings.entropy_bound};
  if (settings.tokens_per_step) options.commit = d::FixedCommit{*settings.tokens_per_step};
  return options;
}

}  // namespace programs
