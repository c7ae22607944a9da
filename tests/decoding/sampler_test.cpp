// SPDX-License-Identifier: Apache-2.0
#include "dllm_cache/decoding/sampler.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "tests/support/exact_refusal.hpp"
#include "tests/support/random_numbers.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;
using Catch::Contains;

namespace {

constexpr float infinite = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr double tolerance = 1e-12;  // sums of at most 100 doubles, and the exponential

// What the two references do, said plainly: probabilities are cut and divided again after each
// step, noise is multiplied on in the form in which LLaDA writes it.
Prediction naive(std::vector<float> logits, const SamplingRule& rule, const RandomKey& key) {
  using Real = long double;
  const std::size_t size = logits.size();
  if (rule.excluded_token >= 0 && rule.excluded_token < static_cast<std::int32_t>(size))
    logits[static_cast<std::size_t>(rule.excluded_token)] = -infinite;
  auto highest = static_cast<Real>(-infinite);
  for (float& logit : logits) {
    if (std::isnan(logit)) logit = -infinite;
    highest = std::max(highest, static_cast<Real>(logit));
  }
  const bool categorical = rule.sampling == Sampling::Categorical;
  std::vector<Real> weight(size);
  for (std::size_t i = 0; i < size; ++i) {
    Real score = static_cast<Real>(logits[i]) - highest;
    if (categorical && rule.temperature > 0.0) score /= static_cast<Real>(rule.temperature);
    weight[i] = std::exp(score);
  }
  const auto normalise = [&] {
    const Real sum = std::accumulate(weight.begin(), weight.end(), Real{0});
    for (Real& w : weight) w /= sum;
  };
  normalise();
  std::vector<std::size_t> order(size);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return weight[a] > weight[b]; });
  if (categorical && rule.top_p < 1.0) {
    Real before = 0;
    for (const std::size_t token : order) {
      const Real w = weight[token];
      if (before > static_cast<Real>(rule.top_p)) weight[token] = 0;
      before += w;
    }
    normalise();
  }
  if (categorical && rule.top_k > 0 && rule.top_k < static_cast<Index>(size)) {
    const Real least = weight[order[static_cast<std::size_t>(rule.top_k - 1)]];
    for (Real& w : weight)
      if (w < least) w = 0;
    normalise();
  }

  Prediction answer{.row = 3, .token = static_cast<std::int32_t>(order[0])};
  if (rule.temperature > 0.0) {
    Real best = -1;
    const Real power = categorical ? 1 : static_cast<Real>(rule.temperature);
    for (std::size_t i = 0; i < size; ++i) {
      const Real u = RowRandom(key, RandomUse::Token).uniform(i);
      const Real noisy = weight[i] / std::pow(-std::log(u), power);
      if (weight[i] > 0 && noisy > best) {
        best = noisy;
        answer.token = static_cast<std::int32_t>(i);
      }
    }
  }
  Real entropy = 0, negative = 0;
  for (const Real w : weight) {
    if (w > 0) entropy -= w * std::log(w);
    negative += w * std::log(w + Real{1e-10});
  }
  answer.entropy = static_cast<double>(entropy);
  std::vector<Real> sorted = weight;
  std::sort(sorted.rbegin(), sorted.rend());
  switch (rule.confidence) {
    case Confidence::Probability:
    case Confidence::LeftToRight:
      answer.confidence = static_cast<double>(weight[static_cast<std::size_t>(answer.token)]);
      break;
    case Confidence::Margin:
      answer.confidence = static_cast<double>(size > 1 ? sorted[0] - sorted[1] : sorted[0]);
      break;
    case Confidence::NegativeEntropy:
      answer.confidence = static_cast<double>(negative);
      break;
    case Confidence::Random:
      answer.confidence = RowRandom(key, RandomUse::Confidence).uniform(0);
      break;
  }
  return answer;
}

