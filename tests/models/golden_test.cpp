// SPDX-License-Identifier: Apache-2.0
// The answers of the public references, token for token. A red case here asks: did we mean it?
#include "tests/support/golden_case.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <map>

using namespace dllm_cache;
using golden::Case;
using Runner = models::TransformerRunner;
static_assert(!std::is_move_constructible_v<Runner>, "its products and handles point at it");
static_assert(!std::is_copy_constructible_v<Runner>);
using Loop = DenoisingLoop<Runner>;

namespace {

// Float32 sums in another order, logits of size 10; the same for Eigen and oneDNN.
constexpr float logit_tolerance = 2e-4F;
constexpr double similarity_tolerance = 2e-6;  // float32 dot products over 48 to 64 elements
constexpr float feature_tolerance = 2e-4F;     // features of size 10 and less

std::vector<std::string> all_cases() {
  std::vector<std::string> names;
  for (const char* prefix : {"uncached-", "cache-", "cfg-", "dream-", "fastdllm-", "dkv-"})
    for (const std::string& name : golden::cases(prefix)) names.push_back(name);
  return names;
}

void add_all(Loop& loop, const Case& golden) {
  DecodingOptions options = golden.options();
  for (Index i = 0; i < golden.batch(); ++i) {
    options.sequence = static_cast<std::uint64_t>(i);
    loop.add(golden.prompt(i), options, golden.policy());
  }
}

std::string probe(Index step, Index layer) {
  return "step" + std::to_string(step) + ".layer" + std::to_string(layer) + ".";
}

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  float largest = 0.0F;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const float difference = std::abs(a[i] - b[i]);
    largest = std::isnan(difference) ? difference : std::max(largest, difference);
  }
  return largest;
}

std::vector<float> rows_of(MatrixView<const float> matrix, Range rows) {
  std::vector<float> all;
  for (Index row = rows.begin; row < rows.end; ++row)
    all.insert(all.end(), matrix.row(row), matrix.row(row) + matrix.cols);
  return all;
}

}  // namespace

TEST_CASE("golden: every golden case ends in the reference's tokens", "[golden]") {
  const auto backend = GENERATE(from_range(golden::backends()));
  const auto names = all_cases();
  REQUIRE(names.size() == 40);
  for (const std::string& name : names) {
    DYNAMIC_SECTION(name << ", backend " << static_cast<int>(backend)) {
      const Case golden(name);
      Runner runner(golden.load(backend), 1);
      Loop loop(runner);
      add_all(loop, golden);
      loop.run();
      for (Index i = 0; i < golden.batch(); ++i) {
        const auto response = loop.sequence(i).response();
        CHECK(std::vector<std::int32_t>(response.begin(), response.end()) == golden.answer(i));
      }
    }
  }
}

TEST_CASE("golden: the tokens before each step are the reference's", "[golden]") {
  Index compared = 0;
  for (const std::string& name : all_cases()) {
    const Case golden(name);
    const models::Tensor* tensor = golden.expected.find("tokens_before_step");
    if (tensor == nullptr) continue;
    const std::vector<std::int64_t> expected = golden::integers(*tensor);
    Runner runner(golden.load(), 1);
    Loop loop(runner);
    add_all(loop, golden);
    std::size_t next = 0;
    do {
      for (Index i = 0; i < golden.batch(); ++i) {
        const auto response = loop.sequence(i).response();
        REQUIRE(next + response.size() <= expected.size());
        INFO(name << " sequence " << i << " step " << loop.sequence(i).step());
        CHECK(std::equal(response.begin(), response.end(),
                         expected.begin() + static_cast<std::ptrdiff_t>(next)));
        next += response.size();
        ++compared;
      }
    } while (loop.step());
    CHECK(next == expected.size());
  }
  CHECK(compared > 400);
}

