// SPDX-License-Identifier: Apache-2.0
// Models written with ggml under the cache: by layers, and by whole steps.
#include <catch2/catch.hpp>
#include <random>

#include "ggml/ggml_layers.hpp"
#include "ggml/ggml_steps.hpp"
#include "ggml/gguf_writer.hpp"
#include "tests/support/golden_case.hpp"
#include "tests/support/random_checkpoint.hpp"
#include "tests/support/temporary_folder.hpp"

using namespace dllm_cache;
using namespace ggml_runtime;
using golden::Case;

namespace {

/// A golden model as a GGUF file, written once.
std::filesystem::path gguf(const std::string& model, ggml_type type = GGML_TYPE_F32) {
  static const testing::TemporaryFolder folder;
  const std::filesystem::path file = folder / (model + "-" + ggml_type_name(type) + ".gguf");
  if (!std::filesystem::exists(file)) write_gguf(golden::folder() / "models" / model, file, type);
  return file;
}
std::shared_ptr<const GgufFile> open(const std::filesystem::path& file) {
  return std::make_shared<GgufFile>(file);
}
GgmlModel by_layers(const std::filesystem::path& file, AttentionBy by = AttentionBy::Library) {
  return GgmlModel(Weights(open(file)), 1, by);
}

struct Answer {
  std::vector<std::vector<std::int32_t>> tokens;
  std::vector<std::array<Index, 3>> rows;  ///< In the pass, values, recomputed.
};

template <class Model>
Answer answer(Model& model, const Case& golden) {
  DenoisingLoop<Model> loop(model);
  DecodingOptions options = golden.options();
  for (Index i = 0; i < golden.batch(); ++i) {
    options.sequence = static_cast<std::uint64_t>(i);
    loop.add(golden.prompt(i), options, golden.policy());
  }
  loop.run();
  Answer answer;
  for (Index i = 0; i < golden.batch(); ++i) {
    const auto response = loop.sequence(i).response();
    const auto counts = loop.counts(i);
    answer.tokens.emplace_back(response.begin(), response.end());
    answer.rows.push_back({counts.rows, counts.values, counts.recomputed});
  }
  return answer;
}

void check_tokens(const Answer& found, const Case& golden) {
  for (Index i = 0; i < golden.batch(); ++i)
    CHECK(found.tokens[static_cast<std::size_t>(i)] == golden.answer(i));
}

std::vector<std::string> cases() {
  std::vector<std::string> names{"uncached-blocks",        "uncached-batch2-half-steps",
                                 "cache-kp100-kr7-rho025", "cache-half-steps-batch2",
                                 "cache-kp3-kr2-rho0",     "cfg-interval3-blocks",
                                 "dream-kp25-kr4-rho025",  "dream-kp100-kr8-rho025-batch2"};
  for (const char* kind : {"fastdllm-prefix", "fastdllm-dual", "dkv"})
    for (const std::string& name : golden::cases(kind)) names.push_back(name);
  // Rows that do not exist for a while.
  names.insert(names.end(),
               {"dpad-none-gauss-w20-p20-r36-b12-s18", "dpad-dual-gauss-w36-p24-r48-b12-s24",
                "streaming-w8-alpha03-t03-p24-r48-b12"});
  return names;
}

/// The file with its keys changed by `change`.
std::filesystem::path changed(const std::filesystem::path& from, const std::filesystem::path& to,
                              const std::function<void(gguf_context*)>& change) {
  ggml_context* tensors = nullptr;
  const gguf_context_ptr read(
      gguf_init_from_file(from.c_str(), {.no_alloc = false, .ctx = &tensors}));
  const ggml_context_ptr owner(tensors);
  // What was read cannot be written: its tensors have no buffers, which ggml does not say.
  const gguf_context_ptr gguf(gguf_init_empty());
  gguf_set_kv(gguf.get(), read.get());
  for (std::int64_t i = 0; i < gguf_get_n_tensors(read.get()); ++i)
    gguf_add_tensor(gguf.get(), ggml_get_tensor(tensors, gguf_get_tensor_name(read.get(), i)));
  change(gguf.get());
  REQUIRE(gguf_write_to_file(gguf.get(), to.c_str(), false));
  return to;
}

/// The file with its tensors changed by `change`, which may make others in the context.
std::filesystem::path rebuilt(
    const std::filesystem::path& from, const std::filesystem::path& to,
    const std::function<void(std::map<std::string, ggml_tensor*>&, ggml_context*)>& change) {
  ggml_context* context = nullptr;
  const gguf_context_ptr before(
      gguf_init_from_file(from.c_str(), {.no_alloc = false, .ctx = &context}));
  const ggml_context_ptr owner(context), more(ggml_init({1 << 20, nullptr, false}));
  std::map<std::string, ggml_tensor*> tensors;
  for (ggml_tensor* t = ggml_get_first_tensor(context); t != nullptr;
       t = ggml_get_next_tensor(context, t))
    if (gguf_find_tensor(before.get(), ggml_get_name(t)) >= 0) tensors[ggml_get_name(t)] = t;
  change(tensors, more.get());
  const gguf_context_ptr after(gguf_init_empty());
  gguf_set_kv(after.get(), before.get());
  for (const auto& [name, tensor] : tensors) {
    ggml_set_name(tensor, name.c_str());
    gguf_add_tensor(after.get(), tensor);
  }
  REQUIRE(gguf_write_to_file(after.get(), to.c_str(), false));
  return to;
}

/// A tensor's numbers as float32, in the order of the file.
std::vector<float> floats(const GgufTensor& tensor) {
  std::int64_t count = 1;
  for (const std::int64_t size : tensor.shape) count *= size;
  std::vector<float> all(static_cast<std::size_t>(count));
  if (tensor.type == GGML_TYPE_F32)
    std::memcpy(all.data(), tensor.bytes.data(), tensor.bytes.size());
  else
    ggml_get_type_traits(tensor.type)->to_float(tensor.bytes.data(), all.data(), count);
  return all;
}

/// Tokens of an answer to a prompt of any model for these sizes.
template <class Stored = float, class Model>
std::vector<std::int32_t> some_tokens(Model& model, int steps = 16) {
  DenoisingLoop<Model, Stored> loop(model);
  loop.add(std::vector<std::int32_t>{3, 1, 4, 1, 5, 9, 2, 6}, {.response = 16},
           DllmCachePolicy{.prompt_interval = 8, .response_interval = 4});
  for (int step = 0; step < steps; ++step) loop.step();
  const auto response = loop.sequence(0).response();
  return {response.begin(), response.end()};
}

std::string content(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST_CASE("ggml: golden cases end in the reference's tokens, with the library's rows", "[ggml]") {
  for (const std::string& name : cases()) {
    DYNAMIC_SECTION(name) {
      const Case golden(name);
      const std::filesystem::path file = gguf(golden.request.at("model"));
      models::TransformerRunner own(golden.load(models::Backend::Eigen), 1);
      const Answer expected = answer(own, golden);
      check_tokens(expected, golden);
      for (const AttentionBy by : {AttentionBy::Library, AttentionBy::Flash}) {
        GgmlModel model = by_layers(file, by);
        const Answer found = answer(model, golden);
        check_tokens(found, golden);
        CHECK(found.rows == expected.rows);
      }
      for (const StepAttention attention : {StepAttention::Flash, StepAttention::Products}) {
        GgmlStepsModel model(open(file), "cpu", 1, attention);
        const Answer found = answer(model, golden);
        check_tokens(found, golden);
        CHECK(found.rows == expected.rows);
      }
    }
  }
}

TEST_CASE("ggml: caches that look at attention end in the reference's tokens by layers", "[ggml]") {
  for (const std::string name :
       {"elastic-gamma09-p24-r32", "elastic-dream-gqa-window10-gamma093-t02-p28-r40",
        "d2cache-k8-prior10-p24-r32", "sparse-gqa-keep07-kernel5-p40-r16-b16-s16"}) {
    INFO(name);
    const Case golden(name);
    GgmlModel model = by_layers(gguf(golden.request.at("model")), AttentionBy::Flash);
    check_tokens(answer(model, golden), golden);
  }
}

TEST_CASE("ggml: files of fewer bits give nearly the same tokens", "[ggml]") {
  for (const std::string name : {"cache-kp100-kr7-rho025", "dream-kp25-kr4-rho025"})
    for (const ggml_type type : {GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K}) {
      const Case golden(name);
      const std::filesystem::path file = gguf(golden.request.at("model"), type);
      GgmlModel layers = by_layers(file);
      GgmlStepsModel steps(open(file));
      const Answer one = answer(layers, golden), other = answer(steps, golden);
      std::size_t equal = 0, alike = 0;
      const auto expected = golden.answer(0);
      for (std::size_t i = 0; i < expected.size(); ++i) {
        equal += one.tokens[0][i] == expected[i] ? 1U : 0U;
        alike += one.tokens[0][i] == other.tokens[0][i] ? 1U : 0U;
      }
      std::printf("%s, %s: %zu of %zu tokens as in float32, %zu alike both ways\n", name.c_str(),
                  ggml_type_name(type), equal, expected.size(), alike);
      // A random model's tokens hang by a thread: the same work, not the same words, is certain.
      CHECK(one.rows == other.rows);
    }
}

TEST_CASE("ggml: steps refuse what is not known before a graph is built", "[ggml]") {
  GgmlStepsModel model(open(gguf("llada-tiny")));
  DenoisingLoop<GgmlStepsModel> loop(model);
  const std::vector<std::int32_t> prompt{3, 1, 4, 1, 5, 9, 2, 6};
  SECTION("a threshold of similarity") {
    loop.add(prompt, {.response = 16}, BlockVerifyPolicy{});
    CHECK_THROWS_WITH(loop.run(), Catch::Contains("similarity_threshold 0.99") &&
                                      Catch::Contains("dllm-cache, prefix, dual"));
  }
  SECTION("a policy that decides between layers, by its name") {
    CHECK_THROWS_WITH(loop.add(prompt, {.response = 16}, ElasticPolicy{}),
                      Catch::Contains("policy elastic decides between layers"));
  }
  SECTION("none is taken") {
    loop.add(prompt, {.response = 16},
             BlockVerifyPolicy{.similarity_threshold = no_similarity_threshold});
    CHECK_NOTHROW(loop.run());
  }
  SECTION("block-causal attention") {
    CHECK_THROWS_WITH(
        loop.add(prompt, {.response = 16, .block_length = 8, .attention_block = 8}, NoCache{}),
        Catch::Contains("attention_block must be 0"));
  }
  SECTION("a backend that is not there") {
    CHECK_THROWS_WITH(GgmlStepsModel(open(gguf("llada-tiny")), "abacus"),
                      Catch::Contains("CPU") && Catch::Contains("abacus"));
  }
}

TEST_CASE("ggml: sequences join and leave a batch of steps", "[ggml]") {
  const std::vector<std::vector<std::int32_t>> prompts{{3, 1, 4, 1, 5}, {9, 2, 6, 5, 3, 5, 8}, {7}};
  const std::vector<AnyPolicy> policies{
      DllmCachePolicy{.prompt_interval = 5, .response_interval = 3}, DualCachePolicy{}, NoCache{}};
  const auto run = [&](auto& model) {
    DenoisingLoop<std::remove_reference_t<decltype(model)>> loop(model);
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      loop.add(prompts[i], {.response = 16, .block_length = 8, .steps = 16}, policies[i]);
      loop.step();
    }
    loop.run();
    std::vector<std::vector<std::int32_t>> tokens;
    for (Index i = 0; i < loop.sequences(); ++i)
      tokens.emplace_back(loop.sequence(i).response().begin(), loop.sequence(i).response().end());
    return tokens;
  };
  GgmlStepsModel steps(open(gguf("dream-tiny")));
  GgmlModel layers = by_layers(gguf("dream-tiny"));
  CHECK(run(steps) == run(layers));
}

TEST_CASE("ggml: steps follow every policy that selects a fixed count of rows", "[ggml]") {
  const std::vector<std::int32_t> prompt{3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5};
  const std::vector<AnyPolicy> policies{
      DllmCachePolicy{.prompt_interval = 5, .response_interval = 3},
      BlockVerifyPolicy{.similarity_threshold = no_similarity_threshold},
      ChangedRowsPolicy{},
      FreeCachePolicy{},
      VicinityPolicy{},
      DkvDecodePolicy{}};
  for (const AnyPolicy& policy : policies) {
    const auto run = [&](auto model) {
      DenoisingLoop<decltype(model)> loop(model);
      loop.add(prompt, {.response = 32, .block_length = 8, .steps = 32}, policy);
      loop.run();
      const auto response = loop.sequence(0).response();
      return std::pair(std::vector<std::int32_t>(response.begin(), response.end()),
                       loop.counts(0).recomputed);
    };
    CAPTURE(policy.traits({.prompt = 11, .response = 32}).name);
    for (const char* name : {"llada-tiny", "dream-tiny"})
      CHECK(run(GgmlStepsModel(open(gguf(name)))) == run(by_layers(gguf(name))));
  }
}

TEST_CASE("ggml: a clamp orders a similarity of NaN before all others", "[ggml]") {
  Runtime runtime(1);
  std::vector<float> in{NAN, 0.5F, -1.0F}, out(3);
  Graph graph(runtime);
  ggml_context* const c = graph.context();
  ggml_tensor* const x = graph.over(MatrixView<const float>(dense_view(in.data(), 1, 3)));
  graph.into(ggml_cont(c, ggml_clamp(c, ggml_neg(c, x), -2.0F, 2.0F)),
             dense_view(out.data(), 1, 3));
  graph.run();
  CHECK(out == std::vector<float>{2.0F, -0.5F, 1.0F});
}

TEST_CASE("ggml: files that say other things are refused by name", "[ggml]") {
  const testing::TemporaryFolder folder;
  const auto refusal = [&](const std::function<void(gguf_context*)>& change) -> std::string {
    const auto file = changed(gguf("llada-tiny"), folder / "changed.gguf", change);
    try {
      const Weights weights(open(file));
    } catch (const std::runtime_error& error) {
      CHECK_THAT(error.what(), Catch::Contains("changed.gguf"));
      return error.what();
    }
    return "taken";
  };
  CHECK(refusal([](gguf_context*) {}) == "taken");
  CHECK_THAT(refusal([](gguf_context* g) { gguf_remove_key(g, "llada.block_count"); }),
             Catch::Contains("llada.block_count"));
  CHECK_THAT(refusal([](gguf_context* g) { gguf_set_val_str(g, "llada.block_count", "4"); }),
             Catch::Contains("llada.block_count"));
  CHECK_THAT(refusal([](gguf_context* g) { gguf_set_val_u32(g, "llada.block_count", 5); }),
             Catch::Contains("blk.4."));
  CHECK_THAT(refusal([](gguf_context* g) { gguf_set_val_u32(g, "llada.block_count", 3); }),
             Catch::Contains("blk.3."));
  CHECK_THAT(refusal([](gguf_context* g) { gguf_set_val_u32(g, "llada.feed_forward_length", 32); }),
             Catch::Contains("ffn_gate") && Catch::Contains("expected shape"));
  CHECK_THAT(refusal([](gguf_context* g) { gguf_set_val_u32(g, "llada.attention.head_count", 5); }),
             Catch::Contains("head_count"));
  CHECK_THAT(
      refusal([](gguf_context* g) { gguf_set_val_u32(g, "llada.attention.head_count_kv", 3); }),
      Catch::Contains("divisor"));
  CHECK_THAT(refusal([](gguf_context* g) { gguf_set_val_str(g, "general.architecture", "llama"); }),
             Catch::Contains("llada") && Catch::Contains("general.architecture"));
  CHECK_THAT(
      refusal([](gguf_context* g) { gguf_set_val_str(g, "llada.rope.scaling.type", "yarn"); }),
      Catch::Contains("rope.scaling"));
  CHECK_THAT(refusal([](gguf_context* g) { gguf_set_val_bool(g, "llada.attention.causal", true); }),
             Catch::Contains("attention.causal"));
  CHECK_THAT(
      refusal([](gguf_context* g) { gguf_set_val_u32(g, "tokenizer.ggml.mask_token_id", 96); }),
      Catch::Contains("mask_token_id"));
}

TEST_CASE("ggml: damaged files are refused and never end the process", "[ggml]") {
  const testing::TemporaryFolder folder;
  const std::string whole = content(gguf("llada-tiny"));
  const auto refused = [&](const std::string& bytes) {
    const auto file = folder.write("damaged.gguf", bytes);
    try {
      const Weights weights(open(file));
    } catch (const std::runtime_error& error) {
      return std::string_view(error.what()).find("damaged.gguf") != std::string_view::npos;
    }
    return false;
  };
  std::size_t taken = 0;
  for (std::size_t size = 0; size < whole.size() - 32; size += size < 4096 ? 37 : 9973)
    taken += refused(whole.substr(0, size)) ? 0U : 1U;
  CHECK(taken == 0);
  CHECK(refused("GGUG" + whole.substr(4)));
  CHECK(refused(""));
  // Any byte of the header: an error, or a file that still makes sense.
  std::mt19937 random(1);
  for (int run = 0; run < 300; ++run) {
    std::string bytes = whole;
    bytes[random() % 4096] = static_cast<char>(random());
    folder.write("damaged.gguf", bytes);
    try {
      const Weights weights(open(folder / "damaged.gguf"));
    } catch (const std::runtime_error&) {
    }
  }
}

TEST_CASE("ggml: grouped queries, biases and a tied head run as in the bundled model", "[ggml]") {
  nlohmann::json biased = testing::grouped_llada(), tied = testing::grouped_dream();
  biased["include_qkv_bias"] = true;
  tied["tie_word_embeddings"] = true;
  for (const nlohmann::json& config : {testing::grouped_llada(), biased, tied}) {
    INFO(config);
    const testing::TemporaryFolder folder;
    const testing::RandomCheckpoint written(folder / "model", config);
    write_gguf(folder / "model", folder / "model.gguf", GGML_TYPE_F32);
    CHECK((open(folder / "model.gguf")->find("output.weight") == nullptr) ==
          config.contains("tie_word_embeddings"));
    models::TransformerRunner bundled(models::load_model(folder / "model"), 1);
    const std::vector<std::int32_t> expected = some_tokens(bundled);
    for (const AttentionBy by : {AttentionBy::Library, AttentionBy::Flash}) {
      GgmlModel layers = by_layers(folder / "model.gguf", by);
      CHECK(some_tokens(layers) == expected);
    }
    GgmlStepsModel steps(open(folder / "model.gguf"));
    CHECK(some_tokens(steps) == expected);
  }
}

TEST_CASE("ggml: with features of 16 bits the first tokens are those of float32", "[ggml]") {
  const testing::TemporaryFolder folder;
  const testing::RandomCheckpoint written(folder / "model", testing::grouped_dream());
  write_gguf(folder / "model", folder / "model.gguf", GGML_TYPE_F32);
  for (const AttentionBy by : {AttentionBy::Library, AttentionBy::Flash}) {
    GgmlModel model = by_layers(folder / "model.gguf", by);
    CHECK(some_tokens<Eigen::bfloat16>(model, 3) == some_tokens(model, 3));
  }
}

TEST_CASE("ggml: a tokenizer that numbers tokens changes no answer", "[ggml]") {
  const testing::TemporaryFolder folder;
  const std::filesystem::path file = folder / "model.gguf";
  write_gguf(golden::folder() / "models" / "llada-tiny", file, GGML_TYPE_F32, Tokenizer::Numbers);
  const gguf_context_ptr keys(gguf_init_from_file(file.c_str(), {true, nullptr}));
  REQUIRE(keys != nullptr);
  const auto list = [&](const char* name) {
    return gguf_find_key(keys.get(), (std::string("tokenizer.ggml.") + name).c_str());
  };
  CHECK(gguf_get_arr_n(keys.get(), list("tokens")) == 96);
  CHECK(gguf_get_arr_str(keys.get(), list("tokens"), 95) == std::string("<95>"));
  CHECK(gguf_get_arr_n(keys.get(), list("token_type")) == 96);
  CHECK(gguf_get_arr_n(keys.get(), list("merges")) == 0);
  GgmlModel numbered = by_layers(file), plain = by_layers(gguf("llada-tiny"));
  CHECK(some_tokens(numbered) == some_tokens(plain));
}

TEST_CASE("ggml: matrices come back from a file as they were, or as near as its type", "[ggml]") {
  const testing::TemporaryFolder folder;
  const testing::RandomCheckpoint written(folder / "model", testing::grouped_llada());
  const models::CheckpointFolder checkpoint(folder / "model");
  const std::string layer = "model.transformer.blocks.1.";
  const std::vector<float> value =
      models::read_floats(checkpoint.weight(layer + "v_proj.weight", {128, 256}));
  const std::vector<float> query =
      models::read_floats(checkpoint.weight(layer + "q_proj.weight", {256, 256}));
  const auto read = [&](ggml_type type, const char* name) {
    const auto counts = write_gguf(folder / "model", folder / "model.gguf", type);
    CHECK(counts.at(ggml_type_name(type)) == (type == GGML_TYPE_F32 ? 30 : 23));
    const GgufFile file(folder / "model.gguf");
    REQUIRE(file.find(name) != nullptr);
    CHECK(file.find(name)->type == type);
    return floats(*file.find(name));
  };
  CHECK(read(GGML_TYPE_F32, "blk.1.attn_v.weight") == value);
  // Halves of a head of 32 by turns: the pairs that are rotated together are neighbours.
  const std::vector<float> turned = read(GGML_TYPE_F32, "blk.1.attn_q.weight");
  for (const auto& [row, from] : {std::pair{0, 0}, {1, 16}, {2, 1}, {31, 31}, {33, 48}, {254, 239}})
    CHECK(std::equal(turned.begin() + row * 256, turned.begin() + (row + 1) * 256,
                     query.begin() + from * 256));
  std::vector<float> rounded = value;
  for (float& one : rounded) one = static_cast<float>(Eigen::bfloat16(one));
  CHECK(read(GGML_TYPE_BF16, "blk.1.attn_v.weight") == rounded);
  for (const auto& [type, steps] : {std::pair{GGML_TYPE_Q8_0, 127.0F}, {GGML_TYPE_Q4_K, 7.0F}}) {
    const std::vector<float> near = read(type, "blk.1.attn_v.weight");
    float off = 0.0F;  // as a part of the largest number of the block
    for (std::size_t block = 0; block < value.size(); block += 32) {
      float largest = 0.0F, difference = 0.0F;
      for (std::size_t i = block; i < block + 32; ++i) {
        largest = std::max(largest, std::abs(value[i]));
        difference = std::max(difference, std::abs(value[i] - near[i]));
      }
      off = std::max(off, difference / largest);
    }
    INFO(ggml_type_name(type));
    CHECK(off > 0.0F);
    CHECK(off < 1.0F / steps);
  }
}

TEST_CASE("ggml: matrices in layouts of the CPU backend's own compute the same", "[ggml]") {
  const testing::TemporaryFolder folder;
  const testing::RandomCheckpoint written(folder / "model", testing::grouped_llada());
  write_gguf(folder / "model", folder / "model.gguf", GGML_TYPE_Q4_K);
  GgmlModel plain = by_layers(folder / "model.gguf");
  const ggml_backend_ptr cpu(ggml_backend_cpu_init());
  GgmlModel packed(Weights(open(folder / "model.gguf"), repacked(cpu.get())));
  int tensors = 0;
  for (const auto& [place, count] : packed.weights().places()) {
    std::printf("%d tensors: %s\n", count, place.c_str());
    tensors += count;
  }
  CHECK(tensors == 30);
  const Index rows = 5;
  std::vector<float> x(static_cast<std::size_t>(rows * plain.shape().width));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i));
  const auto logits = [&](GgmlModel& model) {
    RowMajorMatrix<float> all(rows, model.vocabulary());
    model.logits(dense_view<const float>(x.data(), rows, model.shape().width), as_view(all));
    return all;
  };
  const RowMajorMatrix<float> a = logits(plain), b = logits(packed);
  CHECK((a - b).cwiseAbs().maxCoeff() < 0.02F * a.cwiseAbs().maxCoeff());
}

