// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "dllm_cache/decoding/decoding_options.hpp"
#include "dllm_cache/decoding/detail/options_snapshot.hpp"
#include "dllm_cache/decoding/special_tokens.hpp"
#include "dllm_cache/plan.hpp"

namespace dllm_cache::inline v0_1 {

/// The denoising state of one sequence: tokens, block and step counters, and which rows may still
/// be committed. Knows neither model nor cache. Source: LLaDA's `generate` as in
/// utils/generate_function.py of maomaocun/dLLM-cache at 17235bf. Not synchronised.
class SequenceState {
 public:
  /// Takes the prompt's tokens; throws std::invalid_argument naming field, legal range and value.
  SequenceState(std::span<const std::int32_t> prompt, const DecodingOptions& options,
                const SpecialTokens& special)
      : m_options(options), m_special(special), m_prompt(static_cast<Index>(prompt.size())) {
    check_options();
    m_tokens.assign(prompt.begin(), prompt.end());
    m_tokens.resize(prompt.size() + static_cast<std::size_t>(options.response), special.mask);
    m_masked.assign(m_tokens.size(), 0);
    std::fill(m_masked.begin() + m_prompt, m_masked.end(), std::uint8_t{1});
    begin_block(0);
  }

  /// Tokens of the prompt and the response; rows not decoded yet hold the mask.
  [[nodiscard]] std::span<const std::int32_t> tokens() const { return m_tokens; }
  /// Tokens of the response.
  [[nodiscard]] std::span<const std::int32_t> response() const {
    return tokens().subspan(static_cast<std::size_t>(m_prompt));
  }
  /// One flag a row: 1 where the token is still to be found. Prompt rows are never masked.
  [[nodiscard]] std::span<const std::uint8_t> masked() const { return m_masked; }
  [[nodiscard]] Index prompt_rows() const { return m_prompt; }
  [[nodiscard]] const SpecialTokens& special_tokens() const { return m_special; }
  [[nodiscard]] const DecodingOptions& options() const { return m_options; }
  /// Denoising steps done.
  [[nodiscard]] Index step() const { return m_step; }
  /// Rows of the active block.
  [[nodiscard]] Range block() const {
    return {m_prompt + m_block * m_block_length, m_prompt + (m_block + 1) * m_block_length};
  }
  [[nodiscard]] const BlockProgress& block_progress() const { return m_progress; }
  [[nodiscard]] bool finished() const { return m_finished; }

  /// Whether a row may be committed in this step: masked, and before the end of the active block
  /// (rows that an earlier block left masked stay candidates, as in the reference).
  [[nodiscard]] bool is_candidate(Index row) const {
    return row < block().end && m_masked[static_cast<std::size_t>(row)] != 0;
  }

  /// How rows are predicted in this step.
  [[nodiscard]] SamplingRule sampling_rule() const {
    return {.sampling = m_options.sampling,
            .confidence = m_options.confidence,
            .temperature = m_options.temperature,
            .top_p = m_options.top_p,
            .top_k = m_options.top_k,
            .excluded_token = m_excludes_mask ? m_special.mask : no_token};
  }
  /// Names a row's random numbers in this step.
  [[nodiscard]] RandomKey random_key(Index row) const {
    return {m_options.seed, m_options.sequence, static_cast<std::uint64_t>(m_step),
            static_cast<std::uint64_t>(row - m_prompt)};
  }

  /// Draws other random numbers from here on: those of sequence `number` with the same seed.
  void set_random_sequence(std::uint64_t number) { m_options.sequence = number; }

  /// Writes everything as one section of a snapshot. Throws
  /// what the sink throws.
  void save(SnapshotWriter& out) const {
    out.begin("sequence");
    detail::write_options(out, m_options);
    out.number("mask", m_special.mask);
    const std::span<const std::int32_t> ends = m_special.end_of_text.all();
    out.number("end_of_text", static_cast<std::uint64_t>(ends.size()));
    for (const std::int32_t token : ends) out.number("end_of_text", token);
    out.number("prompt", m_prompt);
    out.array("tokens", tokens());
    out.array("masked", masked());
    out.number("block", m_block);
    out.number("step", m_step);
    out.number("block step", m_progress.step);
    out.number("first_masked", m_progress.first_masked);
    out.number("excludes_mask", m_excludes_mask);
    out.number("finished", m_finished);
    out.finish();
  }