TEST_CASE("golden: selected rows and similarities at probe steps are the reference's", "[golden]") {
  const auto backend = GENERATE(from_range(golden::backends()));
  Index compared = 0;
  double worst = 0.0;
  for (const std::string& name : all_cases()) {
    const Case golden(name);
    Runner runner(golden.load(backend), 1);
    Loop loop(runner);
    add_all(loop, golden);
    std::map<Index, Index> forwards_before;  // the step at hand, by sequence
    loop.observer.on_layer = [&](const Loop::PassType& pass, Index layer) {
      for (Index i = 0; i < pass.sequences(); ++i) {
        const auto& entry = loop.batch()[static_cast<std::size_t>(i)];
        const SequenceState& state = loop.sequence(entry.id);
        if (layer == 0) forwards_before[entry.id] = loop.forwards(entry.id);
        // The probes of the reference count forwards: with guidance the conditional one of a step
        // comes first, then, where it is due, the unconditional one.
        const std::string prefix =
            probe(forwards_before[entry.id] + (entry.unconditional ? 1 : 0), layer);
        if (golden.expected.find(prefix + "selected") == nullptr) continue;
        INFO(name << " " << prefix << " sequence " << entry.id);
        const auto all_selected = golden::integers(golden.expected.at(prefix + "selected"));
        const auto similarities = models::read_floats(golden.expected.at(prefix + "similarity"));
        const auto per_row = static_cast<Index>(all_selected.size()) / golden.batch();
        const std::vector<std::int64_t> expected(all_selected.begin() + entry.id * per_row,
                                                 all_selected.begin() + (entry.id + 1) * per_row);
        std::vector<std::int64_t> selected;
        for (const Index row : pass.recomputed(i))
          if (row >= state.prompt_rows()) selected.push_back(row - state.prompt_rows());
        CHECK(selected == expected);
        REQUIRE(pass.verified(i) == golden.response());
        for (Index j = 0; j < pass.verified(i); ++j) {
          REQUIRE(pass.verified_row(j, i) == state.prompt_rows() + j);
          const double difference = std::abs(
              similarity(pass.sums(i)[static_cast<std::size_t>(j)]) -
              static_cast<double>(
                  similarities[static_cast<std::size_t>(entry.id * golden.response() + j)]));
          worst = std::max(worst, difference);
        }
        ++compared;
      }
    };
    loop.run();
  }
  INFO("worst difference " << worst << ", backend " << static_cast<int>(backend));
  CHECK(worst <= similarity_tolerance);
  CHECK(compared >= 120);
}

TEST_CASE("golden: logits of rows that can be committed are the reference's", "[golden]") {
  const auto backend = GENERATE(from_range(golden::backends()));
  Index compared = 0;
  float worst = 0.0F;
  for (const std::string& name : all_cases()) {
    const Case golden(name);
    if (golden.options().guidance_scale > 0.0) continue;  // traced unguided
    Runner runner(golden.load(backend), 1);
    Loop loop(runner);
    add_all(loop, golden);
    // Dream's are listed for all rows of the sequence, each where it was computed.
    const std::string prefix = golden.dream() ? "logits_unshifted.step" : "logits.step";
    std::map<Index, std::vector<float>> expected;
    if (golden.request.contains("probe_steps"))
      for (const Index step : golden.request.at("probe_steps").get<std::vector<Index>>())
        expected[step] = models::read_floats(golden.expected.at(prefix + std::to_string(step)));
    loop.observer.on_logits = [&](Index id, Index row, std::span<const float> logits) {
      const auto found = expected.find(loop.sequence(id).step());
      if (found == expected.end()) return;
      const Index rows = golden.dream() ? static_cast<Index>(loop.sequence(id).tokens().size())
                                        : golden.response();
      const Index place = golden.dream() ? row - 1 : row - loop.sequence(id).prompt_rows();
      const float* want = found->second.data() + (id * rows + place) * runner.vocabulary();
      for (std::size_t i = 0; i < logits.size(); ++i)
        worst = std::max(worst, std::abs(logits[i] - want[i]));
      ++compared;
    };
    loop.run();
  }
  INFO("worst difference " << worst << ", backend " << static_cast<int>(backend));
  CHECK(worst <= logit_tolerance);
  CHECK(compared > 300);
}

TEST_CASE("golden: cached values, keys and deltas are the reference's features", "[golden]") {
  const Case golden("cache-kp4-kr2-rho05");
  const auto model = golden.load();
  Runner runner(model, 1);
  Loop loop(runner);
  add_all(loop, golden);
  models::ThreadTeam team(1);
  Index compared = 0;
  loop.observer.on_layer = [&](const Loop::PassType&, Index layer) {
    const std::string prefix = probe(loop.sequence(0).step(), layer);
    if (golden.expected.find(prefix + "gen.v") == nullptr) return;
    INFO(prefix);
    const Loop::Cache& cache = loop.cache(0);
    const SequenceShape shape = cache.shape();
    const auto expected = [&](const char* name) {
      return models::read_floats(golden.expected.at(prefix + name));
    };
    struct Part {
      std::string name;
      Range rows;
    };
    for (const Part& part :
         {Part{"prompt", {0, shape.prompt}}, Part{"gen", {shape.prompt, shape.rows()}}}) {
      CHECK(largest_difference(rows_of(cache.values(layer), part.rows),
                               expected((part.name + ".v").c_str())) <= feature_tolerance);
      std::vector<float> keys = expected((part.name + ".k").c_str());
      models::RotaryEmbedding rotary(model->config.heads.head_dim, model->config.rotary_theta);
      const std::span<const std::int32_t> positions(shape.positions);
      rotary.apply(positions.subspan(static_cast<std::size_t>(part.rows.begin),
                                     static_cast<std::size_t>(part.rows.size())),
                   dense_view(keys.data(), part.rows.size(), model->config.kv_width()), team);
      CHECK(largest_difference(rows_of(cache.keys(layer), part.rows), keys) <= feature_tolerance);
    }
    std::vector<float> delta = expected("gen.attn");
    const std::vector<float> mlp = expected("gen.mlp");
    for (std::size_t i = 0; i < delta.size(); ++i) delta[i] += mlp[i];
    REQUIRE(cache.stored_deltas() == Range{shape.prompt, shape.rows()});
    CHECK(largest_difference(rows_of(cache.deltas(layer), {0, shape.response}), delta) <=
          feature_tolerance);
    ++compared;
  };
  loop.run();
  CHECK(compared == 12);
}

