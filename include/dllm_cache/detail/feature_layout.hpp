// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "dllm_cache/base/buffer.hpp"
#include "dllm_cache/base/error.hpp"
#include "dllm_cache/base/matrix_view.hpp"
#include "dllm_cache/model_shape.hpp"
#include "dllm_cache/policy.hpp"

namespace dllm_cache::inline v0_1::detail {

/// Where the features of one sequence lie in one piece of memory: layer by layer keys, values and
/// deltas, each from a multiple of `base::Buffer::alignment` bytes on. Counts are in elements.
///
/// Of a policy that keeps no features all layers share the place of one.
template <class Stored>
class FeatureLayout {
 public:
  /// Of a model and a sequence that check_shape() accepts, and the policy's traits for it.
  FeatureLayout(const ModelShape& model, const SequenceShape& shape, const PolicyTraits& traits)
      : m_rows(shape.rows()),
        m_padded_rows(round_up(m_rows, model.row_multiple)),
        m_kv_width(model.kv_width),
        m_stored_deltas(traits.stored_deltas),
        m_delta_width(model.width),
        m_stored_queries(traits.stored_queries),
        m_query_width(model.query_width),
        m_verify_width(traits.verifies_features ? model.verify_width : 0),
        m_values(round_up(m_padded_rows * m_kv_width, aligned)),
        m_queries(2 * m_values + round_up(m_stored_deltas.size() * m_delta_width, aligned)),
        m_features(m_queries + round_up(m_stored_queries.size() * m_query_width, aligned)),
        m_layer(m_features + round_up(m_stored_deltas.size() * m_verify_width, aligned)),
        m_layers(model.layers),
        m_kept_layers(traits.keeps_features ? model.layers : 1) {}

  /// Elements in all. Throws std::invalid_argument for more than 2^62 bytes.
  [[nodiscard]] Index elements() const {
    if (m_layer > (Index{1} << 62) / element_size / m_kept_layers)
      base::refuse_argument("FeatureCache: features must fit in 2^62 bytes, got ", m_kept_layers,
                            " layers of ", m_layer, " elements");
    return m_layer * m_kept_layers;
  }
  [[nodiscard]] Index bytes() const { return elements() * element_size; }
  /// Bytes of so many rows of keys and values, so many of deltas and so many of queries, in all
  /// layers.
  [[nodiscard]] Index bytes_of_rows(Index rows, Index delta_rows, Index query_rows) const {
    return (2 * rows * m_kv_width + delta_rows * (m_delta_width + m_verify_width) +
            query_rows * m_query_width) *
           m_kept_layers * element_size;
  }
  [[nodiscard]] Index rows() const { return m_rows; }  ///< Of the sequence.
  [[nodiscard]] Index kv_width() const { return m_kv_width; }
  [[nodiscard]] Index layers() const { return m_layers; }  ///< Of the model.
  /// Whether each layer has a place of its own.
  [[nodiscard]] bool keeps_all_layers() const { return m_kept_layers == m_layers; }
  [[nodiscard]] Range stored_deltas() const { return m_stored_deltas; }
  [[nodiscard]] Range stored_queries() const { return m_stored_queries; }
  /// Rows of keys and of values in memory: those of the sequence, then rows of zeros.
  [[nodiscard]] Index padded_rows() const { return m_padded_rows; }

  /// Keys `[T, kv]` of a layer, in memory that begins at `data`.
  template <class T>
  [[nodiscard]] MatrixView<T> keys(T* data, Index layer) const {
    return dense_view(data + offset(layer), m_rows, m_kv_width);
  }
  /// Values `[T, kv]` of a layer.
  template <class T>
  [[nodiscard]] MatrixView<T> values(T* data, Index layer) const {
    return dense_view(data + offset(layer) + m_values, m_rows, m_kv_width);
  }
  /// Deltas `[stored, d]` of a layer.
  template <class T>
  [[nodiscard]] MatrixView<T> deltas(T* data, Index layer) const {
    return dense_view(data + offset(layer) + 2 * m_values, m_stored_deltas.size(), m_delta_width);
  }

  /// Queries `[stored_queries, query_width]` of a layer.
  template <class T>
  [[nodiscard]] MatrixView<T> queries(T* data, Index layer) const {
    return dense_view(data + offset(layer) + m_queries, m_stored_queries.size(), m_query_width);
  }
  /// Features that rows are verified by, `[stored, verify_width]`, of a layer.
  template <class T>
  [[nodiscard]] MatrixView<T> verify_features(T* data, Index layer) const {
    return dense_view(data + offset(layer) + m_features, m_stored_deltas.size(), m_verify_width);
  }

  /// Makes the rows behind those of the sequence zero, in all layers.
  void clear_padding(Stored* data) const {
    const Index padding = (m_padded_rows - m_rows) * m_kv_width;
    for (Index layer = 0; padding > 0 && layer < m_kept_layers; ++layer) {
      std::fill_n(keys(data, layer).row(m_rows), padding, Stored(0));
      std::fill_n(values(data, layer).row(m_rows), padding, Stored(0));
    }
  }

 private:
  static constexpr Index element_size = static_cast<Index>(sizeof(Stored));
  static constexpr Index aligned =
      static_cast<Index>(base::Buffer<Stored>::alignment) / element_size;

  static Index round_up(Index count, Index multiple) {
    return (count + multiple - 1) / multiple * multiple;
  }
  [[nodiscard]] Index offset(Index layer) const { return m_kept_layers == 1 ? 0 : layer * m_layer; }

  Index m_rows, m_padded_rows, m_kv_width;
  Range m_stored_deltas;
  Index m_delta_width;
  Range m_stored_queries;
  Index m_query_width;
  Index m_verify_width;
  Index m_values;    // where a layer's values begin,
  Index m_queries;   // its queries,
  Index m_features;  // and its features for verifying
  Index m_layer;     // elements of a layer
  Index m_layers, m_kept_layers;
};

}  // namespace dllm_cache::inline v0_1::detail
