// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "dllm_cache/decoding/block_schedule.hpp"
#include "dllm_cache/decoding/check_decoding.hpp"
#include "dllm_cache/decoding/decoding_options.hpp"
#include "dllm_cache/decoding/detail/options_snapshot.hpp"
#include "dllm_cache/decoding/special_tokens.hpp"
#include "dllm_cache/plan.hpp"

namespace dllm_cache::inline v0_1 {

/// The denoising state of one sequence: tokens, block and step counters, and which rows may still
/// be committed. Knows neither model nor cache.
///
/// A prompt that holds the mask has gaps, which are filled too: the blocks are then a grid over the
/// whole sequence, those without a mask take no step, and only rows of the block are committed.
/// Sources: LLaDA's `generate` as in utils/generate_function.py of maomaocun/dLLM-cache at 17235bf;
/// for gaps `infill` in dllm/core/samplers/mdlm.py of ZHZisZZ/dllm at 13ba372. Differs: steps in
/// which nothing is left to commit are not taken. Not synchronised.
class SequenceState {
 public:
  /// Takes the prompt's tokens; throws std::invalid_argument naming field, legal range and value.
  SequenceState(std::span<const std::int32_t> prompt, const DecodingOptions& options,
                const SpecialTokens& special)
      : m_options(options), m_special(special), m_prompt(static_cast<Index>(prompt.size())) {
    if (m_special.mask < 0)
      base::refuse_argument("SpecialTokens: mask must be a token, got ", m_special.mask);
    check_options(options, "DecodingOptions");
    m_has_gaps = std::find(prompt.begin(), prompt.end(), special.mask) != prompt.end();
    check_decoding(options,
                   {.prompt_has_masks = m_has_gaps, .has_end_tokens = !special.end_of_text.empty()},
                   field_words);
    m_tokens.assign(prompt.begin(), prompt.end());
    m_tokens.resize(prompt.size() + static_cast<std::size_t>(options.response), special.mask);
    m_masked.assign(m_tokens.size(), 0);
    std::fill(m_masked.begin() + m_prompt, m_masked.end(), std::uint8_t{1});
    for (std::size_t row = 0; row < prompt.size(); ++row)
      if (prompt[row] == special.mask) m_masked[row] = 1;
    m_given = m_masked;
    for (std::uint8_t& flag : m_given) flag ^= 1;
    m_first = std::find(m_given.begin(), m_given.end(), std::uint8_t{0}) - m_given.begin();
    m_suppressed = with_ends(options.suppress_tokens, options.suppress_end);
    m_last = with_ends(options.commit_last, options.end_last);
    const Index rows = row_count();
    const Index begin = m_has_gaps ? 0 : m_prompt;
    const Index length = options.block_length == 0 ? rows - begin : options.block_length;
    m_blocks = BlockSchedule(options, {begin, rows, length}, m_has_gaps);
    begin_block((first_to_fill() - begin) / length);
  }

  /// Tokens of the prompt and the response; rows not decoded yet hold the mask.
  [[nodiscard]] std::span<const std::int32_t> tokens() const { return m_tokens; }
  /// Tokens of the response.
  [[nodiscard]] std::span<const std::int32_t> response() const {
    return tokens().subspan(static_cast<std::size_t>(m_prompt));
  }
  /// One flag a row: 1 where the token is still to be found.
  [[nodiscard]] std::span<const std::uint8_t> masked() const { return m_masked; }
  /// One flag a row: 1 where the token was given with the prompt and never changes.
  [[nodiscard]] std::span<const std::uint8_t> given() const { return m_given; }
  /// Whether the prompt held masks.
  [[nodiscard]] bool has_gaps() const { return m_has_gaps; }
  /// The first row whose token is or was to be found.
  [[nodiscard]] Index first_to_fill() const { return m_first; }
  /// Rows whose token is still the mask, after the end too.
  [[nodiscard]] Index masks_left() const { return std::count(m_masked.begin(), m_masked.end(), 1); }
  [[nodiscard]] Index prompt_rows() const { return m_prompt; }
  [[nodiscard]] const SpecialTokens& special_tokens() const { return m_special; }
  [[nodiscard]] const DecodingOptions& options() const { return m_options; }
  /// Denoising steps done.
  [[nodiscard]] Index step() const { return m_step; }
  /// Rows of the active block.
  [[nodiscard]] Range block() const { return m_blocks.block(); }
  [[nodiscard]] const BlockProgress& block_progress() const { return m_blocks.progress(); }
  /// Steps done in the active block.
  [[nodiscard]] Index block_steps() const { return m_blocks.taken(); }
  [[nodiscard]] bool finished() const { return m_finished; }

