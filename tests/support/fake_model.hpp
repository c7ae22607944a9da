// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "dllm_cache/decoding/denoising_model.hpp"
#include "tests/support/counting_layer.hpp"
#include "tests/support/tiny_model.hpp"

namespace dllm_cache::testing {

/// A masked diffusion model of a few rows: TinyModel's layers, a norm and a head. What a row
/// becomes depends on that row and its keys alone, in the same order of operations whoever stands
/// beside it, so whole runs can be compared bit by bit.
///
/// Counts every callback in `log`; the call number `log.throw_at` (embedding and head included)
/// leaves NaN behind and throws CallbackError.
template <class Stored = float>
class FakeModel {
 public:
  static constexpr std::int32_t mask = 12, end_of_text = 11;

  explicit FakeModel(std::uint64_t seed, Index layers = 2, Index shift = 0)
      : tiny(layers, seed), bias(static_cast<std::size_t>(vocabulary()), 0.0F), m_shift(shift) {
    bias[mask] = -50.0F;
    RandomNumbers random(seed + 1);
    m_head = random.vector<float>(vocabulary() * tiny.shape().width, 2.0);
  }

  [[nodiscard]] ModelShape shape() const { return tiny.shape(); }
  [[nodiscard]] Index vocabulary() const { return TinyModel<float, Stored>::vocabulary; }
  [[nodiscard]] Index prediction_shift() const { return m_shift; }
  [[nodiscard]] SpecialTokens special_tokens() const { return special; }

  void embed(std::span<const std::int32_t> tokens, MatrixView<float> x) {
    ++embeds;
    embedded_rows += x.rows;
    expect(x.rows > 0 && static_cast<Index>(tokens.size()) == x.rows, "embed: rows");
    for (Index row = 0; row < x.rows; ++row)
      std::copy_n(tiny.embeddings.row(tokens[static_cast<std::size_t>(row)]), x.cols, x.row(row));
    fail_if_told(x);
  }

  [[nodiscard]] auto layer(Index number) {
    return CountingLayer<TinyLayer<float, Stored>, float, Stored>(tiny.layer(number), log);
  }

  void logits(MatrixView<const float> x, MatrixView<float> logits) {
    head_rows += x.rows;
    expect(x.rows > 0 && logits.rows == x.rows && logits.cols == vocabulary(), "logits: rows");
    std::vector<float> normed(static_cast<std::size_t>(x.cols));
    for (Index row = 0; row < x.rows; ++row) {
      tiny::norm(x.row(row), x.cols, normed.data());
      tiny::project(normed.data(), x.cols, m_head, logits.row(row), logits.cols);
      tiny::add(logits.row(row), bias.data(), logits.cols);
    }
    fail_if_told(logits);
  }

  TinyModel<float, Stored> tiny;
  std::vector<float> bias;  ///< Added to all logits, one a token; keeps the mask unlikely.
  SpecialTokens special{.mask = mask, .end_of_text = end_of_text};
  CallLog log;
  Index embeds = 0, embedded_rows = 0, head_rows = 0;

 private:
  void expect(bool kept, const char* rule) {
    if (!kept && log.broken_rule.empty()) log.broken_rule = rule;
  }
  void fail_if_told(MatrixView<float> written) {
    if (log.calls++ != log.throw_at) return;
    for (Index row = 0; row < written.rows; ++row)
      std::fill_n(written.row(row), written.cols, std::numeric_limits<float>::quiet_NaN());
    throw CallbackError();
  }

  Index m_shift;
  std::vector<float> m_head;
};

}  // namespace dllm_cache::testing