void check_equal(const Prediction& got, const Prediction& want) {
  CHECK(got.row == want.row);
  CHECK(got.token == want.token);
  CHECK(got.confidence == Approx(want.confidence).epsilon(tolerance).margin(tolerance));
  CHECK(got.entropy == Approx(want.entropy).epsilon(tolerance).margin(tolerance));
}

Prediction sample(const std::vector<float>& logits, const SamplingRule& rule = {},
                  const RandomKey& key = {}) {
  Sampler sampler;
  return sampler.sample(3, logits, rule, key);
}

// Frequencies of the tokens drawn over many steps.
std::vector<double> frequencies(const std::vector<float>& logits, const SamplingRule& rule) {
  constexpr int draws = 20000;
  Sampler sampler;
  std::vector<double> found(logits.size(), 0.0);
  for (std::uint64_t step = 0; step < draws; ++step)
    found[static_cast<std::size_t>(sampler.sample(0, logits, rule, {.step = step}).token)] +=
        1.0 / draws;
  return found;
}

constexpr Confidence all_confidences[] = {Confidence::Probability, Confidence::Margin,
                                          Confidence::NegativeEntropy, Confidence::Random};

}  // namespace

TEST_CASE("Sampler: every rule equals a plain computation, for vocabularies of any size",
          "[sampler][property]") {
  constexpr std::uint64_t seed = 31;
  RandomNumbers random(seed);
  Sampler sampler;  // one for all, as the loop has it: nothing is left over
  Index compared = 0;
  for (const Index vocabulary : {1, 2, 3, 5, 17, 96})
    for (int repeat = 0; repeat < 60; ++repeat) {
      const double spread = repeat % 3 == 0 ? 0.5 : repeat % 3 == 1 ? 4.0 : 20.0;
      std::vector<float> logits = random.vector<float>(vocabulary, spread);
      if (repeat % 5 == 0 && vocabulary > 2) {  // some never, some equal
        logits[1] = -infinite;
        logits[0] = logits[2];
      }
      SamplingRule rule{.sampling = repeat % 2 == 0 ? Sampling::GumbelNoise : Sampling::Categorical,
                        .confidence = all_confidences[random.below(4)],
                        .temperature = repeat % 4 < 2 ? 0.0 : 0.3 + random.signed_unit() * 0.25,
                        .top_p = repeat % 6 < 3 ? 1.0 : 0.5 + random.signed_unit() * 0.45,
                        .top_k = repeat % 7 < 4 ? 0 : 1 + random.below(vocabulary + 2)};
      if (repeat % 9 == 0 && vocabulary > 1)
        rule.excluded_token = static_cast<std::int32_t>(random.below(vocabulary));
      const RandomKey key{random.next(), 1, 2, 3};
      INFO("seed " << seed << ", vocabulary " << vocabulary << ", repeat " << repeat
                   << ", sampling " << static_cast<int>(rule.sampling) << ", confidence "
                   << static_cast<int>(rule.confidence) << ", temperature " << rule.temperature
                   << ", top_p " << rule.top_p << ", top_k " << rule.top_k << ", excluded "
                   << rule.excluded_token);
      check_equal(sampler.sample(3, logits, rule, key), naive(logits, rule, key));
      ++compared;
    }
  REQUIRE(compared == 360);
}

TEST_CASE("Sampler: confidences of a row known by heart", "[sampler]") {
  // Probabilities 1/2, 1/4, 1/8, 1/8.
  const float l = std::log(2.0F);
  const std::vector<float> logits{l, 3 * l, 2 * l, l};
  CHECK(sample(logits).token == 1);
  CHECK(sample(logits).confidence == Approx(0.5).epsilon(1e-6));
  CHECK(sample(logits).entropy == Approx(1.75 * std::log(2.0)).epsilon(1e-6));
  CHECK(sample(logits, {.confidence = Confidence::Margin}).confidence ==
        Approx(0.25).epsilon(1e-6));
  CHECK(sample(logits, {.confidence = Confidence::NegativeEntropy}).confidence ==
        Approx(-1.75 * std::log(2.0)).epsilon(1e-6));
}

