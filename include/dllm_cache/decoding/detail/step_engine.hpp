// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <memory_resource>
#include <span>
#include <vector>

#include "dllm_cache/base/buffer.hpp"
#include "dllm_cache/decoding/detail/layer_engine.hpp"
#include "dllm_cache/decoding/step_pass.hpp"

namespace dllm_cache::inline v0_1::detail {

/// How a DenoisingLoop has a step computed by a StepModel: at once, wanted logits included. See
/// LayerEngine, which has the same functions.
template <StepModel Model>
class StepEngine {
 public:
  using ModelType = Model;
  using Cache = PlannedSequence<Model>;
  using PassType = StepPass<Model>;

  explicit StepEngine(Model& model) : m_model(&model) {}

  [[nodiscard]] static Cache make_cache(Model& model, const SequenceShape& shape,
                                        const AnyPolicy& policy, std::pmr::memory_resource*,
                                        const typename Cache::SelectorType&) {
    return Cache(model, shape, policy);
  }

  [[nodiscard]] PassType begin_step(std::span<Cache* const> caches,
                                    std::span<const StepInput> inputs) {
    return PassType(m_scratch, caches, inputs);
  }

  template <class OnLayer>
  void run(PassType& pass, std::span<const std::int32_t> tokens, std::span<const Index> wanted,
           const OnLayer&) {
    m_wanted.assign(wanted.begin(), wanted.end());
    std::sort(m_wanted.begin(), m_wanted.end());
    // A row of a shifted model may predict two tokens.
    m_wanted.erase(std::unique(m_wanted.begin(), m_wanted.end()), m_wanted.end());
    pass.run(*m_model, tokens, m_wanted,
             m_logits.view(static_cast<Index>(m_wanted.size()), m_model->vocabulary()));
  }

  /// Copies of them, since guidance is added to what is given out.
  [[nodiscard]] MatrixView<float> logits(std::span<const Index> places, Index most,
                                         base::Buffer<float>& memory) {
    const Index vocabulary = m_model->vocabulary();
    const MatrixView<float> copy =
        dense_view(memory.ensure(most * vocabulary), static_cast<Index>(places.size()), vocabulary);
    const MatrixView<float> all = m_logits.view(static_cast<Index>(m_wanted.size()), vocabulary);
    for (std::size_t i = 0; i < places.size(); ++i) {
      const auto found = std::lower_bound(m_wanted.begin(), m_wanted.end(), places[i]);
      std::copy_n(all.row(found - m_wanted.begin()), vocabulary, copy.row(static_cast<Index>(i)));
    }
    return copy;
  }

 private:
  Model* m_model;
  StepScratch<Model> m_scratch;
  std::vector<Index> m_wanted;  // places in the pass, ascending: rows of the logits
  base::Buffer<float> m_logits;
};

/// The engine of a model, by what it is.
template <class Model, class Stored, class Selector>
struct EngineOf {
  using type = LayerEngine<Model, Stored, Selector>;
};
template <StepModel Model, class Stored, class Selector>
struct EngineOf<Model, Stored, Selector> {
  using type = StepEngine<Model>;
};

}  // namespace dllm_cache::inline v0_1::detail
