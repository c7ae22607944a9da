// SPDX-License-Identifier: Apache-2.0
// Kinds of checkpoints: what each has of its own, and what is refused where it lacks it.
#include "dllm_cache/models/family.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "dllm_cache/models/load_model.hpp"
#include "programs/text/safetensors_writer.hpp"
#include "tests/support/golden_case.hpp"
#include "tests/support/random_checkpoint.hpp"
#include "tests/support/refusal.hpp"
#include "tests/support/temporary_folder.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;
using Catch::Contains;
using Json = nlohmann::json;
using Model = std::shared_ptr<const models::TransformerModel>;

namespace {

std::filesystem::path golden_model(const std::string& name) {
  return golden::folder() / "models" / name;
}

Model load(const std::filesystem::path& folder) {
  return models::load_model(folder, {.backend = models::Backend::Eigen});
}

// A golden model with other keys of config.json, without some tensors and with others beside them.
class Changed {
 public:
  explicit Changed(const std::string& name) : m_source(golden_model(name)) {
    std::filesystem::create_directories(path());
    for (const auto& entry : std::filesystem::directory_iterator(m_source))
      if (entry.path().extension() == ".json")
        std::filesystem::copy_file(entry.path(), path() / entry.path().filename());
    m_config = models::read_json_object(m_source / "config.json");
    write();
  }

  [[nodiscard]] std::filesystem::path path() const { return m_folder / "model"; }
  // These keys in place of those that are there; null takes one away.
  Changed& keys(const Json& changes) {
    for (const auto& [key, value] : changes.items()) m_config[key] = value;
    write();
    return *this;
  }
  Changed& without(const std::string& tensor) {
    m_left_out.insert(tensor);
    write();
    return *this;
  }
  // A tensor of that shape, full of this value.
  Changed& with(const std::string& tensor, const std::vector<std::int64_t>& shape, float value) {
    m_more.push_back({tensor, shape, value});
    write();
    return *this;
  }
  [[nodiscard]] std::string refusal() const {
    return testing::refusal<std::runtime_error>([&] { static_cast<void>(load(path())); });
  }

 private:
  struct Filled {
    std::string name;
    std::vector<std::int64_t> shape;
    float value;
  };

  void write() const {
    std::ofstream(path() / "config.json") << m_config;
    const models::SafetensorsFile source(m_source / "model.safetensors");
    programs::SafetensorsWriter writer;
    for (const models::Tensor& tensor : source.tensors())
      if (m_left_out.count(tensor.name) == 0)
        writer.add(tensor.name, tensor.type, tensor.shape, tensor.bytes);
    for (const Filled& one : m_more) {
      std::size_t count = 1;
      for (const std::int64_t size : one.shape) count *= static_cast<std::size_t>(size);
      const std::vector<float> values(count, one.value);
      writer.add(one.name, models::TensorType::F32, one.shape, std::as_bytes(std::span(values)));
    }
    writer.write(path() / "model.safetensors");
  }

  TemporaryFolder m_folder;
  std::filesystem::path m_source;
  Json m_config;
  std::set<std::string> m_left_out;
  std::vector<Filled> m_more;
};

std::vector<float> logits_of(const Model& model) {
  models::TransformerRunner runner(model, 1);
  const std::vector<std::int32_t> tokens{3, 1, 4, 1, 5};
  const auto rows = static_cast<Index>(tokens.size());
  FeatureCache<float> cache(runner.shape(), {.response = rows}, NoCache{});
  Workspace<float> workspace;
  auto pass = workspace.begin_step(cache);
  std::vector<float> x(static_cast<std::size_t>(rows * model->config.width));
  const auto hidden = dense_view(x.data(), rows, model->config.width);
  runner.embed(tokens, hidden);
  for (Index layer = 0; layer < model->config.layers; ++layer)
    pass.layer(runner.layer(layer), hidden);
  std::vector<float> logits(static_cast<std::size_t>(rows * runner.vocabulary()));
  runner.logits(hidden, dense_view(logits.data(), rows, runner.vocabulary()));
  return logits;
}

std::vector<double> normed(const std::vector<double>& x, const std::vector<float>& weight) {
  double sum = 0.0;
  for (const double one : x) sum += one * one;
  const double factor = 1.0 / std::sqrt(sum / static_cast<double>(x.size()) + 1e-6);
  std::vector<double> y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) y[i] = x[i] * factor * static_cast<double>(weight[i]);
  return y;
}

