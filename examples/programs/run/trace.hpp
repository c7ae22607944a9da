// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "dllm_cache/decoding/denoising_loop.hpp"

namespace programs {

using dllm_cache::Index;

/// Collects what every step did to every row and writes it as a safetensors file.
///
/// Names follow the golden cases: `final_tokens` I64 [batch, response], `tokens_before_step` I64
/// [steps, batch, response], `prompt_tokens` I64 [batch, prompt], `step_of_forward` I64 [batch,
/// forwards], `stepN.layerL.selected` I64 [batch, k] and `.similarity` F32
/// [batch, verified response rows] where a layer verified some (row 0 is the first response row),
/// and `stepN.layerL.treatment` U8 [batch, rows]: 0 absent, 1 reused, 2 verified, 3 recomputed, 4
/// hidden (nobody sees its key there), 5 ended (it left the pass before this layer).
/// Where two sequences' tensors would differ in size (length, steps, rows verified or selected),
/// each has its own, named `sequenceI.` + name.
/// With guidance N counts the forwards of the sequence: of a step first the conditional one, then,
/// where it is due, the unconditional one; `step_of_forward` says which step each belongs to.
class Trace {
 public:
  /// Records one layer of one sequence, `i` its place in the pass, in its `forward`-th forward.
  template <class Pass>
  void layer(const Pass& pass, Index i, Index sequence, Index prompt, Index rows, Index forward,
             Index layer) {
    Layer& record = m_sequences[sequence].layers[{forward, layer}];
    record.action.assign(static_cast<std::size_t>(rows), 0);
    const dllm_cache::StepPlan& plan = pass.plan(i);
    if (!plan.sees_all())
      for (Index row = 0; row < rows; ++row)
        if (!plan.sees(layer, row)) record.action[static_cast<std::size_t>(row)] = 4;
    for (const Index row : pass.rows(i))
      record.action[static_cast<std::size_t>(row)] = plan.reaches(row, layer) ? 1 : 5;
    record.similarity.clear();
    const auto sums = pass.sums(i);
    for (Index j = 0; j < pass.verified(i); ++j) {
      const Index row = pass.verified_row(j, i);
      record.action[static_cast<std::size_t>(row)] = 2;
      if (row >= prompt)
        record.similarity.push_back(
            static_cast<float>(dllm_cache::similarity(sums[static_cast<std::size_t>(j)])));
    }
    record.selected.clear();
    for (const Index row : pass.recomputed(i)) {
      std::uint8_t& action = record.action[static_cast<std::size_t>(row)];
      if (action == 2 && row >= prompt) record.selected.push_back(row - prompt);
      action = 3;
    }
  }

  /// Records that a forward of a sequence begins: the next one, in step `state.step()`.
  void forward(Index sequence, Index forward, const dllm_cache::SequenceState& state);
  /// Records the answer of a sequence: all from the first row on that was to be filled.
  void finish(Index sequence, const dllm_cache::SequenceState& state);

  /// Writes the file; throws std::runtime_error naming it.
  void write(const std::filesystem::path& path) const;

 private:
  struct Layer {
    std::vector<std::uint8_t> action;
    std::vector<float> similarity;
    std::vector<std::int64_t> selected;
  };
  struct Sequence {
    std::map<std::pair<Index, Index>, Layer> layers;    // by forward and layer
    std::map<Index, std::vector<std::int64_t>> before;  // by step
    std::vector<std::int64_t> prompt;
    std::vector<std::int64_t> step_of_forward;
    std::vector<std::int64_t> final_tokens;
  };

  [[nodiscard]] bool uniform() const;

  std::map<Index, Sequence> m_sequences;
};

}  // namespace programs