TEST_CASE("ggml: tensors that are missing, misshapen or not computed are refused by name",
          "[ggml]") {
  using Tensors = std::map<std::string, ggml_tensor*>;
  const testing::TemporaryFolder folder;
  const auto refusal = [&](const std::function<void(Tensors&, ggml_context*)>& change) {
    const auto file = rebuilt(gguf("llada-tiny"), folder / "changed.gguf", change);
    try {
      const Weights weights(open(file));
    } catch (const std::runtime_error& error) {
      CHECK_THAT(error.what(), Catch::Contains("changed.gguf"));
      return std::string(error.what());
    }
    return std::string("taken");
  };
  const auto put = [](const char* name, ggml_type type, std::int64_t row, std::int64_t rows) {
    return [=](Tensors& tensors, ggml_context* c) {
      tensors[name] = ggml_new_tensor_2d(c, type, row, rows);
      std::memset(tensors[name]->data, 0, ggml_nbytes(tensors[name]));
    };
  };
  CHECK(refusal([](Tensors&, ggml_context*) {}) == "taken");
  CHECK(refusal([](Tensors& tensors, ggml_context*) { tensors.erase("output.weight"); }) ==
        "taken");  // the head is the embedding
  CHECK_THAT(refusal([](Tensors& tensors, ggml_context*) { tensors.erase("blk.1.ffn_up.weight"); }),
             Catch::Contains("blk.1.ffn_up.weight") && Catch::Contains("no such tensor"));
  CHECK_THAT(refusal([](Tensors& tensors, ggml_context*) { tensors.erase("token_embd.weight"); }),
             Catch::Contains("token_embd.weight") && Catch::Contains("no such tensor"));
  CHECK_THAT(refusal(put("blk.2.attn_k.weight", GGML_TYPE_F32, 64, 63)),
             Catch::Contains("blk.2.attn_k.weight") && Catch::Contains("[64, 64], got [64, 63]"));
  CHECK_THAT(refusal(put("blk.0.attn_q.bias", GGML_TYPE_F32, 64, 2)),
             Catch::Contains("blk.0.attn_q.bias") && Catch::Contains("[64], got [64, 2]"));
  CHECK_THAT(refusal(put("blk.0.attn_output.bias", GGML_TYPE_F32, 64, 1)),
             Catch::Contains("blk.0.attn_output.bias") && Catch::Contains("not computed"));
  CHECK_THAT(refusal(put("blk.0.attn_q.weight", GGML_TYPE_I32, 64, 64)),
             Catch::Contains("blk.0.attn_q.weight") && Catch::Contains("got i32"));
  CHECK_THAT(refusal(put("blk.0.attn_norm.weight", GGML_TYPE_F16, 64, 1)),
             Catch::Contains("blk.0.attn_norm.weight") && Catch::Contains("expected type f32"));
}

TEST_CASE("ggml: other models and other biases are not written", "[ggml]") {
  const testing::TemporaryFolder folder;
  CHECK_THROWS_WITH(
      write_gguf(golden::folder() / "models/sdar-tiny", folder / "a.gguf", GGML_TYPE_F32),
      Catch::Contains("expected a LLaDA or a Dream"));
  nlohmann::json config = testing::grouped_llada();
  config["include_bias"] = true;
  const testing::RandomCheckpoint written(folder / "model", config);
  CHECK_THROWS_WITH(write_gguf(folder / "model", folder / "a.gguf", GGML_TYPE_F32),
                    Catch::Contains(".bias") && Catch::Contains("no place in the file"));
  CHECK(!std::filesystem::exists(folder / "a.gguf"));
}