TEST_CASE("golden: no more rows are recomputed than the method needs", "[golden]") {
  const std::map<std::string, Index> most = {
      {"cache-kp100-kr7-rho025", 4948},   {"cache-kp50-kr6-rho025-blocks", 5056},
      {"cache-kp4-kr2-rho05", 4096},      {"cache-deep-model", 5360},
      {"cache-rounding-30-tokens", 2244}, {"cache-prompt-of-1", 2372},
      {"dream-kp25-kr4-rho025", 2815},    {"dream-kp3-kr4-rho05", 2058},
      {"dream-kp5-kr2-rho0", 3257}};
  for (const auto& [name, rows] : most) {
    const Case golden(name);
    Runner runner(golden.load(), 1);
    Loop loop(runner);
    add_all(loop, golden);
    loop.run();
    INFO(name);
    CHECK(loop.counts(0).recomputed <= rows);
  }
}

TEST_CASE(
    "golden: prefix, dual and dKV caches take no more rows through the layers than their "
    "references",
    "[golden]") {
  Index compared = 0;
  for (const std::string& name : all_cases()) {
    const Case golden(name);
    if (golden.reference_rows() == 0) continue;
    Runner runner(golden.load(), 1);
    Loop loop(runner);
    add_all(loop, golden);
    loop.run();
    INFO(name);
    CHECK(loop.counts(0).rows <= golden.reference_rows());
    CHECK(loop.forwards(0) <= golden.request.at("forwards").get<Index>());
    ++compared;
  }
  CHECK(compared == 15);
}

TEST_CASE("golden: hidden states, keys, values and logits of a forward are the reference's",
          "[golden]") {
  const auto backend = GENERATE(from_range(golden::backends()));
  models::ThreadTeam team(1);
  const std::vector<std::string> names = golden::cases("forward-");
  REQUIRE(names.size() == 10);
  Index keys_compared = 0;
  for (const std::string& name : names) {
    const golden::Forward golden(name);
    const auto model = golden.load(backend);
    const models::TransformerConfig& config = model->config;
    CHECK(config.prediction_shift == golden.prediction_shift().value_or(config.prediction_shift));
    Runner runner(model, 1);
    const Index rows = golden.rows(), layers = config.layers;
    for (Index i = 0; i < golden.batch(); ++i) {
      const auto part = [&](const std::string& tensor) { return golden.part(tensor, i); };
      FeatureCache<float> cache(runner.shape(), golden.shape(), NoCache{});
      Workspace<float> workspace;
      auto pass = workspace.begin_step(cache);
      REQUIRE(pass.row_count() == rows);
      std::vector<float> hidden(static_cast<std::size_t>(rows * config.width));
      const auto x = dense_view(hidden.data(), rows, config.width);
      runner.embed(golden.tokens(i), x);
      for (Index layer = 0; layer < layers; ++layer) {
        INFO(name << " sequence " << i << " before layer " << layer);
        CHECK(largest_difference(hidden, part("hidden." + std::to_string(layer))) <=
              feature_tolerance);
        pass.layer(runner.layer(layer), x);
        const std::string prefix = "layer" + std::to_string(layer) + ".";
        if (golden.expected.find(prefix + "key") == nullptr) continue;
        CHECK(largest_difference(rows_of(cache.keys(layer), {0, rows}), part(prefix + "key")) <=
              feature_tolerance);
        CHECK(largest_difference(rows_of(cache.values(layer), {0, rows}), part(prefix + "value")) <=
              feature_tolerance);
        ++keys_compared;
      }
      INFO(name << " sequence " << i);
      // LLaDA's code lists the last hidden state after the final norm, the others' before it.
      std::vector<float> last = hidden;
      if (config.decoder == "llada")
        model->final_norm.apply(x, dense_view(last.data(), rows, config.width), team);
      // Some end with the hidden state before the last layer.
      if (const std::string name = "hidden." + std::to_string(layers);
          golden.expected.find(name) != nullptr)
        CHECK(largest_difference(last, part(name)) <= feature_tolerance);
      std::vector<float> logits(static_cast<std::size_t>(rows * config.vocabulary));
      runner.logits(x, dense_view(logits.data(), rows, config.vocabulary));
      CHECK(largest_difference(logits, part("logits")) <= logit_tolerance);
    }
  }
  CHECK(keys_compared == 18);
}
