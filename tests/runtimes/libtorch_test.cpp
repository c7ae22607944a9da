// SPDX-License-Identifier: Apache-2.0
// Blocks written with libtorch under the cache, over the cache's own memory.
#include "libtorch/torch_llada.hpp"

#undef CHECK  // torch brings that of its logging library, which ends the program
#include <catch2/catch.hpp>

#include "tests/support/golden_case.hpp"
#include "tests/support/random_checkpoint.hpp"
#include "tests/support/temporary_folder.hpp"

using namespace dllm_cache;
using golden::Case;
using torch_runtime::as_tensor;
using torch_runtime::TorchModel;

namespace {

TorchModel load(const std::string& name) {
  return TorchModel(models::CheckpointFolder(golden::folder() / "models" / name));
}

/// Hands torch the memory that it asks for and counts it.
class CountingAllocator final : public c10::Allocator {
 public:
  CountingAllocator() { c10::SetAllocator(c10::kCPU, this, 1); }
  c10::DataPtr allocate(std::size_t bytes) const override {
    m_bytes += bytes;
    return m_inner->allocate(bytes);
  }
  c10::DeleterFnPtr raw_deleter() const override { return m_inner->raw_deleter(); }
  [[nodiscard]] std::size_t bytes() const { return m_bytes; }

 private:
  c10::Allocator* m_inner = c10::GetAllocator(c10::kCPU);
  mutable std::size_t m_bytes = 0;
};

CountingAllocator& counting_allocator() {
  static CountingAllocator allocator;  // torch keeps it to the end
  return allocator;
}

/// Bytes that torch takes for tensors of its own while `work` runs.
template <class Work>
std::size_t torch_bytes(const Work& work) {
  const std::size_t before = counting_allocator().bytes();
  work();
  return counting_allocator().bytes() - before;
}

}  // namespace

TEST_CASE("libtorch: golden cases end in the reference's tokens", "[libtorch]") {
  for (const std::string name :
       {"cache-kp100-kr7-rho025", "cache-kp50-kr6-rho025-blocks", "cache-half-steps-batch2",
        "cache-kp3-kr2-rho0", "cache-deep-model", "cfg-interval3-blocks", "uncached-blocks",
        "fastdllm-prefix-steps16-p24-r32-b16", "fastdllm-dual-steps16-p24-r32-b16",
        "dkv-reload4-p24-r32-b32-s32"}) {
    DYNAMIC_SECTION(name) {
      const Case golden(name);
      TorchModel model = load(golden.request.at("model"));
      DenoisingLoop<TorchModel> loop(model);
      DecodingOptions options = golden.options();
      for (Index i = 0; i < golden.batch(); ++i) {
        options.sequence = static_cast<std::uint64_t>(i);
        loop.add(golden.prompt(i), options, golden.policy());
      }
      loop.run();
      for (Index i = 0; i < golden.batch(); ++i) {
        const auto response = loop.sequence(i).response();
        CHECK(std::vector<std::int32_t>(response.begin(), response.end()) == golden.answer(i));
      }
    }
  }
}

TEST_CASE("libtorch: grouped query heads share their keys as in the bundled model", "[libtorch]") {
  const testing::TemporaryFolder folder;
  const testing::RandomCheckpoint written(folder / "model", testing::grouped_llada());
  TorchModel torch_model{models::CheckpointFolder(folder / "model")};
  models::TransformerRunner bundled(models::load_model(folder / "model"), 1);
  const auto tokens = [](auto& model) {
    DenoisingLoop<std::remove_reference_t<decltype(model)>> loop(model);
    loop.add(std::vector<std::int32_t>{3, 1, 4, 1, 5, 9, 2, 6}, {.response = 16},
             DllmCachePolicy{.prompt_interval = 8, .response_interval = 4});
    loop.run();
    const auto response = loop.sequence(0).response();
    return std::vector<std::int32_t>(response.begin(), response.end());
  };
  CHECK(tokens(torch_model) == tokens(bundled));
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
    return std::vector<std::int32_t>(response.begin(), response.end());
  };
  CHECK(tokens_after_three_steps(Eigen::bfloat16{}) == tokens_after_three_steps(float{}));
}

TEST_CASE("libtorch: a checkpoint with a variant that the blocks do not compute is refused",
          "[libtorch]") {
  CHECK_THROWS_WITH(load("dream-tiny"), Catch::Contains("config.json"));
}

TEST_CASE("libtorch: biases are refused though no key names them", "[libtorch]") {
  const testing::TemporaryFolder folder;
  nlohmann::json config = testing::grouped_llada();
  config["include_qkv_bias"] = true;
  const testing::RandomCheckpoint written(folder / "model", config);
  config.erase("include_qkv_bias");
  std::ofstream(folder / "model/config.json") << config;
  CHECK_THROWS_WITH(TorchModel{models::CheckpointFolder(folder / "model")},
                    Catch::Contains("q_proj.bias"));
}
