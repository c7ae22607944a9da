// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/torch.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "dllm_cache/decoding/step_model.hpp"

// What a step on a device works with: features of a sequence, the choice of the rows that have
// changed, and the lists of all sequences, brought there in one go.
namespace torch_runtime {

using dllm_cache::Index;
using torch::Tensor;

/// Keys, values and deltas of a sequence on the device; a copy has tensors of its own.
class TorchFeatures {
 public:
  TorchFeatures(Index layers, Index rows, Index kv_width, dllm_cache::Range deltas, Index width,
                const torch::TensorOptions& options)
      : stored(deltas) {
    for (Index i = 0; i < layers; ++i) {
      // Rows never computed are masked: zeros, as NaN would pass through a weight of zero.
      keys.push_back(torch::zeros({rows, kv_width}, options));
      values.push_back(torch::zeros({rows, kv_width}, options));
      kept.push_back(torch::zeros({deltas.size(), width}, options));
    }
  }
  TorchFeatures(TorchFeatures&&) = default;
  TorchFeatures& operator=(TorchFeatures&&) = default;
  TorchFeatures(const TorchFeatures& other) : stored(other.stored) {
    const c10::InferenceMode inference;
    for (std::size_t i = 0; i < other.keys.size(); ++i) {
      keys.push_back(other.keys[i].clone());
      values.push_back(other.values[i].clone());
      kept.push_back(other.kept[i].clone());
    }
  }
  TorchFeatures& operator=(const TorchFeatures& other) { return *this = TorchFeatures(other); }
  ~TorchFeatures() = default;

  [[nodiscard]] Index bytes() const {
    std::size_t all = 0;
    for (const auto* list : {&keys, &values, &kept})
      for (const Tensor& one : *list) all += one.nbytes();
    return static_cast<Index>(all);
  }

  std::vector<Tensor> keys, values;  ///< `[rows, kv]` a layer.
  std::vector<Tensor> kept;          ///< Deltas `[stored rows, d]` a layer.
  dllm_cache::Range stored;
};

/// Rows that were selected.
struct Selection {
  Tensor places;   ///< `[count]`, among the rows compared, the least similar first.
  Tensor squares;  ///< Signed squares of cosines of those, `[count]`.
};

/// The `count` rows of fresh values `[m, kv]` least like those kept `[m, kv]`, ties
/// to the lower row and NaN first, as LeastSimilarRows; nothing is read back from the device.
[[nodiscard]] inline Selection select_rows(const Tensor& fresh, const Tensor& kept, Index count) {
  const auto sums = [](const Tensor& a, const Tensor& b) { return (a * b).sum(-1); };
  // Products of two floats are exact in float64.
  const Tensor a = fresh.to(kept.scalar_type()).to(torch::kFloat64), b = kept.to(torch::kFloat64);
  const Tensor dot = sums(a, b);
  const Tensor squares =
      dot * dot.abs() / (sums(a, a).clamp_min(1e-16) * sums(b, b).clamp_min(1e-16));
  const Tensor rank = torch::where(squares.isnan(), torch::full_like(squares, -2.0), squares);
  const Tensor places =
      std::get<1>(torch::sort(rank, /*stable=*/true, 0, /*descending=*/false)).slice(0, 0, count);
  return {places, squares.index_select(0, places)};
}

/// Whether rows are so similar that a threshold leaves them alone, `[count]`; NaN is not.
[[nodiscard]] inline Tensor reach_threshold(const Tensor& squares, double threshold) {
  return squares.sign() * squares.abs().sqrt() >= threshold;
}

/// Lists of row numbers of a step that go to the device in one upload.
class IndexUpload {
 public:
  /// Takes the numbers plus `shift`; what it gives names the list in operator[].
  std::size_t add(std::span<const std::int32_t> numbers, std::int64_t shift = 0) {
    m_begins.push_back(static_cast<std::int64_t>(m_numbers.size()));
    for (const std::int32_t one : numbers) m_numbers.push_back(one + shift);
    return m_begins.size() - 1;
  }
  void send(torch::Device device) {
    const auto size = static_cast<std::int64_t>(m_numbers.size());
    m_begins.push_back(size);
    m_sent = torch::from_blob(m_numbers.data(), {size}, torch::kInt64)
                 .to(device, torch::kInt64, /*non_blocking=*/false, /*copy=*/true);
  }
  /// The list `[n]` on the device.
  [[nodiscard]] Tensor operator[](std::size_t list) const {
    return m_sent.slice(0, m_begins[list], m_begins[list + 1]);
  }