TEST_CASE("Sampler: among equal logits the lower token wins, and the margin is 0", "[sampler]") {
  for (const Sampling sampling : {Sampling::GumbelNoise, Sampling::Categorical}) {
    const SamplingRule rule{.sampling = sampling, .confidence = Confidence::Margin};
    CHECK(sample({1, 5, 2, 5, 5}, rule).token == 1);
    CHECK(sample({1, 5, 2, 5, 5}, rule).confidence == 0.0);
    CHECK(sample({0, 0}, rule).token == 0);
  }
}

TEST_CASE("Sampler: a vocabulary of one token is sure of it", "[sampler]") {
  for (const Confidence confidence : all_confidences) {
    if (confidence == Confidence::Random) continue;
    for (const double temperature : {0.0, 1.0}) {
      const Prediction only = sample({-3.5F}, {.sampling = Sampling::Categorical,
                                               .confidence = confidence,
                                               .temperature = temperature,
                                               .top_p = 0.5,
                                               .top_k = 1});
      CHECK(only.token == 0);
      CHECK(only.confidence ==
            Approx(confidence == Confidence::NegativeEntropy ? 0.0 : 1.0).margin(1e-9));
      CHECK(only.entropy == Approx(0.0).margin(1e-15));
    }
  }
}

TEST_CASE("Sampler: a random confidence is the row's own number, not the token's", "[sampler]") {
  const SamplingRule rule{.confidence = Confidence::Random, .temperature = 1.0};
  const RandomKey key{.seed = 4, .sequence = 3, .step = 2, .row = 1};
  const Prediction here = sample({1, 2, 3}, rule, key);
  CHECK(here.confidence == RowRandom(key, RandomUse::Confidence).uniform(0));
  CHECK(here.confidence == sample({9, 1, 1}, rule, key).confidence);
  CHECK(here.confidence !=
        sample({1, 2, 3}, rule, {.seed = 4, .sequence = 3, .step = 2}).confidence);
}

TEST_CASE("Sampler: Gumbel noise draws from the tempered softmax, confidence stays untempered",
          "[sampler][property]") {
  const std::vector<float> logits{1.0F, -0.5F, 0.0F, 2.0F, -infinite};
  for (const double temperature : {0.5, 1.0, 3.0}) {
    CAPTURE(temperature);
    const auto found = frequencies(logits, {.temperature = temperature});
    double sum = 0.0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit) / temperature);
    for (std::size_t i = 0; i < logits.size(); ++i)
      CHECK(found[i] == Approx(std::exp(static_cast<double>(logits[i]) / temperature) / sum)
                            .margin(0.018));  // five standard deviations of 20000 draws
    const Prediction drawn = sample(logits, {.temperature = temperature}, {.seed = 8});
    double plain = 0.0;
    for (const float logit : logits) plain += std::exp(static_cast<double>(logit));
    CHECK(drawn.confidence ==
          Approx(std::exp(static_cast<double>(logits[static_cast<std::size_t>(drawn.token)])) /
                 plain));
  }
}

TEST_CASE("Sampler: a categorical draw has the tempered and cut probabilities",
          "[sampler][property]") {
  // Probabilities at temperature 1/2 of half these logits: 0.4, 0.3, 0.2, 0.1.
  std::vector<float> logits;
  for (const double p : {0.1, 0.4, 0.2, 0.3})
    logits.push_back(0.5F * std::log(static_cast<float>(p)));
  SamplingRule rule{.sampling = Sampling::Categorical, .temperature = 0.5};
  const auto check = [&](const std::vector<double>& expected) {
    const auto found = frequencies(logits, rule);
    for (std::size_t i = 0; i < found.size(); ++i) {
      CHECK(found[i] == Approx(expected[i]).margin(0.018));
      CHECK((found[i] > 0.0) == (expected[i] > 0.0));
    }
  };
  check({0.1, 0.4, 0.2, 0.3});
  rule.top_k = 3;
  check({0.0, 4.0 / 9, 2.0 / 9, 3.0 / 9});
  rule.top_k = 0;
  rule.top_p = 0.5;  // 0.4 does not hold it yet, 0.7 does
  check({0.0, 4.0 / 7, 0.0, 3.0 / 7});
  rule.top_p = 0.75;  // 0.4 and 0.7 do not
  check({0.0, 4.0 / 9, 2.0 / 9, 3.0 / 9});
  rule.top_p = 0.01;  // the first is always kept
  check({0.0, 1.0, 0.0, 0.0});
}

