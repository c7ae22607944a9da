// SPDX-License-Identifier: Apache-2.0
#include <catch2/catch.hpp>
#include <cstdint>
#include <cstring>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "dllm_cache/policies/block_cache.hpp"
#include "dllm_cache/policies/block_verify.hpp"
#include "dllm_cache/policies/dllm_cache.hpp"
#include "dllm_cache/policies/dual_cache.hpp"
#include "dllm_cache/workspace.hpp"
#include "tests/support/cached_run.hpp"
#include "tests/support/scalars.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;

namespace {

constexpr std::uint64_t seed = 2026;

template <class T>
bool on_a_line(const T* data) {
  return reinterpret_cast<std::uintptr_t>(data) % 64 == 0;
}

template <class T>
bool is_dense_on_a_line(MatrixView<T> view) {
  return view.stride == view.cols && on_a_line(view.data);
}

// Every matrix of a cache begins on a line, and no two of them overlap.
template <class Cache>
void require_lines(const Cache& cache, Index layers) {
  const auto* end = reinterpret_cast<const std::byte*>(cache.keys(0).data);
  const auto* const begin = end;
  const auto follows = [&](const auto& view) {
    REQUIRE(is_dense_on_a_line(view));
    REQUIRE(reinterpret_cast<const std::byte*>(view.data) >= end);
    end = reinterpret_cast<const std::byte*>(view.row(view.rows));
  };
  for (Index layer = 0; layer < layers; ++layer) {
    follows(cache.keys(layer));
    follows(cache.values(layer));
    follows(cache.deltas(layer));
  }
  REQUIRE(end - begin <= cache.bytes());
}

// Looks at what a layer is given, then computes it.
template <class Scalar, class Stored>
struct InspectingLayer {
  TinyLayer<Scalar, Stored> layer;
  Index multiple;    // that padded rows must be of
  Index rows;        // of the sequence
  Index* read_rows;  // counts rows of padding seen

  void value(MatrixView<const Scalar> x, MatrixView<Scalar> v) {
    CHECK(is_dense_on_a_line(v));
    layer.value(x, v);
  }
  void query_key(MatrixView<const Scalar> x, std::span<const std::int32_t> positions,
                 MatrixView<Scalar> q, MatrixView<Scalar> k) {
    CHECK(is_dense_on_a_line(q));
    CHECK(is_dense_on_a_line(k));
    layer.query_key(x, positions, q, k);
  }
  void delta(MatrixView<const Scalar> x, MatrixView<const Scalar> q,
             std::span<const Segment<Stored>> segments, MatrixView<Scalar> u) {
    CHECK(is_dense_on_a_line(q));
    CHECK(is_dense_on_a_line(u));
    for (const Segment<Stored>& segment : segments) {
      CHECK(is_dense_on_a_line(segment.keys));
      CHECK(is_dense_on_a_line(segment.values));
      const Index seen = segment.keys.rows;
      CHECK(segment.padded_rows ==
            (seen == rows ? (seen + multiple - 1) / multiple * multiple : seen));
      for (const auto& view : {segment.keys, segment.values})
        for (Index i = seen * view.cols; i < segment.padded_rows * view.cols; ++i)
          CHECK(static_cast<float>(view.data[i]) == 0.0F);
      *read_rows += segment.padded_rows - seen;
    }
    layer.delta(x, q, segments, u);
  }
};

// A cache with padding beside one without: what comes out must be equal in every bit.
template <class Scalar, class Stored>
struct Twins {
  TinyModel<Scalar, Stored> model;
  Index multiple;
  NanResource memory = {};
  Workspace<Scalar, Stored> workspace{&memory};
  FeatureCache<Scalar, Stored> plain, padded;
  RandomNumbers random{seed};
  std::vector<Index> tokens = {};
  Index read_rows = 0;

  Twins(Index layers, Index kv_heads, Index row_multiple, const SequenceShape& shape,
        const AnyPolicy& policy)
      : model(layers, seed, kv_heads),
        multiple(row_multiple),
        plain(model.shape(), shape, policy, &memory),
        padded(padded_shape(), shape, policy, &memory),
        tokens(start_tokens(model, shape, random)) {}

