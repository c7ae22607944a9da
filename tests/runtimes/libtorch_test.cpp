// SPDX-License-Identifier: Apache-2.0
// LLaDA and Dream written with libtorch under the cache: what both forms answer, and what is
// promised of blocks over the cache's own memory.
#include "libtorch/torch_model.hpp"
#include "libtorch/torch_steps.hpp"

#undef CHECK  // torch brings that of its logging library, which ends the program
#include <catch2/catch.hpp>

#include "tests/support/golden_case.hpp"
#include "tests/support/random_checkpoint.hpp"
#include "tests/support/temporary_folder.hpp"

using namespace dllm_cache;
using golden::Case;
using torch_runtime::as_tensor;
using torch_runtime::TorchModel;
using torch_runtime::TorchStepModel;

namespace {

// The models are tiny: on a busy machine torch's threads do nothing but wait for each other.
const bool on_one_thread = (at::set_num_threads(1), true);

TorchModel load(const std::string& name) {
  return TorchModel(models::CheckpointFolder(golden::folder() / "models" / name));
}

using Tokens = std::vector<std::int32_t>;

struct Run {
  std::vector<Tokens> answers;
  std::vector<DecodingCounts> counts;
};

/// Answers to prompts in one batch, the first of which has the number `first`.
template <class M>
Run run(M& model, const std::vector<Tokens>& prompts, DecodingOptions options,
        const AnyPolicy& policy, Index first = 0) {
  DenoisingLoop<M> loop(model);
  options.sequence = static_cast<std::uint64_t>(first);
  for (const Tokens& prompt : prompts) {
    loop.add(prompt, options, policy);
    ++options.sequence;
  }
  loop.run();
  Run done;
  for (Index i = 0; i < loop.sequences(); ++i) {
    const auto response = loop.sequence(i).response();
    done.answers.emplace_back(response.begin(), response.end());
    done.counts.push_back(loop.counts(i));
  }
  return done;
}

/// Checks that both forms answer as the bundled model does, compute as many rows, and do so for
/// each prompt of a batch as if it were alone. Gives the answers.
std::vector<Tokens> check_both_forms(const std::filesystem::path& folder,
                                     const std::vector<Tokens>& prompts,
                                     const DecodingOptions& options, const AnyPolicy& policy) {
  models::TransformerRunner bundled(models::load_model(folder, {.backend = models::Backend::Eigen}),
                                    1);
  const Run expected = run(bundled, prompts, options, policy);
  const auto check = [&](auto model) {
    const Run together = run(model, prompts, options, policy);
    CHECK(together.answers == expected.answers);
    CHECK((together.counts == expected.counts));
    for (std::size_t i = 0; prompts.size() > 1 && i < prompts.size(); ++i) {
      const Run alone = run(model, {prompts[i]}, options, policy, static_cast<Index>(i));
      CHECK(alone.answers[0] == together.answers[i]);
      CHECK((alone.counts[0] == together.counts[i]));
    }
  };
  const models::CheckpointFolder opened(folder);
  check(TorchModel(opened));
  check(TorchStepModel(opened));
  return expected.answers;
}

/// What torch calls the type of a sum of bytes: versions differ.
template <class Function>
struct TotalOf;
template <class Total>
struct TotalOf<void (c10::MemoryReportingInfoBase::*)(void*, std::int64_t, Total, Total,
                                                      c10::Device)> {
  using type = Total;
};

/// Counts the memory that torch takes.
class MemoryCounter final : public c10::MemoryReportingInfoBase {
 public:
  using Total = TotalOf<decltype(&c10::MemoryReportingInfoBase::reportMemoryUsage)>::type;

  void reportMemoryUsage(void* /*memory*/, std::int64_t size, Total /*allocated*/,
                         Total /*reserved*/, c10::Device /*device*/) override {
    if (size > 0) m_bytes += static_cast<std::size_t>(size);  // less than 0: given back
  }
  [[nodiscard]] bool memoryProfilingEnabled() const override { return true; }
  [[nodiscard]] std::size_t bytes() const { return m_bytes; }

 private:
  std::size_t m_bytes = 0;
};

/// Bytes that torch takes for tensors of its own while `work` runs.
template <class Work>
std::size_t torch_bytes(const Work& work) {
  const auto counter = std::make_shared<MemoryCounter>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, counter);
  work();
  return counter->bytes();
}

}  // namespace