TEST_CASE("Sampler: top_k keeps what equals the k-th token, top_p does not", "[sampler]") {
  const std::vector<float> logits{0, 1, 0, 0};
  const auto entropy = [&](double top_p, Index top_k) {
    return sample(logits, {.sampling = Sampling::Categorical, .top_p = top_p, .top_k = top_k})
        .entropy;
  };
  CHECK(entropy(1.0, 2) == entropy(1.0, 0));
  CHECK(entropy(1.0, 1) == Approx(0.0).margin(1e-100));
  CHECK(entropy(1.0, 4) == entropy(1.0, 0));
  CHECK(entropy(1.0, 5) == entropy(1.0, 0));
  // Shares 0.475 and three times 0.175: two tokens hold 0.65.
  const double first = std::exp(1.0) / (std::exp(1.0) + 1.0);
  CHECK(entropy(0.6, 0) ==
        Approx(-first * std::log(first) - (1 - first) * std::log(1 - first)).epsilon(1e-9));
}

TEST_CASE("Sampler: cuts and tempering are the categorical rule's alone", "[sampler]") {
  const std::vector<float> logits{0, 1, 0.5F, 0};
  const Prediction plain = sample(logits);
  const Prediction cut = sample(logits, {.top_p = 0.1, .top_k = 1});
  CHECK(cut.confidence == plain.confidence);
  CHECK(cut.entropy == plain.entropy);
}

TEST_CASE("Sampler: an excluded token is never predicted and counts for nothing", "[sampler]") {
  const std::vector<float> logits{9, 1, 1.5F};
  for (const double temperature : {0.0, 5.0})
    for (std::uint64_t step = 0; step < 50; ++step)
      CHECK(
          sample(logits, {.temperature = temperature, .excluded_token = 0}, {.step = step}).token !=
          0);
  const Prediction left = sample(logits, {.excluded_token = 0});
  CHECK(left.token == 2);
  CHECK(left.confidence == Approx(1.0 / (1.0 + std::exp(-0.5))).epsilon(tolerance));
  // A number that names no token excludes none.
  CHECK(sample(logits, {.excluded_token = 3}).token == 0);
  CHECK(sample(logits, {.excluded_token = no_token}).token == 0);
}

TEST_CASE("Sampler: a logit that is no number is never predicted and counts for nothing",
          "[sampler]") {
  const std::vector<float> logits{not_a_number, 1, -infinite, 2, -not_a_number};
  for (const Confidence confidence : all_confidences)
    check_equal(sample(logits, {.confidence = confidence}),
                naive({-infinite, 1, -infinite, 2, -infinite}, {.confidence = confidence}, {}));
  for (std::uint64_t step = 0; step < 50; ++step) {
    const auto token = sample(logits, {.temperature = 9.0}, {.step = step}).token;
    CHECK((token == 1 || token == 3));
  }
}

TEST_CASE("Sampler: logits as far apart as floats can be give finite answers", "[sampler]") {
  constexpr float most = std::numeric_limits<float>::max();
  for (const Confidence confidence : all_confidences)
    for (const Sampling sampling : {Sampling::GumbelNoise, Sampling::Categorical})
      for (const double temperature : {0.0, 0.01, 1.0}) {
        const Prediction one =
            sample({-most, most, 0.0F},
                   {.sampling = sampling, .confidence = confidence, .temperature = temperature});
        CHECK(one.token == 1);
        CHECK(std::isfinite(one.confidence));
        CHECK(one.entropy == Approx(0.0).margin(1e-9));
      }
}