std::vector<double> turned(const std::vector<double>& head, double position) {
  const std::size_t half = head.size() / 2;
  std::vector<double> y(head.size());
  for (std::size_t i = 0; i < half; ++i) {
    const double angle =
        position * std::pow(1e6, -static_cast<double>(i) / static_cast<double>(half));
    y[i] = head[i] * std::cos(angle) - head[i + half] * std::sin(angle);
    y[i + half] = head[i + half] * std::cos(angle) + head[i] * std::sin(angle);
  }
  return y;
}

}  // namespace

TEST_CASE("TransformerRunner: queries and keys are normed head by head, before they are turned",
          "[families]") {
  const models::CheckpointFolder folder(golden_model("sdar-tiny"));
  const Model model = load(folder.path());
  const Index width = model->config.width;
  const auto head_dim = static_cast<std::size_t>(model->config.heads.head_dim);
  const std::string layer = "model.layers.1.";
  const auto weight = [&](const std::string& name) {
    return models::read_floats(*folder.find(layer + name + ".weight"));
  };
  const std::vector<std::int32_t> positions{0, 5, 300};
  const auto rows = static_cast<Index>(positions.size());
  std::vector<float> x(static_cast<std::size_t>(rows * width));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::sin(0.37F * static_cast<float>(i));
  std::vector<float> q(static_cast<std::size_t>(rows * model->config.query_width()));
  std::vector<float> k(static_cast<std::size_t>(rows * model->config.kv_width()));
  models::TransformerRunner runner(model, 1);
  runner.layer(1).query_key(dense_view<const float>(x.data(), rows, width), positions,
                            dense_view(q.data(), rows, model->config.query_width()),
                            dense_view(k.data(), rows, model->config.kv_width()));

  const auto check = [&](const std::vector<float>& got, const std::string& which) {
    const std::vector<float> projection = weight("self_attn." + which + "_proj");
    const std::vector<float> norm = weight("self_attn." + which + "_norm");
    REQUIRE(norm.size() == head_dim);
    const std::size_t columns = got.size() / positions.size();
    for (std::size_t row = 0; row < positions.size(); ++row) {
      const auto* const from = x.data() + row * static_cast<std::size_t>(width);
      const std::vector<double> input = normed({from, from + width}, weight("input_layernorm"));
      for (std::size_t begin = 0; begin < columns; begin += head_dim) {
        std::vector<double> head(head_dim, 0.0);
        for (std::size_t i = 0; i < head_dim; ++i)
          for (std::size_t j = 0; j < input.size(); ++j)
            head[i] += static_cast<double>(projection[(begin + i) * input.size() + j]) * input[j];
        const std::vector<double> expected = turned(normed(head, norm), positions[row]);
        const std::vector<double> turned_first = normed(turned(head, positions[row]), norm);
        double difference = 0.0, other = 0.0;
        for (std::size_t i = 0; i < head_dim; ++i) {
          const auto one = static_cast<double>(got[row * columns + begin + i]);
          difference = std::max(difference, std::abs(one - expected[i]));
          other = std::max(other, std::abs(one - turned_first[i]));
        }
        INFO(which << ", position " << positions[row] << ", columns from " << begin);
        CHECK(difference < 2e-4);
        if (positions[row] != 0) CHECK(other > 1e-2);
      }
    }
  };
  check(q, "q");
  check(k, "k");
}

TEST_CASE("load_model: a tied head is the embedding, whatever lies beside it", "[families]") {
  const std::vector<float> expected = logits_of(load(golden_model("a2d-qwen3-tiny")));
  Changed copied("a2d-qwen3-tiny");
  copied.with("lm_head.weight", {128, 64}, 7.0F);
  const Model model = load(copied.path());
  CHECK(model->warnings.empty());
  CHECK(logits_of(model) == expected);
  copied.keys({{"tie_word_embeddings", false}});
  CHECK(logits_of(load(copied.path())) != expected);
  Changed untied("a2d-qwen3-tiny");
  untied.keys({{"tie_word_embeddings", nullptr}});  // as Qwen3 has it where no one says
  CHECK_THAT(untied.refusal(), Contains("lm_head.weight") && Contains("no such tensor"));
}

TEST_CASE("load_model: a norm of queries or keys that is missing or misshapen is refused by name",
          "[families][refusal]") {
  for (const std::string name : {"sdar-tiny", "a2d-qwen3-tiny"})
    for (const std::string norm : {"q_norm", "k_norm"}) {
      const std::string tensor = "model.layers.3.self_attn." + norm + ".weight";
      Changed changed(name);
      changed.without(tensor);
      CHECK_THAT(changed.refusal(), Contains(tensor) && Contains("[32], got no such tensor"));
      changed.with(tensor, {128}, 1.0F);
      CHECK_THAT(changed.refusal(), Contains(tensor) && Contains("[32], got [128]"));
    }
  // And layers that have none do not pass over one.
  Changed qwen2("a2d-qwen2-tiny");
  qwen2.with("model.layers.0.self_attn.q_norm.weight", {16}, 1.0F);
  CHECK_THAT(qwen2.refusal(), Contains("q_norm") && Contains("not computed"));
}