TEST_CASE("libtorch: golden cases end in the reference's tokens, by layers and by plan",
          "[libtorch]") {
  for (const std::string name :
       {"cache-kp100-kr7-rho025", "cache-kp50-kr6-rho025-blocks", "cache-half-steps-batch2",
        "cache-kp3-kr2-rho0", "cache-deep-model", "cfg-interval3-blocks", "uncached-blocks",
        "dream-kp25-kr4-rho025", "dream-kp100-kr8-rho025-batch2",
        "fastdllm-prefix-steps16-p24-r32-b16", "fastdllm-dual-steps16-p24-r32-b16",
        "fastdllm-dual-t03-p24-r32-b32", "dkv-reload4-p24-r32-b32-s32",
        "dpad-dual-gauss-w36-p24-r48-b12-s24", "streaming-w8-alpha03-t03-p24-r48-b12"}) {
    DYNAMIC_SECTION(name) {
      const Case golden(name);
      std::vector<Tokens> prompts, answers;
      for (Index i = 0; i < golden.batch(); ++i) {
        prompts.push_back(golden.prompt(i));
        answers.push_back(golden.answer(i));
      }
      const auto folder =
          golden::folder() / "models" / golden.request.at("model").get<std::string>();
      CHECK(check_both_forms(folder, prompts, golden.options(), golden.policy()) == answers);
    }
  }
}

TEST_CASE("libtorch: caches that look at attention run by layers, and are refused by plan",
          "[libtorch]") {
  for (const std::string name :
       {"elastic-gamma09-p24-r32", "elastic-dream-gqa-window10-gamma093-t02-p28-r40",
        "d2cache-k8-prior10-p24-r32", "sparse-gqa-keep07-kernel5-p40-r16-b16-s16"}) {
    INFO(name);
    const Case golden(name);
    const models::CheckpointFolder opened(golden::folder() / "models" /
                                          golden.request.at("model").get<std::string>());
    TorchModel layers(opened);
    CHECK(run(layers, {golden.prompt(0)}, golden.options(), golden.policy()).answers ==
          std::vector<Tokens>{golden.answer(0)});
    TorchStepModel steps(opened);
    CHECK_THROWS_WITH(run(steps, {golden.prompt(0)}, golden.options(), golden.policy()),
                      Catch::Contains("decides between layers"));
  }
}

TEST_CASE("libtorch: Dream answers under every policy as the bundled model does", "[libtorch]") {
  const std::vector<std::pair<std::string, AnyPolicy>> policies{
      {"prefix", PrefixCachePolicy{}},
      {"dual", DualCachePolicy{}},
      {"dkv", DkvDecodePolicy{3}},
      {"block-verify", BlockVerifyPolicy{.prompt_interval = 7,
                                         .response_interval = 4,
                                         .ratio = 0.5,
                                         .similarity_threshold = no_similarity_threshold}}};
  for (const auto& [name, policy] : policies) {
    DYNAMIC_SECTION(name) {
      check_both_forms(golden::folder() / "models/dream-tiny", {{3, 1, 4, 1, 5, 9, 2}},
                       {.response = 16, .block_length = 8}, policy);
    }
  }
}

TEST_CASE(
    "libtorch: shapes and variants of real checkpoints are computed as the bundled model does",
    "[libtorch]") {
  nlohmann::json llada = testing::grouped_llada(), dream = testing::grouped_dream();
  SECTION("grouped queries") {}
  SECTION("a head that is the embedding") {
    llada["weight_tying"] = true;
    dream["tie_word_embeddings"] = true;
  }
  SECTION("biases of queries, keys and values there, none here") {
    llada["include_qkv_bias"] = true;
    dream["attention_bias"] = false;
  }
  SECTION("seven query heads a key head, as Dream-7B has") {
    for (auto* config : {&llada, &dream}) (*config)["rms_norm_eps"] = 1e-6;
    llada["d_model"] = dream["hidden_size"] = 224;
    llada["n_heads"] = dream["num_attention_heads"] = 14;
    llada["n_kv_heads"] = dream["num_key_value_heads"] = 2;
  }
  for (const nlohmann::json& config : {llada, dream}) {
    const testing::TemporaryFolder folder;
    const testing::RandomCheckpoint written(folder / "model", config);
    check_both_forms(folder / "model", {{3, 1, 4, 1, 5, 9, 2, 6}}, {.response = 8},
                     DllmCachePolicy{.prompt_interval = 6, .response_interval = 3});
  }
}

