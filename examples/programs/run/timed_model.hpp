// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <utility>

#include "dllm_cache/decoding/denoising_model.hpp"

namespace programs {

/// Seconds spent in the callbacks of a model's layers.
struct LayerSeconds {
  double value = 0.0;
  double query_key = 0.0;
  double delta = 0.0;
};

/// A layer that adds what its callbacks take to a LayerSeconds.
template <class Layer>
class TimedLayer {
 public:
  TimedLayer(Layer layer, LayerSeconds& spent) : m_layer(std::move(layer)), m_spent(&spent) {}

  /// See TransformerLayer.
  void value(dllm_cache::MatrixView<const float> x, dllm_cache::MatrixView<float> v) {
    const Stopwatch watch(m_spent->value);
    m_layer.value(x, v);
  }
  /// See TransformerLayer.
  void query_key(dllm_cache::MatrixView<const float> x, std::span<const std::int32_t> positions,
                 dllm_cache::MatrixView<float> q, dllm_cache::MatrixView<float> k) {
    const Stopwatch watch(m_spent->query_key);
    m_layer.query_key(x, positions, q, k);
  }
  /// See TransformerLayer.
  template <class Stored>
  void delta(dllm_cache::MatrixView<const float> x, dllm_cache::MatrixView<const float> q,
             std::span<const dllm_cache::Segment<Stored>> segments,
             dllm_cache::MatrixView<float> u) {
    const Stopwatch watch(m_spent->delta);
    m_layer.delta(x, q, segments, u);
  }

 private:
  class Stopwatch {
   public:
    explicit Stopwatch(double& seconds) : m_seconds(seconds) {}
    Stopwatch(const Stopwatch&) = delete;
    Stopwatch& operator=(const Stopwatch&) = delete;
    ~Stopwatch() { m_seconds += std::chrono::duration<double>(Clock::now() - m_start).count(); }

   private:
    using Clock = std::chrono::steady_clock;
    double& m_seconds;
    Clock::time_point m_start = Clock::now();
  };

  Layer m_layer;
  LayerSeconds* m_spent;
};

/// A DenoisingModel that measures the layers of another one; costs two readings of the clock a
/// callback. The other model must outlive it.
template <class Model>
class TimedModel {
 public:
  explicit TimedModel(Model& model) : m_model(&model) {}

  [[nodiscard]] dllm_cache::ModelShape shape() const { return m_model->shape(); }
  [[nodiscard]] dllm_cache::Index vocabulary() const { return m_model->vocabulary(); }
  [[nodiscard]] dllm_cache::Index prediction_shift() const { return m_model->prediction_shift(); }
  [[nodiscard]] const dllm_cache::SpecialTokens& special_tokens() const {
    return m_model->special_tokens();
  }
  /// See EmbedsTokens.
  void embed(std::span<const std::int32_t> tokens, dllm_cache::MatrixView<float> x) {
    m_model->embed(tokens, x);
  }
  /// See HasLayers.
  [[nodiscard]] auto layer(dllm_cache::Index number) {
    return TimedLayer(m_model->layer(number), m_spent);
  }
  /// See ComputesLogits.
  void logits(dllm_cache::MatrixView<const float> x, dllm_cache::MatrixView<float> logits) {
    m_model->logits(x, logits);
  }

  /// What the layers took so far.
  [[nodiscard]] const LayerSeconds& spent() const { return m_spent; }

 private:
  Model* m_model;
  LayerSeconds m_spent;
};

}  // namespace programs