  /// The sequence as it was saved, for a model with these tokens. Throws std::runtime_error for
  /// other tokens, a damaged snapshot or a state that cannot be, std::invalid_argument for options
  /// out of range, and what the source throws.
  [[nodiscard]] static SequenceState restored(SnapshotReader& in, const SpecialTokens& special) {
    in.begin("sequence");
    const DecodingOptions options = detail::read_options(in);
    in.expect("mask", special.mask);
    const std::span<const std::int32_t> ends = special.end_of_text.all();
    in.expect("end_of_text", static_cast<std::uint64_t>(ends.size()));
    for (const std::int32_t token : ends) in.expect("end_of_text", token);
    const auto prompt = in.number<Index>("prompt", 0, most_rows);
    if (options.response < 1 || options.response > most_rows)
      in.refuse("response must be in [1, ", most_rows, "], got ", options.response);
    const auto rows = static_cast<std::size_t>(prompt + options.response);
    std::vector<std::int32_t> tokens = in.elements<std::int32_t>(rows);
    std::vector<std::uint8_t> masked = in.elements<std::uint8_t>(rows);
    SequenceState state(
        std::span<const std::int32_t>(tokens).first(static_cast<std::size_t>(prompt)), options,
        special);
    state.m_tokens = std::move(tokens);
    state.m_masked = std::move(masked);
    state.read_progress(in);
    in.finish();
    return state;
  }

  /// Ends the step: puts the predictions in order, surest first, commits the best and moves on.
  /// Returns how many were committed: the first of them. Throws std::logic_error after the end and
  /// for predictions of rows that are no candidates; then nothing was committed.
  Index commit(std::span<Prediction> predictions) {
    if (m_finished) base::refuse_call("SequenceState: commit() after the end");
    for (const Prediction& one : predictions)
      if (one.row < m_prompt || !is_candidate(one.row))
        base::refuse_call("SequenceState: predictions must be of rows that may be committed, ",
                          "got row ", one.row);
    order(predictions);
    m_progress.masked = candidates();
    const Index count = count_commits(predictions, m_options.commit, m_progress);
    Index found = 0;
    for (Index i = 0; i < count; ++i) {
      const Prediction& best = predictions[static_cast<std::size_t>(i)];
      m_tokens[static_cast<std::size_t>(best.row)] = best.token;
      const bool still_masked = best.token == m_special.mask;
      m_masked[static_cast<std::size_t>(best.row)] = still_masked ? 1 : 0;
      if (!still_masked) ++found;
    }
    ++m_step;
    ++m_progress.step;
    // A model that predicts the mask itself would keep an open-ended block busy for ever.
    m_excludes_mask = !is_counted(m_options.commit) && found == 0;
    if (block_finished()) finish_block();
    return count;
  }

 private:
  static constexpr Index most_rows = Index{1} << 31;

  void read_progress(SnapshotReader& in) {
    m_block = in.number<Index>("block", 0, blocks() - 1);
    m_step = in.number<Index>("step", 0, most_counted);
    const Index last = is_counted(m_options.commit) ? m_progress.steps : m_step;
    m_progress.step = in.number<Index>("block step", 0, last);
    m_progress.first_masked = in.number<Index>("first_masked", 0, m_block_length);
    m_excludes_mask = in.flag("excludes_mask");
    m_finished = in.flag("finished");
    if (is_counted(m_options.commit) && m_progress.step == m_progress.steps && !m_finished)
      in.refuse("block step must be below ", m_progress.steps, " before the end, got ",
                m_progress.step);  // such a block would never end
    for (std::size_t row = 0; row < m_tokens.size(); ++row) {
      const bool may_be_masked =
          static_cast<Index>(row) >= m_prompt && m_tokens[row] == m_special.mask;
      if (m_masked[row] > (may_be_masked ? 1 : 0))
        in.refuse("masked must be 0, or 1 where a response row holds the mask; row ", row, " has ",
                  static_cast<int>(m_masked[row]));
    }
  }