TEST_CASE("load_model: Qwen2's layers have biases on queries, keys and values, unless said",
          "[families]") {
  Changed changed("a2d-qwen2-tiny");
  const std::string first = "model.layers.0.self_attn.";
  changed.without(first + "k_proj.bias");
  CHECK_THAT(changed.refusal(), Contains("k_proj.bias"));
  for (int layer = 0; layer < 4; ++layer)
    for (const char* which : {"q", "k", "v"})
      changed.without("model.layers." + std::to_string(layer) + ".self_attn." + which +
                      "_proj.bias");
  CHECK_THAT(changed.refusal(), Contains("q_proj.bias") && Contains("A2DQwen2LMHeadModel has it"));
  changed.keys({{"attention_bias", false}});
  CHECK_NOTHROW(load(changed.path()));
  Changed output("fdv2-tiny");
  output.with(first + "o_proj.bias", {96}, 0.0F);
  CHECK_THAT(output.refusal(), Contains("o_proj.bias") && Contains("Fast_dLLM_QwenForCausalLM"));
}

TEST_CASE("load_model: Qwen3's layers have no biases, or with attention_bias four", "[families]") {
  Changed changed("sdar-tiny");
  changed.keys({{"attention_bias", nullptr}});
  const std::vector<float> expected = logits_of(load(changed.path()));
  changed.with("model.layers.0.self_attn.q_proj.bias", {128}, 0.1F);
  CHECK_THAT(changed.refusal(), Contains("q_proj.bias") && Contains("SDARForCausalLM has none"));
  Changed all("sdar-tiny");
  all.keys({{"attention_bias", true}});
  CHECK_THAT(all.refusal(), Contains("q_proj.bias") && Contains("attention_bias"));
  for (int layer = 0; layer < 5; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".self_attn.";
    all.with(prefix + "q_proj.bias", {128}, 0.1F).with(prefix + "k_proj.bias", {64}, 0.1F);
    all.with(prefix + "v_proj.bias", {64}, 0.1F);
  }
  CHECK_THAT(all.refusal(), Contains("o_proj.bias") && Contains("attention_bias"));
  for (int layer = 0; layer < 5; ++layer)
    all.with("model.layers." + std::to_string(layer) + ".self_attn.o_proj.bias", {64}, 0.1F);
  CHECK(logits_of(load(all.path())) != expected);
}

TEST_CASE("load_model: the block of block-causal attention is read where the kind has one",
          "[families]") {
  CHECK(load(golden_model("sdar-tiny"))->config.attention_block == 4);
  CHECK(load(golden_model("fdv2-tiny"))->config.attention_block == 16);
  CHECK(load(golden_model("a2d-qwen3-tiny"))->config.attention_block == 0);
  CHECK(load(golden_model("dream-tiny"))->config.attention_block == 0);
  struct Key {
    const char *model, *name, *other;
    Index absent;
  };
  for (const Key& key :
       {Key{"sdar-tiny", "block_size", "bd_size", 4}, {"fdv2-tiny", "bd_size", "block_size", 32}}) {
    CAPTURE(key.model);
    Changed changed(key.model);
    CHECK(load(changed.keys({{key.name, 8}}).path())->config.attention_block == 8);
    CHECK(load(changed.keys({{key.name, nullptr}}).path())->config.attention_block == key.absent);
    CHECK_THAT(changed.keys({{key.name, 0}}).refusal(),
               Contains(std::string("\"") + key.name + "\"") && Contains("got 0"));
    changed.keys({{key.name, 4}, {key.other, 4}});
    CHECK_THAT(changed.refusal(), Contains(key.other) && Contains("attention by blocks"));
  }
  Changed none("a2d-qwen2-tiny");
  CHECK_THAT(none.keys({{"block_size", 32}}).refusal(), Contains("block_size"));
}

