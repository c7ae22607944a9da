// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory_resource>
#include <span>

#include "dllm_cache/base/buffer.hpp"
#include "dllm_cache/base/gather_rows.hpp"
#include "dllm_cache/decoding/denoising_model.hpp"
#include "dllm_cache/workspace.hpp"

namespace dllm_cache::inline v0_1::detail {

/// How a DenoisingLoop has a step computed by a model of layers: through its caches, layer by
/// layer; logits when they are asked for. StepEngine has the same functions.
template <class Model, StoredScalar Stored, class Selector>
class LayerEngine {
 public:
  using ModelType = Model;
  using Cache = FeatureCache<float, Stored, Selector>;
  using PassType = Pass<float, Stored, Selector>;

  /// The model must outlive the engine.
  explicit LayerEngine(Model& model) : m_model(&model) {}

  /// Features of a new sequence.
  [[nodiscard]] static Cache make_cache(Model& model, const SequenceShape& shape,
                                        const AnyPolicy& policy,
                                        std::pmr::memory_resource* resource,
                                        const Selector& selector) {
    return Cache(model.shape(), shape, policy, resource, selector);
  }

  [[nodiscard]] PassType begin_step(std::span<Cache* const> caches,
                                    std::span<const StepInput> inputs) {
    return m_workspace.begin_step(caches, inputs);
  }

  /// Computes the step and commits it; `on_layer(pass, layer)` is called after each layer but the
  /// last. Which logits will be asked for (`wanted`) does not matter here.
  template <class OnLayer>
  void run(PassType& pass, std::span<const std::int32_t> tokens, std::span<const Index>,
           const OnLayer& on_layer) {
    const Index width = m_model->shape().width;
    m_x = dense_view(m_hidden.ensure(pass.row_count() * width), pass.row_count(), width);
    if (pass.row_count() > 0) m_model->embed(tokens, m_x);
    const Index last = m_model->shape().layers - 1;
    for (Index layer = 0; layer < last; ++layer) {
      pass.layer(m_model->layer(layer), m_x);
      on_layer(pass, layer);
    }
    pass.layer(m_model->layer(last), m_x);
  }

  /// Logits `[places, vocabulary]` of at most `most` rows of the last step, by their places in the
  /// pass, ascending. They may be written, and are valid until `memory` is used again.
  [[nodiscard]] MatrixView<float> logits(std::span<const Index> places, Index most,
                                         base::Buffer<float>& memory) {
    const auto rows = static_cast<Index>(places.size());
    const MatrixView<float> logits =
        dense_view(memory.ensure(most * m_model->vocabulary()), rows, m_model->vocabulary());
    // Made at once: when rows first lie apart depends on which tokens were committed.
    m_gathered.ensure(most * m_x.cols);
    MatrixView<const float> chosen = MatrixView<const float>(m_x).middle_rows(places.front(), rows);
    if (places.back() - places.front() + 1 != rows) {
      const MatrixView<float> gathered = m_gathered.view(rows, m_x.cols);
      base::gather_rows(MatrixView<const float>(m_x), places, gathered);
      chosen = gathered;
    }
    m_model->logits(chosen, logits);
    return logits;
  }

 private:
  Model* m_model;
  Workspace<float, Stored, Selector> m_workspace;
  MatrixView<float> m_x;
  base::Buffer<float> m_hidden;
  base::Buffer<float> m_gathered;
};

}  // namespace dllm_cache::inline v0_1::detail
