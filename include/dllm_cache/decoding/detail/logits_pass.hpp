// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "dllm_cache/base/buffer.hpp"
#include "dllm_cache/base/matrix_view.hpp"
#include "dllm_cache/decoding/detail/loop_sequence.hpp"
#include "dllm_cache/decoding/sampler.hpp"

namespace dllm_cache::inline v0_1::detail {

/// A row of a sequence whose logits are wanted, by its places in the hidden states of a step.
template <class Cache>
struct WantedRow {
  LoopSequence<Cache>* sequence = nullptr;
  std::size_t run = 0;  ///< Its place among the runs of the step.
  Index row = 0;
  Index place = 0;
  Index unconditional_place = -1;  ///< Refreshes the guidance residual when there is one.
};

/// Logits of wanted rows and what they predict, in chunks of rows: there is no
/// `[rows, vocabulary]` array, and logits are reduced while they are in a processor's cache.
template <class Cache>
class LogitsPass {
 public:
  using Wanted = WantedRow<Cache>;

  static constexpr Index chunk_rows = 64;

  /// Calls `on_logits(wanted, logits)` for each wanted row, and `on_prediction(wanted,
  /// prediction)` for those that can be committed. The engine has run the step.
  template <class Engine, class OnLogits, class OnPrediction>
  void run(Engine& engine, std::span<const Wanted> wanted, const OnLogits& on_logits,
           const OnPrediction& on_prediction) {
    for (std::size_t begin = 0; begin < wanted.size(); begin += chunk_rows) {
      const std::size_t count = std::min<std::size_t>(chunk_rows, wanted.size() - begin);
      run_chunk(engine, wanted.subspan(begin, count), on_logits, on_prediction);
    }
  }

 private:
  template <class Engine, class OnLogits, class OnPrediction>
  void run_chunk(Engine& engine, std::span<const Wanted> chunk, const OnLogits& on_logits,
                 const OnPrediction& on_prediction) {
    m_places.clear();
    for (const Wanted& wanted : chunk) m_places.push_back(wanted.place);
    const MatrixView<float> logits = engine.logits(m_places, chunk_rows, m_logits);
    m_places.clear();
    for (const Wanted& wanted : chunk)
      if (wanted.unconditional_place >= 0) m_places.push_back(wanted.unconditional_place);
    MatrixView<float> unconditional;
    if (!m_places.empty())
      unconditional = engine.logits(m_places, chunk_rows, m_unconditional_logits);
    Index next_unconditional = 0;
    for (std::size_t i = 0; i < chunk.size(); ++i) {
      const Wanted& wanted = chunk[i];
      auto& held = *wanted.sequence;
      const std::span<float> row = row_of(logits, static_cast<Index>(i));
      if (held.guided) {
        const Index guided_row = wanted.row - held.state.first_to_fill();
        if (wanted.unconditional_place >= 0)
          held.guided->guidance.refresh(guided_row, row,
                                        row_of(unconditional, next_unconditional++));
        held.guided->guidance.apply(guided_row, row);
      }
      on_logits(wanted, std::span<const float>(row));
      if (held.state.is_candidate(wanted.row))
        on_prediction(wanted, m_sampler.sample(wanted.row, row, held.state.sampling_rule(),
                                               held.state.random_key(wanted.row)));
    }
  }

  static std::span<float> row_of(const MatrixView<float>& matrix, Index row) {
    return {matrix.row(row), static_cast<std::size_t>(matrix.cols)};
  }

  std::vector<Index> m_places;
  Sampler m_sampler;
  base::Buffer<float> m_logits;
  base::Buffer<float> m_unconditional_logits;
};

}  // namespace dllm_cache::inline v0_1::detail