TEST_CASE("libtorch: a tensor over a view has its memory, shape and stride", "[libtorch]") {
  std::vector<float> memory(60, 0.0F);
  const MatrixView<float> view{memory.data() + 2, 5, 7, 10};
  torch::Tensor tensor = as_tensor(view);
  CHECK(tensor.data_ptr<float>() == view.data);
  CHECK(tensor.sizes() == torch::IntArrayRef({5, 7}));
  tensor.fill_(1.0F);
  CHECK(std::count(memory.begin(), memory.end(), 1.0F) == 35);
  CHECK(view.row(4)[6] == 1.0F);
  CHECK(as_tensor(MatrixView<const Eigen::bfloat16>{}).scalar_type() == torch::kBFloat16);
}

TEST_CASE("libtorch: values, queries and keys are written where the cache wants them",
          "[libtorch]") {
  TorchModel model = load("llada-tiny");
  const Index rows = 3, width = model.shape().width;
  std::vector<float> x(static_cast<std::size_t>(rows * width)), out(x.size() * 3, NAN);
  const std::vector<std::int32_t> tokens{7, 8, 9}, positions{0, 5, 11};
  model.embed(tokens, dense_view(x.data(), rows, width));
  const auto place = [&](Index i) {
    return dense_view(out.data() + i * rows * width, rows, width);
  };
  auto layer = model.layer(0);
  layer.value(MatrixView<const float>(dense_view(x.data(), rows, width)), place(0));
  layer.query_key(MatrixView<const float>(dense_view(x.data(), rows, width)),
                  std::span<const std::int32_t>(positions), place(1), place(2));
  CHECK(std::none_of(out.begin(), out.end(), [](float one) { return std::isnan(one); }));
}

TEST_CASE("libtorch: attention copies neither keys nor values", "[libtorch]") {
  TorchModel model = load("llada-tiny");
  const ModelShape shape = model.shape();
  const Index keys = 4096;
  const std::vector<float> kept(static_cast<std::size_t>(2 * keys * shape.kv_width), 0.5F);
  std::vector<float> row(static_cast<std::size_t>(shape.width), 0.25F), u(row.size());
  const auto view = dense_view(kept.data(), keys, shape.kv_width);
  const std::vector<Segment<float>> segments{
      {0, 1, view, dense_view(kept.data() + keys * shape.kv_width, keys, shape.kv_width)}};
  const MatrixView<const float> x = dense_view(row.data(), 1, shape.width);
  auto layer = model.layer(0);
  const std::size_t bytes = torch_bytes([&] {
    layer.delta(x, x, std::span<const Segment<float>>(segments),
                dense_view(u.data(), 1, shape.width));
  });
  // The scores of one row and their softmax take a number a key and head, a copy one a key and
  // column, which is head_dim = 16 times as much.
  CHECK(bytes > 0);
  CHECK(bytes < static_cast<std::size_t>(keys * shape.kv_width) * sizeof(float));
}

TEST_CASE("libtorch: with features in bf16 the first tokens are those of float32", "[libtorch]") {
  const Case golden("cache-kp100-kr7-rho025");
  TorchModel model = load("llada-tiny");
  const auto tokens_after_three_steps = [&](auto stored) {
    DenoisingLoop<TorchModel, decltype(stored)> loop(model);
    loop.add(golden.prompt(0), golden.options(), golden.policy());
    for (int step = 0; step < 3; ++step) loop.step();
    const auto response = loop.sequence(0).response();
    return Tokens(response.begin(), response.end());
  };
  CHECK(tokens_after_three_steps(Eigen::bfloat16{}) == tokens_after_three_steps(float{}));
}

TEST_CASE("libtorch: a checkpoint with a variant that is not computed is refused", "[libtorch]") {
  CHECK_THROWS_WITH(load("a2d-qwen3-tiny"),
                    Catch::Contains("config.json") && Catch::Contains("norms of query heads"));
  const testing::TemporaryFolder folder;
  nlohmann::json config = testing::grouped_llada();
  config["include_bias"] = true;
  const testing::RandomCheckpoint written(folder / "model", config);
  CHECK_THROWS_WITH(TorchModel{models::CheckpointFolder(folder / "model")},
                    Catch::Contains("biases of norms"));
}
