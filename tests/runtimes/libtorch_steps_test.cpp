// SPDX-License-Identifier: Apache-2.0
// Whole steps carried out by libtorch, from lists.
#include "libtorch/torch_steps.hpp"

#undef CHECK  // torch brings that of its logging library, which ends the program
#include <catch2/catch.hpp>

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

struct Run {
  std::vector<Tokens> answers;
  std::vector<DecodingCounts> counts;
};

/// Sequences `[begin, end)` of a case in one batch.
template <class M>
Run run(M& model, const Case& golden, Index begin, Index end) {
  DenoisingLoop<M> loop(model);
  DecodingOptions options = golden.options();
  for (Index i = begin; i < end; ++i) {
    options.sequence = static_cast<std::uint64_t>(i);
    loop.add(golden.prompt(i), options, golden.policy());
  }
  loop.run();
  Run done;
  for (Index i = 0; i < end - begin; ++i) {
    const auto response = loop.sequence(i).response();
    done.answers.emplace_back(response.begin(), response.end());
    done.counts.push_back(loop.counts(i));
  }
  return done;
}

}  // namespace

TEST_CASE("libtorch by plan: golden cases end in the reference's tokens, rows are counted alike",
          "[libtorch]") {
  for (const std::string name :
       {"cache-kp100-kr7-rho025", "cache-half-steps-batch2", "uncached-blocks",
        "dream-kp25-kr4-rho025", "dream-kp100-kr8-rho025-batch2",
        "fastdllm-prefix-steps16-p24-r32-b16", "fastdllm-dual-t03-p24-r32-b32",
        "dkv-reload4-p24-r32-b32-s32", "cfg-interval3-blocks"}) {
    DYNAMIC_SECTION(name) {
      const Case golden(name);
      TorchStepModel model(checkpoint(golden));
      models::TransformerRunner layered(golden.load(models::Backend::Eigen), 1);
      const Run whole = run(model, golden, 0, golden.batch());
      CHECK((whole.counts == run(layered, golden, 0, golden.batch()).counts));
      for (Index i = 0; i < golden.batch(); ++i) {
        const auto at = static_cast<std::size_t>(i);
        CHECK(whole.answers[at] == golden.answer(i));
        const Run alone = run(model, golden, i, i + 1);
        CHECK(alone.answers[0] == whole.answers[at]);
        CHECK((alone.counts[0] == whole.counts[at]));
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
