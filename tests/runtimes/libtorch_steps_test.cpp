// SPDX-License-Identifier: Apache-2.0
// Whole steps carried out by libtorch, from lists.
#include "libtorch/torch_steps.hpp"

#include <ATen/record_function.h>

#undef CHECK  // torch brings that of its logging library, which ends the program
#include <catch2/catch.hpp>
#include <map>
#include <memory>

#include "tests/support/golden_case.hpp"

using namespace dllm_cache;
using golden::Case;
using torch_runtime::TorchStepModel;

namespace {

models::CheckpointFolder checkpoint(const Case& golden) {
  return models::CheckpointFolder(golden::folder() / "models" /
                                  golden.request.at("model").get<std::string>());
}

using Tokens = std::vector<std::int32_t>;

/// Operations of torch while it is watched, by name.
std::map<std::string, int>* watched = nullptr;

std::unique_ptr<at::ObserverContext> count_operation(const at::RecordFunction& operation) {
  if (watched != nullptr) ++(*watched)[operation.name()];
  return nullptr;
}

/// Counts operations while `work` runs.
template <class Work>
std::map<std::string, int> operations_of(const Work& work) {
  std::map<std::string, int> counts;
  const auto handle = at::addThreadLocalCallback(
      at::RecordFunctionCallback(count_operation).scopes({at::RecordScope::FUNCTION}));
  watched = &counts;
  work();
  watched = nullptr;
  at::removeCallback(handle);
  return counts;
}

/// Operations that wait for a device because the host must know what they give, or how long it is.
int host_reads(const std::map<std::string, int>& counts) {
  int reads = 0;
  for (const auto& [name, count] : counts)
    for (const char* waits :
         {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero",
          "aten::masked_select", "aten::equal", "aten::_unique2", "aten::repeat_interleave"})
      if (name == waits) reads += count;
  return reads;
}

/// Notes what every step does.
struct WatchedModel : TorchStepModel {
  using TorchStepModel::TorchStepModel;
  void forward(std::span<SequenceStep<Features>> batch, MatrixView<float> logits) {
    steps.push_back(operations_of([&] { TorchStepModel::forward(batch, logits); }));
  }
  std::vector<std::map<std::string, int>> steps;
};

}  // namespace

TEST_CASE("libtorch by plan: nothing is read back from the device within a step", "[libtorch]") {
  // The means: each of these would be seen.
  const torch::Tensor numbers = torch::arange(4);
  CHECK(host_reads(operations_of([&] { (void)numbers.max().item<std::int64_t>(); })) > 0);
  CHECK(host_reads(operations_of([&] { (void)numbers.index({numbers > 1}); })) > 0);
  CHECK(host_reads(operations_of([&] { (void)(numbers + 1); })) == 0);

  BlockVerifyPolicy fixed = balanced_fixed_policy(), threshold = fixed;
  threshold.similarity_threshold = 0.9;
  for (const auto& name : {"llada-tiny", "dream-tiny"}) {
    for (const AnyPolicy& policy :
         {AnyPolicy(NoCache{}), AnyPolicy(fixed), AnyPolicy(threshold),
          AnyPolicy(DualCachePolicy{}),
          AnyPolicy(
              DllmCachePolicy{.prompt_interval = 6, .response_interval = 3, .ratio = 0.25})}) {
      WatchedModel model(models::CheckpointFolder(golden::folder() / "models" / name));
      DenoisingLoop<WatchedModel> loop(model);
      for (const Tokens& prompt : {Tokens{3, 1, 4, 1, 5}, Tokens{9, 2, 6}})
        loop.add(prompt, {.response = 8, .block_length = 4, .guidance_scale = 0.5}, policy);
      loop.run();
      REQUIRE(model.steps.size() >= 8);
      for (const auto& step : model.steps) {
        CHECK(step.count("aten::linear") == 1);
        CHECK(host_reads(step) == 0);
      }
    }
  }
}

TEST_CASE("libtorch by plan: rows are selected as LeastSimilarRows does", "[libtorch]") {
  for (const auto type : {torch::kFloat32, torch::kBFloat16}) {
    // Equal rows, a zero row, NaN, opposite, ties, and values that differ below bf16 alone.
    const torch::Tensor kept = torch::tensor({1.0F, 2.0F, 0.0F, 0.0F, 1.0F, NAN, 1.0F, 0.0F, 3.0F,
                                              4.0F, 1.0F, 0.0F, 1.0F, 1.0F})
                                   .view({7, 2})
                                   .to(type);
    const torch::Tensor fresh = torch::tensor({1.0F, 2.0F, 1.0F, 0.0F, 1.0F, 1.0F, -1.0F, 0.0F,
                                               4.0F, -3.0F, 0.0F, 2.0F, 1.0F, 1.0001F})
                                    .view({7, 2});
    const torch::Tensor a = fresh.to(type).to(torch::kFloat64), b = kept.to(torch::kFloat64);
    std::vector<SimilaritySums> sums;
    for (std::int64_t row = 0; row < 7; ++row)
      sums.push_back({(a[row] * b[row]).sum().item<double>(), a[row].square().sum().item<double>(),
                      b[row].square().sum().item<double>()});
    LeastSimilarRows rule;
    for (Index count = 0; count <= 7; ++count) {
      std::vector<Index> expected;
      rule.select(sums, count, expected);
      const auto places =
          std::get<0>(torch_runtime::select_rows(fresh, kept, count).places.sort()).contiguous();
      CHECK(std::vector<Index>(places.data_ptr<std::int64_t>(),
                               places.data_ptr<std::int64_t>() + places.numel()) == expected);
    }
  }
}

TEST_CASE("libtorch by plan: a threshold, and bf16, end in an answer", "[libtorch]") {
  const Case golden("cache-kp100-kr7-rho025");
  const BlockVerifyPolicy policy{
      .prompt_interval = 7, .response_interval = 4, .ratio = 0.5, .similarity_threshold = 0.9};
  const auto answer = [&](auto& model) {
    DenoisingLoop<std::remove_reference_t<decltype(model)>> loop(model);
    loop.add(golden.prompt(0), golden.options(), policy);
    loop.run();
    const auto response = loop.sequence(0).response();
    return Tokens(response.begin(), response.end());
  };
  TorchStepModel model(checkpoint(golden));
  models::TransformerRunner layered(golden.load(models::Backend::Eigen), 1);
  CHECK(answer(model) == answer(layered));
  TorchStepModel narrow(checkpoint(golden), torch::kCPU, torch::kBFloat16);
  CHECK(answer(narrow).size() == static_cast<std::size_t>(golden.response()));
}
