// SPDX-License-Identifier: Apache-2.0
// Products of every backend, and the row operations that feed them, against plain ones in double.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "dllm_cache/models/compute/linear.hpp"
#include "dllm_cache/models/compute/row_operations.hpp"
#include "tests/models/all_options.hpp"
#include "tests/support/random_numbers.hpp"
#include "tests/support/refusal.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;
using models::Backend;
using models::Precision;

namespace {

constexpr std::uint64_t seed = 3072;

struct Problem {
  Problem(Index row_count, Index input_count, Index output_count)
      : rows(row_count), inputs(input_count), outputs(output_count) {
    RandomNumbers random(seed);
    weights = random.vector<float>(outputs * inputs);
    bias = random.vector<float>(outputs);
    x = random.vector<float>(models::Products::padded_rows(rows) * inputs);
  }
  [[nodiscard]] models::Linear linear(const models::ComputeOptions& options) const {
    const models::Tensor weight{.name = "weight",
                                .shape = {outputs, inputs},
                                .bytes = std::as_bytes(std::span<const float>(weights))};
    const models::Tensor offset{
        .name = "bias", .shape = {outputs}, .bytes = std::as_bytes(std::span<const float>(bias))};
    return {weight, &offset, options};
  }
  [[nodiscard]] double expected(Index row, Index output) const {
    double sum = bias[static_cast<std::size_t>(output)];
    for (Index i = 0; i < inputs; ++i)
      sum += static_cast<double>(x[static_cast<std::size_t>(row * inputs + i)]) *
             static_cast<double>(weights[static_cast<std::size_t>(output * inputs + i)]);
    return sum;
  }
  Index rows, inputs, outputs;
  std::vector<float> weights, bias, x;
};

double silu(double x) { return x / (1.0 + std::exp(-x)); }

}  // namespace

TEST_CASE("Products: any number of rows, and nothing is written behind the last one",
          "[models][products]") {
  models::ThreadTeam team(2);
  // On and off the numbers of rows that oneDNN's products are made for, few and many.
  for (const Index rows : {1, 2, 17, 64, 100, 513, 575, 576, 641}) {
    const Problem problem(rows, 48, 80);
    for (const models::ComputeOptions& options : all_options()) {
      INFO("seed " << seed << ", " << rows << " rows, backend " << static_cast<int>(options.backend)
                   << ", precision " << static_cast<int>(options.precision));
      // 48 terms in [-1, 1]: float32 loses 48 * 2^-24 of each at most, bf16 2^-9 of either factor.
      const double tolerance = options.precision == Precision::Float32 ? 1e-4 : 0.1;
      const models::Linear linear = problem.linear(options);
      models::Products products(team);
      const auto size = static_cast<std::size_t>(rows * problem.outputs);
      constexpr float untouched = -12345.0F;
      std::vector<float> y(size + 64 * 80, untouched);
      products.apply(dense_view(problem.x.data(), rows, problem.inputs),
                     {{&linear, dense_view(y.data(), rows, problem.outputs)}});
      double worst = 0.0;
      for (Index row = 0; row < rows; ++row)
        for (Index i = 0; i < problem.outputs; ++i) {
          const double got = y[static_cast<std::size_t>(row * problem.outputs + i)];
          worst = std::max(worst, std::abs(got - problem.expected(row, i)));
        }
      CHECK(worst < tolerance);
      CHECK(std::all_of(y.begin() + static_cast<std::ptrdiff_t>(size), y.end(),
                        [](float one) { return one == untouched; }));
      CHECK(products.operations() == 2.0 * static_cast<double>(rows) * 48 * 80);
    }
  }
}

TEST_CASE("Products: outputs with a stride and outputs with room for padding are the same",
          "[models][products]") {
  models::ThreadTeam team(1);
  const Problem problem(21, 48, 80);
  for (const models::ComputeOptions& options : all_options()) {
    const models::Linear linear = problem.linear(options);
    models::Products products(team);
    const auto x = dense_view(problem.x.data(), problem.rows, problem.inputs);
    std::vector<float> dense(21 * 80), padded(64 * 80), wide(21 * 96);
    products.apply(x, {{&linear, dense_view(dense.data(), 21, 80)},
                       {&linear, dense_view(padded.data(), 21, 80), true},
                       {&linear, MatrixView<float>{wide.data(), 21, 80, 96}}});
    CHECK(std::equal(dense.begin(), dense.end(), padded.begin()));
    for (std::size_t row = 0; row < 21; ++row)
      CHECK(std::equal(dense.begin() + static_cast<std::ptrdiff_t>(row * 80),
                       dense.begin() + static_cast<std::ptrdiff_t>(row * 80 + 80),
                       wide.begin() + static_cast<std::ptrdiff_t>(row * 96)));
  }
}

TEST_CASE("Products: rows rounded on the way give what rows rounded before the product give",
          "[models][products]") {
  models::ThreadTeam team(1);
  const Problem problem(21, 48, 80);
  for (const models::ComputeOptions& options : all_options()) {
    const models::Linear linear = problem.linear(options);
    models::Products products(team);
    const auto x = dense_view(problem.x.data(), problem.rows, problem.inputs);
    std::vector<float> expected(21 * 80), got(21 * 80);
    products.apply(x, {{&linear, dense_view(expected.data(), 21, 80)}});
    models::ProductInput input;
    const Index padded = models::Products::padded_rows(problem.rows);
    input.resize(problem.rows, problem.inputs, padded, linear.multiplies_bf16());
    input.fill([&](auto rows) {
      for (Index row = 0; row < x.rows; ++row)
        models::detail::round_row(x.row(row), rows.row(row), x.cols);
    });
    products.apply(input, {{&linear, dense_view(got.data(), 21, 80)}});
    CHECK(got == expected);
  }
}