  /// Whether a row may be committed in this step: masked, and before the end of the active block
  /// (rows that an earlier block left masked stay candidates unless there are gaps, as in the
  /// references).
  [[nodiscard]] bool is_candidate(Index row) const {
    return candidate_rows().contains(row) && m_masked[static_cast<std::size_t>(row)] != 0;
  }

  /// How rows are predicted in this step; valid as long as the state is.
  [[nodiscard]] SamplingRule sampling_rule() const {
    return {.sampling = m_options.sampling,
            .confidence = m_options.confidence,
            .temperature = m_options.temperature,
            .top_p = m_options.top_p,
            .top_k = m_options.top_k,
            .excluded_token = m_excludes_mask ? m_special.mask : no_token,
            .suppressed = m_suppressed,
            .last = m_last};
  }
  /// Names a row's random numbers in this step.
  [[nodiscard]] RandomKey random_key(Index row) const {
    // Steps are numbered as they were planned: those that are not taken change no other's numbers.
    const Index step = is_counted(m_options.commit) && !m_has_gaps
                           ? m_blocks.number() * block_progress().steps + block_progress().step
                           : m_step;
    return {m_options.seed, m_options.sequence, static_cast<std::uint64_t>(step),
            static_cast<std::uint64_t>(m_has_gaps ? row : row - m_prompt)};
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
    out.array("given", given());
    out.number("block", m_blocks.number());
    out.number("step", m_step);
    out.number("block step", block_progress().step);
    out.number("block steps taken", m_blocks.taken());
    out.number("first_masked", block_progress().first_masked);
    out.number("planned", m_blocks.planned());
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
    if (options.response < 0 || options.response > most_rows)
      in.refuse("response must be in [0, ", most_rows, "], got ", options.response);
    const auto rows = static_cast<std::size_t>(prompt + options.response);
    std::vector<std::int32_t> tokens = in.elements<std::int32_t>(rows);
    std::vector<std::uint8_t> masked = in.elements<std::uint8_t>(rows);
    const std::vector<std::uint8_t> given = in.elements<std::uint8_t>(rows);
    std::vector<std::int32_t> asked(tokens.begin(), tokens.begin() + prompt);
    for (std::size_t row = 0; row < asked.size(); ++row)
      if (given[row] == 0) asked[row] = special.mask;
    SequenceState state(asked, options, special);
    if (state.m_given != given) in.refuse("given must be 0 or 1, and 0 where a row was the mask");
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
      if (!is_candidate(one.row))
        base::refuse_call("SequenceState: predictions must be of rows that may be committed, ",
                          "got row ", one.row);
    order(predictions);
    const Index count = m_blocks.count(predictions, candidates());
    Index found = 0;
    for (Index i = 0; i < count; ++i) {
      const Prediction& best = predictions[static_cast<std::size_t>(i)];
      m_tokens[static_cast<std::size_t>(best.row)] = best.token;
      const bool still_masked = best.token == m_special.mask;
      m_masked[static_cast<std::size_t>(best.row)] = still_masked ? 1 : 0;
      if (!still_masked) ++found;
    }
    ++m_step;
    m_blocks.end_step();
    // A model that predicts the mask itself would keep an open-ended block busy for ever.
    m_excludes_mask = !is_counted(m_options.commit) && found == 0;
    if (m_blocks.finished(candidates(), masked_in(block()))) finish_block();
    return count;
  }

 private:
  static constexpr Index most_rows = Index{1} << 31;

