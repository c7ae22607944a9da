// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "dllm_cache/layer.hpp"

namespace dllm_cache::testing {

/// Rows that one layer was asked for in one step.
struct LayerRows {
  Index value = 0, query_key = 0, delta = 0, feature = 0;
  friend bool operator==(const LayerRows&, const LayerRows&) = default;
};

/// What counting layers saw, and where they are to fail.
struct CallLog {
  std::vector<LayerRows> layers;        ///< One entry a layer() call of the pass.
  std::vector<Index> segment_sizes;     ///< Rows of each segment of the last delta.
  std::vector<Index> segment_keys;      ///< Keys of each segment of the last delta.
  std::vector<std::int32_t> positions;  ///< Of the last query_key.
  std::string broken_rule;              ///< First broken promise of the library, "" for none.
  Index calls = 0;
  Index throw_at = -1;  ///< The call that throws, counted from 0; -1: none.
};

struct CallbackError : std::runtime_error {
  CallbackError() : std::runtime_error("a layer failed") {}
};

/// Passes everything on to a layer, counts rows, checks what the library promises to callbacks.
template <class Layer, class Scalar, class Stored = Scalar>
class CountingLayer {
 public:
  CountingLayer(Layer layer, CallLog& log) : m_layer(layer), m_log(log) {
    log.layers.push_back({});
  }

  void value(MatrixView<const Scalar> x, MatrixView<Scalar> v) {
    m_log.layers.back().value += x.rows;
    expect(x.rows > 0 && v.rows == x.rows, "value: rows");
    expect(is_dense(v), "value: dense from 64 bytes on");
    m_layer.value(x, v);
    fail_if_told(v);
  }
  void query_key(MatrixView<const Scalar> x, std::span<const std::int32_t> positions,
                 MatrixView<Scalar> q, MatrixView<Scalar> k) {
    m_log.layers.back().query_key += x.rows;
    m_log.positions.assign(positions.begin(), positions.end());
    expect(x.rows > 0 && q.rows == x.rows && k.rows == x.rows &&
               static_cast<Index>(positions.size()) == x.rows,
           "query_key: rows");
    expect(is_dense(q) && is_dense(k), "query_key: dense from 64 bytes on");
    m_layer.query_key(x, positions, q, k);
    fail_if_told(k);
  }
  void verify_feature(MatrixView<const Scalar> x,
                      MatrixView<Scalar> f) requires ComputesVerifyFeatures<Layer, Scalar> {
    m_log.layers.back().feature += x.rows;
    expect(x.rows > 0 && f.rows == x.rows, "verify_feature: rows");
    expect(is_dense(f), "verify_feature: dense from 64 bytes on");
    m_layer.verify_feature(x, f);
    fail_if_told(f);
  }
  void delta(MatrixView<const Scalar> x, MatrixView<const Scalar> q,
             std::span<const Segment<Stored>> segments, MatrixView<Scalar> u) {
    m_log.layers.back().delta += x.rows;
    m_log.segment_sizes.clear();
    m_log.segment_keys.clear();
    expect(x.rows > 0 && q.rows == x.rows && u.rows == x.rows, "delta: rows");
    expect(is_dense(q) && is_dense(u), "delta: dense from 64 bytes on");
    Index next = 0;
    for (const Segment<Stored>& segment : segments) {
      expect(segment.begin == next && segment.end > segment.begin, "delta: segments");
      expect(segment.keys.rows == segment.values.rows && segment.keys.rows > 0, "delta: keys");
      expect(is_dense(segment.keys) && is_dense(segment.values), "delta: keys from 64 bytes on");
      expect(segment.padded_rows >= segment.keys.rows, "delta: padded_rows");
      expect(has_zeros_behind(segment.keys, segment.padded_rows) &&
                 has_zeros_behind(segment.values, segment.padded_rows),
             "delta: zeros behind the keys");
      next = segment.end;
      m_log.segment_sizes.push_back(segment.end - segment.begin);
      m_log.segment_keys.push_back(segment.keys.rows);
    }
    expect(next == x.rows, "delta: segments cover all rows");
    m_layer.delta(x, q, segments, u);
    fail_if_told(u);
  }

 private:
  void expect(bool kept, const char* rule) {
    if (!kept && m_log.broken_rule.empty()) m_log.broken_rule = rule;
  }
  template <class T>
  static bool is_dense(MatrixView<T> view) {
    return view.stride == view.cols && reinterpret_cast<std::uintptr_t>(view.data) % 64 == 0;
  }
  static bool has_zeros_behind(MatrixView<const Stored> view, Index end) {
    for (Index i = view.rows * view.cols; i < end * view.cols; ++i)
      if (!(view.data[i] == Stored(0))) return false;
    return true;
  }
  // A callback that fails leaves a mess behind.
  void fail_if_told(MatrixView<Scalar> written) {
    if (m_log.calls++ != m_log.throw_at) return;
    for (Index row = 0; row < written.rows; ++row)
      for (Index col = 0; col < written.cols; ++col)
        written.row(row)[col] = std::numeric_limits<Scalar>::quiet_NaN();
    throw CallbackError();
  }

  Layer m_layer;
  CallLog& m_log;
};

}  // namespace dllm_cache::testing