 private:
  std::vector<std::int64_t> m_numbers, m_begins;
  Tensor m_sent;
};

/// A sequence in a step: its lists, by their numbers in the upload.
struct StepPart {
  struct Kind {
    std::size_t places = 0, rows = 0;
  };
  const dllm_cache::StepLists* lists = nullptr;
  TorchFeatures* features = nullptr;
  std::int64_t begin = 0;  ///< Of its rows among those of all sequences.
  Kind cached = {}, plain = {};
  std::size_t key_ends = 0;
  std::size_t seen = 0;        ///< Rows that exist, where others are hidden.
  std::size_t old_deltas = 0;  ///< For each row in the pass, the row of its kept delta, or 0.
  std::size_t stored_places = 0, stored_rows = 0;  ///< Which deltas are kept, and where.
  bool masked = false, has_stored = false;

  /// Lists of what is computed in a layer.
  [[nodiscard]] const Kind& of(Index layer) const {
    return lists->cached_layers.contains(layer) ? cached : plain;
  }
};

/// All sequences of a step, their rows one after another.
class StepBatch {
 public:
  /// Brings the lists to the device; `batch` and what it points to must outlive the object.
  StepBatch(std::span<dllm_cache::SequenceStep<TorchFeatures>> batch, torch::Device device) {
    std::vector<std::int32_t> tokens, positions, wanted;
    for (auto& step : batch) {
      const auto& lists = *step.lists;
      StepPart part{.lists = &lists, .features = step.features, .begin = m_rows};
      for (const auto* kind : {&lists.cached, &lists.plain}) {
        StepPart::Kind& made = kind == &lists.cached ? part.cached : part.plain;
        made.places = m_upload.add(kind->places, m_rows);
        made.rows = m_upload.add(kind->rows);
      }
      part.key_ends = m_upload.add(lists.key_ends);
      part.seen = m_upload.add(lists.seen);
      for (const std::int32_t end : lists.key_ends) part.masked |= end != lists.keys;
      add_deltas(part);
      tokens.insert(tokens.end(), step.tokens.begin(), step.tokens.end());
      positions.insert(positions.end(), lists.positions.begin(), lists.positions.end());
      for (const std::int32_t place : step.wanted)
        wanted.push_back(static_cast<std::int32_t>(m_rows + place));
      m_rows += static_cast<std::int64_t>(lists.rows.size());
      m_parts.push_back(part);
    }
    m_wants = !wanted.empty();
    m_tokens = m_upload.add(tokens);
    m_positions = m_upload.add(positions);
    m_wanted = m_upload.add(wanted);
    if (m_rows > 0) m_upload.send(device);
  }

  [[nodiscard]] std::int64_t rows() const { return m_rows; }
  [[nodiscard]] bool wants_logits() const { return m_wants; }
  [[nodiscard]] const std::vector<StepPart>& parts() const { return m_parts; }
  /// A list of a part `[n]`, on the device.
  [[nodiscard]] Tensor operator[](std::size_t list) const { return m_upload[list]; }
  [[nodiscard]] Tensor tokens() const { return m_upload[m_tokens]; }
  [[nodiscard]] Tensor positions() const { return m_upload[m_positions]; }
  [[nodiscard]] Tensor wanted() const { return m_upload[m_wanted]; }

 private:
  // Deltas kept of rows in the pass, and where the deltas of rows in the pass are kept.
  void add_deltas(StepPart& part) {
    std::vector<std::int32_t> old, places, rows;
    const dllm_cache::Range stored = part.features->stored;
    for (std::size_t place = 0; place < part.lists->rows.size(); ++place) {
      const Index row = part.lists->rows[place];
      const bool has = stored.contains(row);
      old.push_back(has ? static_cast<std::int32_t>(row - stored.begin) : 0);
      if (!has) continue;
      places.push_back(static_cast<std::int32_t>(place));
      rows.push_back(old.back());
    }
    part.old_deltas = m_upload.add(old);
    part.stored_places = m_upload.add(places, part.begin);
    part.stored_rows = m_upload.add(rows);
    part.has_stored = !rows.empty();
  }

  IndexUpload m_upload;
  std::vector<StepPart> m_parts;
  std::int64_t m_rows = 0;
  std::size_t m_tokens = 0, m_positions = 0, m_wanted = 0;
  bool m_wants = false;
};

}  // namespace torch_runtime
