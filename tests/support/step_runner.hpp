// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "dllm_cache/base/scalar.hpp"
#include "dllm_cache/decoding/step_model.hpp"
#include "dllm_cache/vverify_selector.hpp"

namespace dllm_cache::testing {

/// Carries out whole steps with the layers of another model, from the lists alone: an independent
/// reading of StepLists, row by row, with features of its own. What Workspace does, said again.
template <class Layers>
class StepRunner {
 public:
  /// Features `[rows, ...]` of every layer of a sequence; filled with NaN where nothing was stored.
  struct Features {
    struct Layer {
      std::vector<float> keys, values, deltas;
    };
    std::vector<Layer> layers;
    Range stored;
    [[nodiscard]] Index bytes() const {
      return static_cast<Index>(layers.size() * sizeof(float) *
                                (layers[0].keys.size() * 2 + layers[0].deltas.size()));
    }
  };

  explicit StepRunner(Layers model) : layers(std::move(model)) {}

  [[nodiscard]] ModelShape shape() const { return layers.shape(); }
  [[nodiscard]] Index vocabulary() const { return layers.vocabulary(); }
  [[nodiscard]] Index prediction_shift() const { return layers.prediction_shift(); }
  [[nodiscard]] SpecialTokens special_tokens() const { return layers.special_tokens(); }

  [[nodiscard]] Features make_features(const SequenceShape& sequence,
                                       const PolicyTraits& traits) const {
    const ModelShape model = shape();
    Features made;
    made.stored = traits.stored_deltas;
    made.layers.resize(static_cast<std::size_t>(model.layers));
    for (auto& layer : made.layers) {
      layer.keys.assign(static_cast<std::size_t>(sequence.rows() * model.kv_width), NAN);
      layer.values = layer.keys;
      layer.deltas.assign(static_cast<std::size_t>(made.stored.size() * model.width), NAN);
    }
    return made;
  }

  void forward(std::span<SequenceStep<Features>> batch, MatrixView<float> logits) {
    Index next = 0;
    for (SequenceStep<Features>& step : batch) {
      const auto wanted = static_cast<Index>(step.wanted.size());
      run(step, logits.middle_rows(next, wanted));
      next += wanted;
    }
  }

  Layers layers;

 private:
  using Matrix = std::vector<float>;
  static MatrixView<float> view(Matrix& matrix, Index cols) {
    return dense_view(matrix.data(), static_cast<Index>(matrix.size()) / cols, cols);
  }
  static Matrix gather(MatrixView<float> x, std::span<const std::int32_t> places) {
    Matrix rows;
    for (const std::int32_t place : places)
      rows.insert(rows.end(), x.row(place), x.row(place) + x.cols);
    return rows;
  }

  void run(SequenceStep<Features>& step, MatrixView<float> logits) {
    const StepLists& lists = *step.lists;
    if (lists.rows.empty()) return;
    const ModelShape model = shape();
    Matrix hidden(lists.rows.size() * static_cast<std::size_t>(model.width));
    const MatrixView<float> x = view(hidden, model.width);
    layers.embed(step.tokens, x);
    step.recomputed = 0;
    for (Index layer = 0; layer < model.layers; ++layer)
      step.recomputed +=
          run_layer(layer, lists, step.features->layers[static_cast<std::size_t>(layer)],
                    step.features->stored, x);
    if (step.wanted.empty()) return;
    Matrix chosen = gather(x, step.wanted);
    layers.logits(view(chosen, model.width), logits);
  }

  // Returns how many rows it recomputed.
  Index run_layer(Index number, const StepLists& lists, typename Features::Layer& kept,
                  Range stored, MatrixView<float> x) {
    const ModelShape model = shape();
    auto layer = layers.layer(number);
    const ComputedRows& computed = lists.of(number);
    const MatrixView<float> keys = view(kept.keys, model.kv_width),
                            values = view(kept.values, model.kv_width);
    std::vector<std::uint8_t> again(lists.rows.size(), 0);
    if (computed.count() > 0) {
      Matrix in = gather(x, computed.places),
             fresh(computed.rows.size() * static_cast<std::size_t>(model.kv_width));
      const MatrixView<float> v = view(fresh, model.kv_width);
      layer.value(view(in, model.width), v);
      std::vector<SimilaritySums> sums(static_cast<std::size_t>(computed.verified));
      for (Index i = 0; i < computed.count(); ++i) {
        const auto at = static_cast<std::size_t>(i);
        const auto old = values.middle_rows(computed.rows[at], 1);
        if (i < computed.verified)
          VVerifySelector<float>().accumulate(v.middle_rows(i, 1), old,
                                              std::span(sums).subspan(at, 1));
        else
          std::copy_n(v.row(i), v.cols, old.row(0));
      }
      std::vector<Index> selected;
      if (computed.verified > 0)
        m_rule.select(sums, lists.verify_count, lists.similarity_threshold, selected);
      for (const Index one : selected)
        again[static_cast<std::size_t>(computed.verified_places()[static_cast<std::size_t>(one)])] =
            1;
      for (const std::int32_t place : computed.recomputed_places())
        again[static_cast<std::size_t>(place)] = 1;
    }
    std::vector<std::int32_t> places, positions;
    for (std::size_t place = 0; place < again.size(); ++place)
      if (again[place] != 0) {
        places.push_back(static_cast<std::int32_t>(place));
        positions.push_back(lists.positions[place]);
      }
    Matrix deltas(places.size() * static_cast<std::size_t>(model.width));
    if (!places.empty()) {
      Matrix in = gather(x, places), q(places.size() * static_cast<std::size_t>(model.query_width)),
             k(places.size() * static_cast<std::size_t>(model.kv_width));
      layer.query_key(view(in, model.width), std::span<const std::int32_t>(positions),
                      view(q, model.query_width), view(k, model.kv_width));
      std::vector<Segment<float>> segments;
      for (std::size_t i = 0; i < places.size(); ++i) {
        const auto place = static_cast<std::size_t>(places[i]);
        std::copy_n(view(k, model.kv_width).row(static_cast<Index>(i)), model.kv_width,
                    keys.row(lists.rows[place]));
        const Index seen = lists.key_ends[place], at = static_cast<Index>(i);
        if (segments.empty() || segments.back().keys.rows != seen)
          segments.push_back({at, at, keys.middle_rows(0, seen), values.middle_rows(0, seen)});
        segments.back().end = at + 1;
      }
      layer.delta(view(in, model.width), MatrixView<const float>(view(q, model.query_width)),
                  std::span<const Segment<float>>(segments), view(deltas, model.width));
    }
    Index next = 0;
    for (std::size_t place = 0; place < again.size(); ++place) {
      const Index row = lists.rows[place];
      const float* delta = nullptr;
      if (again[place] != 0) {
        delta = view(deltas, model.width).row(next++);
        if (stored.contains(row))
          std::copy_n(delta, model.width, view(kept.deltas, model.width).row(row - stored.begin));
      } else {
        delta = view(kept.deltas, model.width).row(row - stored.begin);
      }
      base::add_row(delta, x.row(static_cast<Index>(place)), model.width);
    }
    return next;
  }

  LeastSimilarRows m_rule;
};

}  // namespace dllm_cache::testing