  [[nodiscard]] ModelShape padded_shape() const {
    ModelShape shape = model.shape();
    shape.row_multiple = multiple;
    return shape;
  }
  [[nodiscard]] PassRows<Scalar> step_padded(FeatureCache<Scalar, Stored>& cache,
                                             const Matrix<Scalar>& x, const StepInput& input) {
    auto pass = workspace.begin_step(cache, input);
    PassRows<Scalar> result{{pass.rows().begin(), pass.rows().end()},
                            Matrix<Scalar>(pass.row_count(), x.cols)};
    for (Index i = 0; i < pass.row_count(); ++i)
      std::copy_n(x.row(result.rows[static_cast<std::size_t>(i)]), x.cols, result.hidden.row(i));
    const MatrixView<Scalar> hidden =
        dense_view(result.hidden.data.data(), pass.row_count(), x.cols);
    for (Index layer = 0; layer < model.shape().layers; ++layer)
      pass.layer(InspectingLayer<Scalar, Stored>{model.layer(layer), multiple, cache.shape().rows(),
                                                 &read_rows},
                 hidden);
    return result;
  }
  void step(Index steps, const StepInput& input = {}) {
    for (; steps > 0; --steps) {
      const Matrix<Scalar> x = model.embed(tokens);
      REQUIRE(step_padded(padded, x, input) == run_step(workspace, plain, model, x, input));
      commit_tokens(tokens, plain.shape(), random);
    }
    require_lines(padded, padded.planner().traits().keeps_features ? model.shape().layers : 1);
  }
  void reset(const SequenceShape& shape) {
    plain.reset(shape);
    padded.reset(shape);
    tokens = start_tokens(model, shape, random);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("FeatureCache: outputs are dense, all matrices begin on 64 bytes",
                   "[feature_layout]", FloatInFloat, FloatInBfloat16, DoubleInDouble) {
  // Five rows of keys 12 and 28 wide: no matrix fills its last line.
  for (const Index kv_heads : {3, 7}) {
    Twins<typename TestType::Compute, typename TestType::Stored> twins(
        3, kv_heads, 1, {.prompt = 2, .response = 3}, DllmCachePolicy{5, 3, 0.4});
    REQUIRE(twins.plain.bytes() == twins.padded.bytes());
    twins.step(7);
    for (const SequenceShape shape :
         {SequenceShape{.response = 1}, SequenceShape{.prompt = 6, .response = 7}}) {
      twins.reset(shape);
      twins.step(4);
      twins.padded = twins.padded.clone();
      require_lines(twins.padded, 3);
      auto forked = twins.padded.fork();
      require_lines(forked, 3);
      require_lines(twins.padded, 3);
      twins.padded = std::move(forked);
      twins.step(3);
    }
    REQUIRE(twins.read_rows == 0);
  }
}

TEST_CASE("FeatureCache: 24 wide bfloat16 keys of 5 rows begin on 64 bytes in every layer",
          "[feature_layout]") {
  const ModelShape model{.layers = 4, .width = 10, .query_width = 48, .kv_width = 24};
  const SequenceShape shape{.prompt = 2, .response = 3};
  const FeatureCache<float, Eigen::bfloat16> cache(model, shape, DllmCachePolicy{});
  require_lines(cache, 4);
  // 240 bytes of keys and of values, 60 of deltas, each in whole lines.
  REQUIRE(cache.bytes() == 4 * (256 + 256 + 64));
}

TEMPLATE_TEST_CASE("FeatureCache: rows of zeros lie behind the keys, and change nothing",
                   "[feature_layout][property]", FloatInFloat, FloatInBfloat16) {
  for (const Index multiple : {2, 7, 16, 32}) {
    INFO("seed " << seed << ", row_multiple " << multiple);
    const std::vector<AnyPolicy> policies{NoCache{}, DllmCachePolicy{5, 3, 0.4}, DualCachePolicy{},
                                          BlockVerifyPolicy{.similarity_threshold = 0.9}};
    for (const AnyPolicy& policy : policies) {
      const StepInput input{.block = {2, 5}};
      Twins<typename TestType::Compute, typename TestType::Stored> twins(
          3, 3, multiple, {.prompt = 2, .response = 3}, policy);
      twins.step(6, input);
      REQUIRE(twins.read_rows > 0);
      REQUIRE(twins.padded.bytes() ==
              FeatureCache<typename TestType::Compute, typename TestType::Stored>::bytes_needed(
                  twins.padded_shape(), twins.padded.shape(), policy));
    }
  }
}

TEST_CASE("FeatureCache: no row of zeros is asked for where the rows are a multiple",
          "[feature_layout]") {
  Twins<float, float> twins(2, 2, 8, {.prompt = 8, .response = 8}, DllmCachePolicy{4, 2, 0.5});
  REQUIRE(twins.padded.bytes() == twins.plain.bytes());
  twins.step(5);
  REQUIRE(twins.read_rows == 0);
}

TEST_CASE("FeatureCache: memory used before holds rows of zeros in its new shape",
          "[feature_layout]") {
  Twins<float, float> twins(3, 3, 16, {.prompt = 20, .response = 30}, DllmCachePolicy{5, 3, 0.4});
  twins.step(4);
  // Smaller shapes lie in what were keys and values; the last one is larger than ever.
  for (const SequenceShape shape :
       {SequenceShape{.prompt = 2, .response = 3}, SequenceShape{.prompt = 10, .response = 7},
        SequenceShape{.response = 1}, SequenceShape{.prompt = 30, .response = 45}}) {
    twins.reset(shape);
    twins.step(4);
  }
}

TEST_CASE("FeatureCache: reshaped, rows of zeros lie behind the new rows", "[feature_layout]") {
  Twins<float, float> twins(2, 3, 16, {.prompt = 6, .response = 12, .attention_block = 6},
                            BlockCachePolicy{});
  twins.step(2, {.block = {6, 12}});
  twins.step(2, {.block = {12, 18}});
  REQUIRE(twins.read_rows > 0);  // the last block sees the whole sequence
  for (const Index response : {Index{24}, Index{12}}) {
    const SequenceShape shape{.prompt = 6, .response = response, .attention_block = 6};
    twins.plain.reshape(shape, 6);
    twins.padded.reshape(shape, 6);
    twins.tokens.resize(static_cast<std::size_t>(shape.rows()), TinyModel<float>::mask);
    for (Index begin = 6; begin < shape.rows(); begin += 6)
      twins.step(2, {.block = {begin, begin + 6}});
  }
}

TEST_CASE("FeatureCache: forks and clones keep their rows of zeros", "[feature_layout][fork]") {
  Twins<float, float> twins(2, 3, 16, {.prompt = 9, .response = 8}, DllmCachePolicy{5, 3, 0.4});
  twins.step(3);
  for (const bool fork : {true, false, true}) {
    FeatureCache<float> copy = fork ? twins.padded.fork() : twins.padded.clone();
    REQUIRE(copy.own_bytes() == (fork ? 0 : copy.bytes()));
    REQUIRE(twins.padded.own_bytes() == twins.padded.bytes());
    std::swap(copy, twins.padded);
    twins.step(3);
    REQUIRE(twins.padded.own_bytes() <= twins.padded.bytes());
    REQUIRE(twins.padded.own_bytes() > 0);
    twins.padded = twins.padded.clone();  // the next fork is compared with one that shares nothing
  }
  FeatureCache<float> shared = twins.padded.fork();
  std::swap(shared, twins.padded);
  twins.reset({.prompt = 2, .response = 3});
  twins.step(3);
  REQUIRE(twins.padded.own_bytes() == twins.padded.bytes());
}

TEST_CASE("FeatureCache: a snapshot is restored with another multiple of rows",
          "[feature_layout][snapshot]") {
  const SequenceShape shape{.prompt = 4, .response = 7};
  Twins<float, float> twins(2, 3, 16, shape, DllmCachePolicy{5, 3, 0.4});
  twins.step(4);
  std::stringstream of_plain, of_padded;
  twins.plain.save(SnapshotWriter(of_plain));
  twins.padded.save(SnapshotWriter(of_padded));
  REQUIRE(of_plain.str() == of_padded.str());
  // Into memory that held a longer sequence, each from the other's snapshot.
  const auto tokens = twins.tokens;
  twins.reset({.prompt = 20, .response = 9});
  twins.step(2);
  twins.reset(shape);
  twins.tokens = tokens;
  twins.padded.restore(SnapshotReader(of_plain));
  twins.plain.restore(SnapshotReader(of_padded));
  twins.step(6);
}

TEST_CASE("Segment: rows that may be read are those of its keys where nobody says otherwise",
          "[feature_layout]") {
  const std::vector<float> memory(12);
  const auto view = dense_view(memory.data(), 3, 4);
  const Segment<float> segment{0, 1, view, view};
  REQUIRE(segment.padded_rows == 3);
}
