// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "dllm_cache/decoding/step_model.hpp"
#include "torch_layer.hpp"
#include "torch_step_parts.hpp"
#include "torch_weights.hpp"

// LLaDA and Dream in libtorch that carry out whole steps: keys, values and deltas are tensors on
// the device, rows are selected there, lists of rows go up and wanted logits come down.
namespace torch_runtime {

/// A transformer in libtorch as a StepModel. Products are over the rows of all sequences together,
/// selection and attention by sequence. One thread uses it at a time.
class TorchStepModel : public TorchTransformer {
 public:
  using Features = TorchFeatures;
  static constexpr bool hides_rows = true;  ///< Hidden rows are left out of attention.

  /// Reads a checkpoint folder; throws what read_weights() does.
  explicit TorchStepModel(const dllm_cache::models::CheckpointFolder& folder,
                          torch::Device device = torch::kCPU,
                          torch::ScalarType type = torch::kFloat32)
      : TorchTransformer(read_weights(folder, torch::TensorOptions().device(device).dtype(type))) {}

  /// Random weights of a shape, to measure with.
  TorchStepModel(const TransformerConfig& config, torch::Device device, torch::ScalarType type)
      : TorchTransformer(
            random_weights(config, torch::TensorOptions().device(device).dtype(type))) {}

  [[nodiscard]] Features make_features(const dllm_cache::SequenceShape& sequence,
                                       const dllm_cache::PolicyTraits& traits) const {
    const c10::InferenceMode inference;
    return {config().layers,      sequence.rows(), config().kv_width(),
            traits.stored_deltas, config().width,  m_weights.options};
  }

  void forward(std::span<dllm_cache::SequenceStep<Features>> sequences, MatrixView<float> logits) {
    const c10::InferenceMode inference;
    const StepBatch batch(sequences, m_weights.options.device());
    if (batch.rows() == 0) return;
    const Turn turn = turn_of(batch.positions(), m_weights.frequencies);
    Tensor x = m_weights.embedding.index_select(0, batch.tokens());
    for (Index layer = 0; layer < config().layers; ++layer) x = run_layer(layer, batch, turn, x);
    if (!batch.wants_logits()) return;
    const Tensor chosen = m_weights.last_norm(x.index_select(0, batch.wanted()));
    as_tensor(logits).copy_(m_weights.head(chosen).to(torch::kFloat32));
  }

 private:
  // What a sequence recomputes in a layer.
  struct Chosen {
    const StepPart* part = nullptr;
    Tensor rows;        // [n], in the sequence
    Tensor places;      // [n], in the hidden states
    Tensor left_alone;  // [n, 1], rows that keep their key and delta; undefined: none
  };

  // x `[rows, d]` -> the rows behind the layer, likewise.
  [[nodiscard]] Tensor run_layer(Index number, const StepBatch& batch, const Turn& turn,
                                 const Tensor& x) const {
    const auto at = static_cast<std::size_t>(number);
    const LayerTensors& layer = m_weights.layers[at];
    std::vector<Tensor> computed;
    for (const StepPart& part : batch.parts()) computed.push_back(batch[part.of(number).places]);
    const Tensor values = layer.value(layer.normed(x.index_select(0, torch::cat(computed))));
    std::vector<Chosen> chosen;
    std::vector<Tensor> places;
    std::int64_t next = 0;
    for (const StepPart& part : batch.parts()) {
      const std::int64_t end = next + part.lists->of(number).count();
      chosen.push_back(choose(number, part, batch, values.slice(0, next, end)));
      places.push_back(chosen.back().places);
      next = end;
    }
    const Tensor all = torch::cat(places);
    Tensor deltas;
    if (all.size(0) > 0) {
      const Tensor in = x.index_select(0, all), normed = layer.normed(in);
      const Turn turned{turn.cosine.index_select(0, all), turn.sine.index_select(0, all)};
      const Tensor q = layer.query(normed), k = layer.key(normed);
      rotate(q, turned);
      rotate(k, turned);
      std::vector<Tensor> attended;
      next = 0;
      for (const Chosen& one : chosen) {
        const std::int64_t end = next + one.places.size(0);
        if (end > next)
          attended.push_back(mix(at, one, batch, q.slice(0, next, end), k.slice(0, next, end)));
        next = end;
      }
      deltas = layer.delta(in, torch::cat(attended));
    }
    return x + all_deltas(at, chosen, batch, deltas, x);
  }