TEST_CASE("Products: rows of another type than the linear map multiplies are refused",
          "[models][products]") {
  models::ThreadTeam team(1);
  const Problem problem(21, 48, 80);
  for (const models::ComputeOptions& options : all_options()) {
    const models::Linear linear = problem.linear(options);
    models::Products products(team);
    models::ProductInput input;
    input.resize(problem.rows, problem.inputs, models::Products::padded_rows(problem.rows),
                 !linear.multiplies_bf16());
    std::vector<float> y(21 * 80);
    const std::string message = refusal<std::invalid_argument>([&] {
      products.apply(input, {{&linear, dense_view(y.data(), 21, 80)}});
      return 0;
    });
    CHECK_THAT(message, Catch::Contains("Products") && Catch::Contains("narrow"));
  }
}

TEST_CASE("Linear: it multiplies what its options say", "[models][products]") {
  const Problem problem(1, 16, 16);
  for (const models::ComputeOptions& options : all_options()) {
    CHECK(problem.linear(options).multiplies_bf16() == models::multiplies_bf16(options));
    CHECK(models::multiplies_bf16(options) ==
          (options.backend == Backend::OneDnn && options.precision == Precision::Bfloat16));
  }
}

TEST_CASE("Linear: only float32 weights for Eigen are read from their tensor later",
          "[models][products]") {
  const Problem problem(1, 16, 16);
  for (const models::ComputeOptions& options : all_options())
    CHECK(problem.linear(options).reads_tensor() ==
          (options.backend == Backend::Eigen && options.precision == Precision::Float32));
}

TEST_CASE("Linear: a backend that is not built in is refused", "[models][products]") {
  const Problem problem(1, 16, 16);
  const std::string message = refusal<std::invalid_argument>([&] {
    return problem.linear({static_cast<Backend>(77), Precision::Float32});
  });
  CHECK_THAT(message, Catch::Contains("ComputeOptions: backend must be one that is built in") &&
                          Catch::Contains("Eigen") && Catch::Contains("got unknown"));
}

TEST_CASE("can_compute: Eigen computes everywhere, a backend that is not there nowhere",
          "[models][products]") {
  for (const Precision precision : {Precision::Float32, Precision::Bfloat16}) {
    CHECK(models::can_compute({Backend::Eigen, precision}));
    CHECK_FALSE(models::can_compute({static_cast<Backend>(77), precision}));
  }
  CHECK(models::can_compute({Backend::OneDnn, Precision::Float32}) == models::has_onednn);
}

TEST_CASE("Linear: bf16 is refused where oneDNN has no products of it, with what to ask for",
          "[models][products]") {
  const models::ComputeOptions options{Backend::OneDnn, Precision::Bfloat16};
  if (!models::has_onednn || models::can_compute(options)) {
    WARN("not tested: oneDNN has bf16 products on this processor, or is not built in");
    return;
  }
  const Problem problem(1, 16, 16);
  const std::string message =
      refusal<std::invalid_argument>([&] { return problem.linear(options); });
  CHECK(message ==
        "ComputeOptions: the backend oneDNN has no bf16 products on this processor: ask for "
        "float32, or the backend Eigen");
}

TEST_CASE("gate_silu: silu of the gate times up for widths on and off the lanes", "[models]") {
  models::ThreadTeam team(1);
  for (const Index width : {1, 16, 19}) {
    RandomNumbers random(seed);
    std::vector<float> gate = random.vector<float>(3 * width, 200.0);
    const std::vector<float> before = gate, up = random.vector<float>(3 * width, 1.0);
    const auto gates = dense_view(gate.data(), 3, width);
    const auto ups = dense_view(up.data(), 3, width);
    std::vector<Eigen::bfloat16> rounded(gate.size());
    models::gate_silu(gates, ups, dense_view(rounded.data(), 3, width), team);
    models::gate_silu(gates, ups, gates, team);
    for (std::size_t i = 0; i < gate.size(); ++i) {
      CHECK(gate[i] == Approx(silu(before[i]) * static_cast<double>(up[i])).margin(1e-30));
      CHECK(static_cast<float>(rounded[i]) == Approx(gate[i]).epsilon(0x1p-8).margin(1e-30));
    }
  }
}

TEST_CASE("RmsNorm: rows rounded on the way are the rounded rows, with and without a bias",
          "[models]") {
  models::ThreadTeam team(1);
  for (const bool biased : {false, true})
    for (const Index width : {1, 16, 37}) {
      RandomNumbers random(seed);
      models::RmsNorm norm;
      norm.weight = random.vector<float>(width);
      if (biased) norm.bias = random.vector<float>(width);
      const std::vector<float> x = random.vector<float>(2 * width, 5.0);
      const auto rows = dense_view(x.data(), 2, width);
      std::vector<float> wide(x.size());
      std::vector<Eigen::bfloat16> narrow(x.size());
      norm.apply(rows, dense_view(wide.data(), 2, width), team);
      norm.apply(rows, dense_view(narrow.data(), 2, width), team);
      for (std::size_t i = 0; i < x.size(); ++i)
        CHECK(static_cast<float>(narrow[i]) == Approx(wide[i]).epsilon(0x1p-8).margin(1e-6));
    }
}