  void read_progress(SnapshotReader& in) {
    const BlockGrid& grid = m_blocks.grid();
    const auto block = in.number<Index>("block", 0, grid.count() - 1);
    m_step = in.number<Index>("step", 0, most_counted);
    const auto step = in.number<Index>("block step", 0, most_counted);
    const auto taken = in.number<Index>("block steps taken", 0, step);
    const auto first_masked = in.number<Index>("first_masked", 0, grid.block(block).size());
    m_blocks.begin(block, first_masked);
    m_blocks.resume(step, taken, in.number<Index>("planned", 0, first_masked));
    m_excludes_mask = in.flag("excludes_mask");
    m_finished = in.flag("finished");
    const bool counted = is_counted(m_options.commit);
    const Index last = counted ? block_progress().steps : m_step;
    if (step > last) in.refuse("block step must be in [0, ", last, "], got ", step);
    if (counted && step == last && !m_finished)
      in.refuse("block step must be below ", last, " before the end, got ",
                step);  // such a block would never end
    for (std::size_t row = 0; row < m_tokens.size(); ++row) {
      const bool may_be_masked = m_given[row] == 0 && m_tokens[row] == m_special.mask;
      if (m_masked[row] > (may_be_masked ? 1 : 0))
        in.refuse("masked must be 0, or 1 where a row to be filled holds the mask; row ", row,
                  " has ", static_cast<int>(m_masked[row]));
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

  [[nodiscard]] Index row_count() const { return static_cast<Index>(m_tokens.size()); }

  // A list of tokens, with the model's end tokens where they are asked for.
  [[nodiscard]] std::vector<std::int32_t> with_ends(std::vector<std::int32_t> tokens,
                                                    bool ends) const {
    const std::span<const std::int32_t> all = m_special.end_of_text.all();
    if (ends) tokens.insert(tokens.end(), all.begin(), all.end());
    return tokens;
  }

  // Rows among which a step may commit.
  [[nodiscard]] Range candidate_rows() const {
    return m_has_gaps ? block() : Range{m_prompt, block().end};
  }
  [[nodiscard]] Index masked_in(Range rows) const {
    return std::count(m_masked.begin() + rows.begin, m_masked.begin() + rows.end, 1);
  }
  [[nodiscard]] Index candidates() const { return masked_in(candidate_rows()); }

  void begin_block(Index block) { m_blocks.begin(block, masked_in(m_blocks.grid().block(block))); }

  // Whether the answer ends in the block: text that was given, and the rest of a prompt around a
  // gap, goes on behind an end token.
  [[nodiscard]] bool answer_ends_in(Range rows) const {
    if (!m_options.early_stop) return false;
    for (Index row = std::max(rows.begin, m_prompt); row < rows.end; ++row)
      if (m_special.end_of_text.contains(m_tokens[static_cast<std::size_t>(row)])) return true;
    return false;
  }

  void finish_block() {
    const Range rows = block();
    if (answer_ends_in(rows)) {
      std::fill(m_tokens.begin() + rows.end, m_tokens.end(), m_special.end_of_text.first());
      std::fill(m_masked.begin() + rows.end, m_masked.end(), std::uint8_t{0});
      m_finished = true;
      return;
    }
    // Blocks of given text alone have nothing to do.
    const BlockGrid& grid = m_blocks.grid();
    for (Index next = m_blocks.number() + 1; next < grid.count(); ++next)
      if (masked_in(grid.block(next)) > 0) return begin_block(next);
    m_finished = true;
  }

  DecodingOptions m_options;
  SpecialTokens m_special;
  Index m_prompt;
  Index m_first = 0;
  BlockSchedule m_blocks;
  Index m_step = 0;
  std::vector<std::int32_t> m_tokens;
  std::vector<std::uint8_t> m_masked;
  std::vector<std::uint8_t> m_given;
  std::vector<std::int32_t> m_suppressed;
  std::vector<std::int32_t> m_last;
  bool m_has_gaps = false;
  bool m_excludes_mask = false;
  bool m_finished = false;
};

}  // namespace dllm_cache::inline v0_1