TEST_CASE("Sampler: a row without a usable logit is refused by its number", "[sampler][refusal]") {
  const auto message = [](const std::vector<float>& logits, const SamplingRule& rule = {}) {
    return exact_refusal<std::runtime_error>([&] { static_cast<void>(sample(logits, rule)); });
  };
  CHECK_THAT(message({not_a_number, not_a_number}),
             Contains("Sampler: logits of row 3 hold no number above -infinity"));
  CHECK_THAT(message({-infinite}), Contains("row 3 hold no number above -infinity"));
  CHECK_THAT(message({}), Contains("row 3 hold no number above -infinity"));
  CHECK_THAT(message({1.0F}, {.excluded_token = 0}), Contains("row 3 hold no number"));
  CHECK_THAT(message({1.0F, infinite}), Contains("Sampler: logits of row 3 hold +infinity"));
  CHECK(sample({1.0F, infinite}, {.excluded_token = 1}).token == 0);
}

TEST_CASE("Sampler: the same logits give the same bits wherever the memory lies", "[sampler]") {
  RandomNumbers random(26);
  for (const Index size : {13, 17, 100}) {
    const auto logits = random.vector<float>(size, 3.0);
    for (const Confidence confidence : all_confidences) {
      const SamplingRule rule{.confidence = confidence};
      const Prediction first = sample(logits, rule);
      std::vector<std::vector<char>> between;  // moves what is allocated next by 16 bytes a time
      for (std::size_t i = 1; i <= 16; ++i) {
        between.emplace_back(16 * i);
        Sampler sampler;
        const Prediction again = sampler.sample(3, logits, rule, {});
        between.emplace_back(8 * i);
        CHECK(again.confidence == first.confidence);
        CHECK(again.entropy == first.entropy);
      }
    }
  }
}

TEST_CASE("Sampler: suppressed tokens are never predicted and have no probability", "[sampler]") {
  const std::vector<float> logits{1, 5, 4, 2};
  const std::vector<std::int32_t> suppressed{1, 9};  // one of them beyond the vocabulary
  Sampler sampler;
  SamplingRule rule{.suppressed = suppressed};
  const Prediction got = sampler.sample(3, logits, rule, {});
  CHECK(got.token == 2);
  CHECK(got.confidence == Approx(1.0 / (1.0 + std::exp(-3.0) + std::exp(-2.0))).epsilon(tolerance));
  const std::vector<std::int32_t> all{0, 1, 2, 3};
  rule.suppressed = all;
  CHECK_THROWS_AS(static_cast<void>(sampler.sample(3, logits, rule, {})), std::runtime_error);
}

TEST_CASE("Sampler: tokens that come last are predicted as ever, and the least sure", "[sampler]") {
  const std::vector<float> logits{1, 5, 4, 2}, others{4, 1, 1, 1};
  const std::vector<std::int32_t> last{1};
  Sampler sampler;
  for (const Confidence confidence : {Confidence::Probability, Confidence::Margin,
                                      Confidence::NegativeEntropy, Confidence::Random}) {
    CAPTURE(static_cast<int>(confidence));
    const SamplingRule rule{.confidence = confidence, .last = last};
    const Prediction least = sampler.sample(0, logits, rule, {});
    const Prediction flat = sampler.sample(1, std::vector<float>{2, 1, 2, 2}, rule, {});
    CHECK(least.token == 1);
    CHECK(flat.token == 0);
    CHECK(least.confidence < flat.confidence);
    CHECK(std::isfinite(least.confidence));
  }
  // The confidence of other tokens is that of a distribution without them.
  const Prediction other = sampler.sample(0, others, {.last = last}, {});
  CHECK(other.confidence == Approx(1.0 / (1.0 + 2.0 * std::exp(-3.0))).epsilon(tolerance));
}