  // Compares and keeps the values v of a sequence, and says what is recomputed.
  static Chosen choose(Index number, const StepPart& part, const StepBatch& batch,
                       const Tensor& v) {
    const auto& lists = *part.lists;
    const auto& computed = lists.of(number);
    const Tensor rows = batch[part.of(number).rows], places = batch[part.of(number).places];
    Tensor& values = part.features->values[static_cast<std::size_t>(number)];
    Chosen made{&part, rows, places, {}};
    if (computed.verified > 0) {
      const std::int64_t verified = computed.verified;
      const auto [picked, squares] =
          select_rows(v.slice(0, 0, verified), values.index_select(0, rows.slice(0, 0, verified)),
                      lists.verify_count_in(number));
      made.rows = torch::cat({rows.index_select(0, picked), rows.slice(0, verified)});
      made.places = torch::cat({places.index_select(0, picked), places.slice(0, verified)});
      if (lists.similarity_threshold < dllm_cache::no_similarity_threshold) {
        const Tensor again =
            torch::zeros({rows.size(0) - verified}, squares.options().dtype(torch::kBool));
        made.left_alone =
            torch::cat({reach_threshold(squares, lists.similarity_threshold), again}).unsqueeze(1);
      }
    }
    values.index_copy_(0, rows, v);
    return made;
  }

  // Keeps the keys k of rows that are recomputed, and lets their queries q attend.
  [[nodiscard]] Tensor mix(std::size_t layer, const Chosen& one, const StepBatch& batch,
                           const Tensor& q, const Tensor& k) const {
    Tensor& keys = one.part->features->keys[layer];
    keys.index_copy_(0, one.rows,
                     one.left_alone.defined()
                         ? torch::where(one.left_alone, keys.index_select(0, one.rows), k)
                         : k);
    // Where rows are hidden the others are gathered, else all up to the last that is seen are.
    const auto& lists = *one.part->lists;
    const Tensor seen = batch[one.part->seen];
    const auto existing = [&](const Tensor& rows) {
      return lists.hides ? rows.index_select(0, seen) : rows.slice(0, 0, lists.keys);
    };
    Tensor mask;
    if (one.part->masked) {
      const Tensor ends = batch[one.part->key_ends].index_select(0, one.places - one.part->begin);
      const Tensor numbers = lists.hides ? seen : torch::arange(lists.keys, ends.options());
      mask = numbers.unsqueeze(0) < ends.unsqueeze(1);
    }
    return attend(q, existing(keys), existing(one.part->features->values[layer]), mask,
                  config().heads);
  }

  // Deltas of all rows in the pass, like x: those given of rows recomputed, else those kept.
  [[nodiscard]] static Tensor all_deltas(std::size_t layer, const std::vector<Chosen>& chosen,
                                         const StepBatch& batch, const Tensor& deltas,
                                         const Tensor& x) {
    Tensor u = torch::zeros_like(x);
    std::int64_t next = 0;
    for (const Chosen& one : chosen) {
      const StepPart& part = *one.part;
      const std::int64_t count = one.places.size(0), end = next + count,
                         rows = static_cast<std::int64_t>(part.lists->rows.size());
      Tensor& kept = part.features->kept[layer];
      if (part.has_stored && (count < rows || one.left_alone.defined()))
        u.slice(0, part.begin, part.begin + rows)
            .copy_(kept.index_select(0, batch[part.old_deltas]));
      if (count > 0) {
        const Tensor fresh = deltas.slice(0, next, end);
        u.index_copy_(0, one.places,
                      one.left_alone.defined()
                          ? torch::where(one.left_alone, u.index_select(0, one.places), fresh)
                          : fresh);
      }
      if (part.has_stored)
        kept.index_copy_(0, batch[part.stored_rows], u.index_select(0, batch[part.stored_places]));
      next = end;
    }
    return u;
  }
};

static_assert(dllm_cache::StepModel<TorchStepModel>);

}  // namespace torch_runtime
