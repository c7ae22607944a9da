// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstdint>
#include <span>
#include <utility>

#include "dllm_cache/base/matrix_view.hpp"

namespace dllm_cache::inline v0_1 {

/// Rows `[begin, end)` of the matrix `x` given to `delta` that all see the same keys.
///
/// Keys are `[n, kv]`, rotated; values `[n, kv]`; `n` differs from segment to segment, so use
/// `keys.rows`, never a length of your own. Both are dense and begin on a multiple of 64 bytes.
/// Segments come in ascending row order and cover every row of `x`; those of one sequence share one
/// base pointer.
template <class Stored>
struct Segment {
  Index begin = 0;
  Index end = 0;
  MatrixView<const Stored> keys;
  MatrixView<const Stored> values;
  /// So many rows of keys and of values may be read, at least `n`: those behind the first `n` are
  /// zero. More than `n` where the model's `row_multiple` asks for it and the segment sees the
  /// whole sequence; otherwise other keys lie there.
  Index padded_rows = keys.rows;
};

/// Part of TransformerLayer: write `void value(MatrixView<const Scalar> x, MatrixView<Scalar> v)`:
/// the first norm and the value projection, `x [m, d] -> v [m, kv]`.
template <class L, class Scalar>
concept ComputesValues = requires(L& layer, MatrixView<const Scalar> x, MatrixView<Scalar> v) {
  { layer.value(x, v) } -> std::same_as<void>;
};

/// Part of TransformerLayer: write `void query_key(MatrixView<const Scalar> x,
/// std::span<const std::int32_t> positions, MatrixView<Scalar> q, MatrixView<Scalar> k)`:
/// `x [m, d] -> q [m, heads * head_dim], k [m, kv]`, normed and rotated by the given positions.
template <class L, class Scalar>
concept ComputesQueriesAndKeys = requires(L& layer, MatrixView<const Scalar> x,
                                          std::span<const std::int32_t> positions,
                                          MatrixView<Scalar> q, MatrixView<Scalar> k) {
  { layer.query_key(x, positions, q, k) } -> std::same_as<void>;
};

/// Part of TransformerLayer: write `void delta(MatrixView<const Scalar> x,
/// MatrixView<const Scalar> q, std::span<const Segment<Stored>> segments, MatrixView<Scalar> u)`:
/// `u [m, d]` = attention output + feed-forward output of the rows `x [m, d]`, residual not added.
template <class L, class Scalar, class Stored>
concept ComputesDeltas = requires(L& layer, MatrixView<const Scalar> x, MatrixView<const Scalar> q,
                                  std::span<const Segment<Stored>> segments, MatrixView<Scalar> u) {
  { layer.delta(x, q, segments, u) } -> std::same_as<void>;
};

/// A layer that also has features to verify rows by, where values are not what is compared: write
/// `void verify_feature(MatrixView<const Scalar> x, MatrixView<Scalar> f)`, x `[m, d]`, f
/// `[m, ModelShape::verify_width]`. Called for policies that ask for it (PolicyTraits).
template <class L, class Scalar>
concept ComputesVerifyFeatures = requires(L& layer, MatrixView<const Scalar> x,
                                          MatrixView<Scalar> f) {
  { layer.verify_feature(x, f) } -> std::same_as<void>;
};

/// A transformer layer as the cache sees it: three functions over rows.
///
/// Rules no concept can check: a row's result depends on that row and the keys it sees alone; the
/// outputs do not alias the inputs and are written whole; `v`, `q`, `k` and `u` are dense
/// (`stride == cols`) and begin on a multiple of 64 bytes, while `x` may have a stride; callbacks
/// never see zero rows and may throw (the caches then are stale and refresh at their next step).
/// The object is a light handle: weights are shared and const, scratch belongs to the caller, one
/// thread uses it at a time.
template <class L, class Scalar, class Stored = Scalar>
concept TransformerLayer = ComputesValues<L, Scalar> && ComputesQueriesAndKeys<L, Scalar> &&
    ComputesDeltas<L, Scalar, Stored>;

/// A layer made of three callables; see make_layer.
template <class Value, class QueryKey, class Delta>
struct CallbackLayer {
  Value value;
  QueryKey query_key;
  Delta delta;
};

/// Makes a TransformerLayer of three callables (lambdas) with the signatures of ComputesValues,
/// ComputesQueriesAndKeys and ComputesDeltas; keeps copies of them.
template <class Value, class QueryKey, class Delta>
[[nodiscard]] CallbackLayer<Value, QueryKey, Delta> make_layer(Value value, QueryKey query_key,
                                                               Delta delta) {
  return {std::move(value), std::move(query_key), std::move(delta)};
}

}  // namespace dllm_cache::inline v0_1