TEST_CASE("load_model: sizes and windows that the kind leaves open are its own defaults",
          "[families]") {
  Changed changed("sdar-tiny");
  changed.keys({{"head_dim", nullptr}});  // 128 in Qwen3, whatever the width
  CHECK_THAT(changed.refusal(), Contains("q_proj") && Contains("[512, 64], got [128, 64]"));
  for (const char* name : {"sdar-tiny", "a2d-qwen3-tiny", "a2d-qwen2-tiny", "fdv2-tiny"}) {
    Changed window(name);
    CHECK_THAT(window.keys({{"use_sliding_window", true}}).refusal(),
               Contains("use_sliding_window"));
    Changed epsilon(name);
    const Model model = load(epsilon.keys({{"rms_norm_eps", nullptr}}).path());
    CHECK(model->final_norm.epsilon == 1e-6F);
  }
  const Model model = load(Changed("sdar-tiny").keys({{"rms_norm_eps", 1e-3}}).path());
  CHECK(model->layers.front().query_norm.epsilon == 1e-3F);
  CHECK(model->layers.front().key_norm.epsilon == 1e-3F);
}

TEST_CASE("load_model: block models have their decoder, shift and special tokens, and no warning",
          "[families]") {
  struct Row {
    const char *model, *architecture, *decoder;
    Index shift;
    std::int32_t mask;
    EndTokens ends;
  };
  for (const Row& row :
       {Row{"sdar-tiny", "SDARForCausalLM", "sdar", 0, 127, {123, 121}},
        {"a2d-qwen3-tiny", "A2DQwen3LMHeadModel", "mdlm", 0, 127, {123}},
        {"a2d-qwen2-tiny", "A2DQwen2LMHeadModel", "mdlm", 0, 119, {115}},
        {"fdv2-tiny", "Fast_dLLM_QwenForCausalLM", "fastdllm-v2", 1, 127, {123, 121}},
        {"llada-tiny", "LLaDAModelLM", "llada", 0, 127, {121}},
        {"dream-tiny", "DreamModel", "dream", 1, 127, {121}}}) {
    CAPTURE(row.model);
    const Model model = load(golden_model(row.model));
    CHECK(model->architecture == row.architecture);
    CHECK(model->config.decoder == row.decoder);
    CHECK(model->config.prediction_shift == row.shift);
    CHECK(model->warnings.empty());
    if (std::string(row.decoder) == "llada" || std::string(row.decoder) == "dream") continue;
    CHECK(model->config.special.mask == row.mask);
    CHECK(model->config.special.end_of_text == row.ends);
  }
}

TEST_CASE("families: every kind has names, a decoder and its own architecture", "[families]") {
  std::set<std::string_view> architectures, types;
  for (const models::Family& family : models::families) {
    CAPTURE(family.architecture);
    REQUIRE(family.names != nullptr);
    CHECK(&models::tensor_names(family.names->architecture) == family.names);
    CHECK(family.names->has_query_key_norms() == (family.names->key_norm != nullptr));
    CHECK_FALSE(family.decoder.empty());
    CHECK(architectures.insert(family.architecture).second);
    if (!family.model_type.empty()) CHECK(types.insert(family.model_type).second);
    CHECK((family.block_key.empty() || family.block > 0));
  }
}

TEST_CASE("load_model: a model_type of another kind beside the architecture is refused",
          "[families][refusal]") {
  Changed changed("sdar-tiny");
  CHECK_THAT(changed.keys({{"model_type", "a2d-qwen3"}}).refusal(),
             Contains("SDARForCausalLM") && Contains("a2d-qwen3"));
  // Without architectures the type names the kind.
  changed.keys({{"architectures", nullptr}, {"model_type", "sdar"}});
  CHECK(load(changed.path())->config.decoder == "sdar");
}

TEST_CASE("load_model: Stable-DiffCoder is a Llama with blocks, known by its architecture alone",
          "[families]") {
  Json config = grouped_dream();
  config["architectures"] = {"StableDiffcoderForCausalLM"};
  config["model_type"] = "llama";
  config.erase("mask_token_id");
  const TemporaryFolder folder;
  const RandomCheckpoint written(folder / "model", config);
  std::ofstream(folder / "model" / "tokenizer_config.json")
      << Json{{"added_tokens_decoder", {{"5", {{"content", "<[MASK_TOKEN]>"}}}}}};
  const Model model = load(folder / "model");
  CHECK(model->config.attention_block == 4);
  CHECK(model->config.prediction_shift == 0);
  CHECK(model->config.special.mask == 5);
  CHECK(model->warnings.empty());
  config["architectures"] = nullptr;
  std::ofstream(folder / "model" / "config.json") << config;
  CHECK_THAT(refusal<std::runtime_error>([&] { static_cast<void>(load(folder / "model")); }),
             Contains("\"llama\" is not supported"));
}