  // Surest first, ties to the lower row. With a temperature the order is drawn: the first n rows by
  // confidence / temperature + Gumbel noise are n draws without replacement from its softmax.
  void order(std::span<Prediction> predictions) const {
    const double temperature = m_options.order_temperature;
    const auto key = [&](const Prediction& one) {
      // Logits of infinities may make it NaN, which no order takes.
      if (std::isnan(one.confidence)) return -std::numeric_limits<double>::infinity();
      if (temperature <= 0.0) return one.confidence;
      return one.confidence / temperature +
             RowRandom(random_key(one.row), RandomUse::Order).gumbel(0);
    };
    std::sort(predictions.begin(), predictions.end(),
              [&](const Prediction& a, const Prediction& b) {
                const double key_a = key(a), key_b = key(b);
                return key_a != key_b ? key_a > key_b : a.row < b.row;
              });
  }

  [[nodiscard]] Index candidates() const {
    return std::count(m_masked.begin(), m_masked.begin() + block().end, 1);
  }

  [[nodiscard]] Index blocks() const { return m_options.response / m_block_length; }

  void check_options() {
    const DecodingOptions& o = m_options;
    const auto refuse = [](const auto&... parts) {
      base::refuse_argument("DecodingOptions: ", parts...);
    };
    if (m_special.mask < 0)
      base::refuse_argument("SpecialTokens: mask must be a token, got ", m_special.mask);
    dllm_cache::check_options(o, "DecodingOptions");
    if (o.block_length > 0 && o.response % o.block_length != 0)
      refuse("block_length must divide response = ", o.response, ", got ", o.block_length);
    m_block_length = o.block_length == 0 ? o.response : o.block_length;
    // Other rules end a block when it is done, however many steps that takes.
    const Index steps = o.steps == 0 || !is_counted(o.commit) ? o.response : o.steps;
    if (steps % blocks() != 0)
      refuse("steps must be a positive multiple of the number of blocks = ", blocks(), ", got ",
             o.steps);
    m_progress.steps = steps / blocks();
    if (o.sampling != Sampling::Categorical && (o.top_p < 1.0 || o.top_k > 0))
      refuse("top_p and top_k need Sampling::Categorical, got top_p ", o.top_p, " and top_k ",
             o.top_k);
    check_rule(o.commit);
    if (std::holds_alternative<BernoulliCommit>(o.commit) && o.confidence != Confidence::Random)
      refuse("commit BernoulliCommit needs Confidence::Random");
    if (o.order_temperature > 0.0 && !is_counted(o.commit))
      refuse("order_temperature needs a counted commit rule");
    if (o.early_stop && m_special.end_of_text.empty())
      refuse("early_stop needs a model with an end-of-text token");
  }

  void begin_block(Index block) {
    m_block = block;
    m_progress.step = 0;
    m_progress.first_masked = masked_in_block();
  }

  [[nodiscard]] Index masked_in_block() const {
    const Range rows = block();
    return std::count(m_masked.begin() + rows.begin, m_masked.begin() + rows.end, 1);
  }

  [[nodiscard]] bool block_finished() const {
    return is_counted(m_options.commit) ? m_progress.step == m_progress.steps
                                        : masked_in_block() == 0;
  }

  void finish_block() {
    const Range rows = block();
    const auto begin = m_tokens.begin() + rows.begin, end = m_tokens.begin() + rows.end;
    const bool ends = std::any_of(
        begin, end, [this](std::int32_t token) { return m_special.end_of_text.contains(token); });
    if (m_options.early_stop && ends) {
      std::fill(end, m_tokens.end(), m_special.end_of_text.first());
      std::fill(m_masked.begin() + rows.end, m_masked.end(), std::uint8_t{0});
      m_finished = true;
    } else if (m_block + 1 == blocks()) {
      m_finished = true;
    } else {
      begin_block(m_block + 1);
    }
  }

  DecodingOptions m_options;
  SpecialTokens m_special;
  Index m_prompt;
  Index m_block_length = 1;
  Index m_block = 0;
  Index m_step = 0;
  BlockProgress m_progress;
  std::vector<std::int32_t> m_tokens;
  std::vector<std::uint8_t> m_masked;
  bool m_excludes_mask = false;
  bool m_finished = false;
};

}  // namespace dllm_cache::inline v0_1
