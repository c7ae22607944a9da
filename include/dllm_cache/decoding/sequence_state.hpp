// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "dllm_cache/decoding/block_schedule.hpp"
#include "dllm_cache/decoding/check_decoding.hpp"
#include "dllm_cache/decoding/decoding_options.hpp"
#include "dllm_cache/decoding/detail/ending.hpp"
#include "dllm_cache/decoding/detail/extend_options.hpp"
#include "dllm_cache/decoding/detail/options_snapshot.hpp"
#include "dllm_cache/decoding/detail/order_predictions.hpp"
#include "dllm_cache/decoding/detail/token_rows.hpp"
#include "dllm_cache/decoding/special_tokens.hpp"
#include "dllm_cache/plan.hpp"

namespace dllm_cache::inline v0_1 {

/// The denoising state of one sequence: tokens, block and step counters, and which rows may still
/// be committed. Knows neither model nor cache.
///
/// A prompt that holds the mask has gaps, which are filled too: the blocks are then a grid over the
/// whole sequence, those without a mask take no step, and only rows of the block are committed.
/// With block-causal attention the blocks are those of SequenceLayout, whose surplus rows are
/// decoded like others and belong to no answer. A finished block that is followed by another may be
/// stored in a step of its own, see storing(). Not synchronised. Sources: `generate` in
/// utils/generate_function.py of maomaocun/dLLM-cache at 17235bf; for gaps `infill` in
/// dllm/core/samplers/mdlm.py of ZHZisZZ/dllm at 13ba372, less steps that can commit nothing.
class SequenceState {
 public:
  /// Takes the prompt's tokens; throws std::invalid_argument naming field, legal range and value.
  SequenceState(std::span<const std::int32_t> prompt, const DecodingOptions& options,
                const SpecialTokens& special)
      : m_options(options), m_special(special) {
    if (m_special.mask < 0)
      base::refuse_argument("SpecialTokens: mask must be a token, got ", m_special.mask);
    check_options(options, "DecodingOptions");
    const bool has_gaps = std::find(prompt.begin(), prompt.end(), special.mask) != prompt.end();
    const auto prompt_size = static_cast<Index>(prompt.size());
    check_decoding(options,
                   {.prompt_has_masks = has_gaps,
                    .has_end_tokens = !special.end_of_text.empty(),
                    .prompt_rows = prompt_size},
                   field_words);
    const SequenceLayout layout(prompt_size, has_gaps, options);
    m_rows = detail::TokenRows(prompt, layout.rows, special.mask);
    m_suppressed = options.suppress_tokens;
    m_last = options.commit_last;
    const std::span<const std::int32_t> ends = special.end_of_text.all();
    if (options.suppress_end) m_suppressed.insert(m_suppressed.end(), ends.begin(), ends.end());
    if (options.end_last) m_last.insert(m_last.end(), ends.begin(), ends.end());
    m_ending = detail::Ending(options, special.end_of_text);
    if (options.certainty_sigma > 0.0) m_density.resize(m_rows.masked().size());
    m_blocks = BlockSchedule(options, layout.grid, has_gaps);
    move_to(0, std::nullopt);
    rows_changed();
  }

  /// Tokens of the prompt and the response, and of the surplus rows behind them, if any; rows not
  /// decoded yet hold the mask.
  [[nodiscard]] std::span<const std::int32_t> tokens() const { return m_rows.tokens(); }
  /// Tokens of the response.
  [[nodiscard]] std::span<const std::int32_t> response() const {
    return tokens().subspan(static_cast<std::size_t>(prompt_rows()),
                            static_cast<std::size_t>(m_options.response));
  }
  /// One flag a row: 1 where the token is still to be found; 0 where it is dropped behind an end
  /// token, though the row holds the mask (DecodingOptions::end_drops_rows).
  [[nodiscard]] std::span<const std::uint8_t> masked() const { return m_rows.masked(); }
  /// One flag a row: 1 where the token was given with the prompt and never changes.
  [[nodiscard]] std::span<const std::uint8_t> given() const { return m_rows.given(); }
  /// Whether the prompt held masks.
  [[nodiscard]] bool has_gaps() const { return m_rows.has_gaps(); }
  /// The first row whose token is or was to be found.
  [[nodiscard]] Index first_to_fill() const { return m_rows.first_to_fill(); }
  /// Rows whose token is still to be found, after the end too: those that were dropped are not.
  [[nodiscard]] Index masks_left() const { return m_rows.masked_in({0, m_rows.rows()}); }
  [[nodiscard]] Index prompt_rows() const { return m_rows.prompt(); }
  [[nodiscard]] const SpecialTokens& special_tokens() const { return m_special; }
  [[nodiscard]] const DecodingOptions& options() const { return m_options; }
  [[nodiscard]] Index step() const { return m_step; }  ///< Denoising steps done.
  [[nodiscard]] SequenceLayout layout() const { return {prompt_rows(), has_gaps(), m_options}; }
  /// Whether the next forward is no denoising step: it stores what ends with block(), and commits
  /// nothing, or with `commit_next` the token behind it.
  [[nodiscard]] bool storing() const { return m_storing; }
  /// Rows of the active block, or of what is stored: the block of attention before it.
  [[nodiscard]] Range block() const {
    const Range active = m_blocks.block();
    if (!m_storing || m_options.attention_block == 0) return active;
    return layout().attention_before(layout().attention_begin(active));
  }
  [[nodiscard]] const BlockProgress& block_progress() const { return m_blocks.progress(); }
  /// Steps done in the active block.
  [[nodiscard]] Index block_steps() const { return m_blocks.taken(); }
  [[nodiscard]] bool finished() const { return m_ending.finished(); }

  /// Whether a row may be committed in this step: masked, within the window, and before the end of
  /// the active block (in it, where there are gaps or finished blocks are final).
  [[nodiscard]] bool is_candidate(Index row) const {
    if (m_storing)
      return m_options.commit_next && !m_prefills && row == block().end && m_rows.is_masked(row);
    return candidate_rows().contains(row) && m_rows.is_masked(row);
  }

  /// How rows are predicted in this step; valid as long as the state is.
  [[nodiscard]] SamplingRule sampling_rule() const {
    return {.sampling = m_options.sampling,
            .confidence = m_options.confidence,
            .temperature = m_options.temperature,
            .top_p = m_options.top_p,
            .top_k = m_options.top_k,
            .excluded_token = m_excludes_mask || m_storing ? m_special.mask : no_token,
            .suppressed = m_suppressed,
            .last = m_last};
  }
  /// Names a row's random numbers in this step.
  [[nodiscard]] RandomKey random_key(Index row) const {
    // Steps are numbered as they were planned: those that are not taken change no other's numbers.
    const Index step = is_counted(m_options.commit) && !has_gaps()
                           ? m_blocks.number() * block_progress().steps + block_progress().step
                           : m_step;
    return {m_options.seed, m_options.sequence, static_cast<std::uint64_t>(step),
            static_cast<std::uint64_t>(has_gaps() ? row : row - prompt_rows())};
  }

  /// Draws other random numbers from here on: those of sequence `number` with the same seed.
  void set_random_sequence(std::uint64_t number) { m_options.sequence = number; }

  /// Writes everything as one section of a snapshot. Throws what the sink throws.
  void save(SnapshotWriter& out) const {
    out.begin("sequence");
    detail::write_options(out, m_options);
    detail::write_special(out, m_special);
    out.number("prompt", prompt_rows());
    m_rows.save(out);
    out.number("step", m_step);
    m_ending.save(out);
    m_blocks.save(out);
    out.number("storing", storing());
    out.number("prefills", m_prefills);
    out.number("excludes_mask", m_excludes_mask);
    out.finish();
  }

  /// The sequence as it was saved, for a model with these tokens. Throws std::runtime_error for
  /// other tokens, a damaged snapshot or a state that cannot be, std::invalid_argument for options
  /// out of range, and what the source throws.
  [[nodiscard]] static SequenceState restored(SnapshotReader& in, const SpecialTokens& special) {
    in.begin("sequence");
    const DecodingOptions options = detail::read_options(in);
    detail::expect_special(in, special);
    const auto prompt = in.number<Index>("prompt", 0, detail::most_rows);
    detail::TokenRows rows = detail::TokenRows::restored(
        in, prompt, SequenceLayout(prompt, false, options).rows, special.mask);
    SequenceState state(rows.asked(), options, special);
    state.m_rows = std::move(rows);
    state.m_step = in.number<Index>("step", 0, most_counted);
    state.m_ending.restore(in);
    state.m_blocks.restore(in, state.m_step, state.finished());
    state.m_storing = in.flag("storing");
    state.m_prefills = in.flag("prefills");
    if (state.m_storing && !state.may_store())
      in.refuse("storing must be 0 where nothing is to be stored, got 1");
    state.m_excludes_mask = in.flag("excludes_mask");
    in.finish();
    state.rows_changed();
    return state;
  }

  /// Ends the step: puts the predictions in order, surest first, commits the best and moves on.
  /// Returns how many were committed: the first of them. Throws std::logic_error after the end and
  /// for predictions of rows that are no candidates; then nothing was committed.
  /// After a forward that stores there is one prediction at most, and the step does not count.
  /// With `certainty_sigma` confidences are weighed first. With `threshold_alpha` the threshold of
  /// every step of a block but its first is multiplied by 1 - alpha * (1 - r), where r is the
  /// masked share, before the step, of the rows that exist in it from the block's begin on.
  /// `hidden`, one flag a row, says which do not, as StepPlan::hidden does; empty: all do.
  Index commit(std::span<Prediction> predictions, std::span<const std::uint8_t> hidden = {}) {
    if (finished()) base::refuse_call("SequenceState: commit() after the end");
    for (const Prediction& one : predictions)
      if (!is_candidate(one.row))
        base::refuse_call("SequenceState: predictions must be of rows that may be committed, ",
                          "got row ", one.row);
    const Index count = m_storing ? commit_stored(predictions) : commit_step(predictions, hidden);
    rows_changed();
    return count;
  }

  /// Makes the next forward one that only stores, where anything lies before the block; see
  /// DenoisingLoop::prefill().
  void begin_prefill() {
    if (finished()) base::refuse_call("SequenceState: begin_prefill() after the end");
    if (m_options.attention_block > 0 && layout().attention_begin(m_blocks.block()) == 0) return;
    m_storing = true;
    m_prefills = true;
  }

  /// Gives the response `rows >= 1` more rows. A finished sequence goes on, unless an end token
  /// ended it: then it throws std::logic_error. Throws std::invalid_argument where the options do
  /// not allow so many; then nothing has changed.
  void extend(Index rows) {
    if (m_ending.by_token()) base::refuse_call("SequenceState: extend() after an end token");
    const BlockGrid old = m_blocks.grid();
    DecodingOptions options =
        detail::extend_options(m_options, rows, m_blocks, prompt_rows(), has_gaps());
    const SequenceLayout layout(prompt_rows(), has_gaps(), options);
    const Range block = m_blocks.block();
    const Index grown =
        block.end == old.end ? layout.grid.block(m_blocks.number()).end - block.end : 0;
    if (!m_density.empty()) m_density.resize(static_cast<std::size_t>(layout.rows));
    m_rows.extend(layout.rows);
    m_blocks.grow(layout.rows, grown, options.steps);
    m_options = std::move(options);
    if (finished()) {
      m_ending.go_on();
      // A short last block that was finished has masks again.
      move_to(m_blocks.number() + (grown > 0 ? 0 : 1), block);
    }
    rows_changed();
  }

  /// One past the answer: behind its first end token, if there is one, else behind the response.
  [[nodiscard]] Index answer_end() const {
    const Index asked = prompt_rows() + m_options.response;
    return std::min(m_rows.find({0, asked}, m_special.end_of_text).value_or(asked) + 1, asked);
  }

 private:
  // Whether a forward that only stores can come next.
  [[nodiscard]] bool may_store() const {
    if (finished()) return false;
    if (m_options.attention_block == 0) return m_prefills;
    const Index begin = layout().attention_begin(m_blocks.block());
    return begin > 0 && (!m_options.commit_next || m_prefills || m_rows.is_masked(begin));
  }

  // Rows among which a step may commit.
  [[nodiscard]] Range candidate_rows() const {
    Range rows = block();
    if (!has_gaps() && m_options.attention_block == 0) rows.begin = prompt_rows();
    rows.end = std::min(rows.end, m_window_end);
    return rows;
  }
  [[nodiscard]] Index candidates() const { return m_rows.masked_in(candidate_rows()); }

  Index commit_step(std::span<Prediction> predictions, std::span<const std::uint8_t> hidden) {
    if (!m_density.empty())
      detail::weigh_predictions(predictions, masked(), first_to_fill(), m_options.certainty_sigma,
                                m_density);
    detail::order_predictions(predictions, m_options, [&](Index row) { return random_key(row); });
    const Range existing{block().begin, layout().shape().key_end(block().end - 1)};
    const double share =
        m_options.threshold_alpha > 0.0 ? m_rows.masked_share(existing, hidden) : 1.0;
    const Index count = m_blocks.count(predictions, candidates(), share);
    const std::span<const Prediction> best = predictions.first(static_cast<std::size_t>(count));
    Index found = 0;
    for (const Prediction& one : best) found += m_rows.take(one) ? 1 : 0;
    m_ending.drop(m_rows, best);
    ++m_step;
    m_blocks.end_step();
    // A model that predicts the mask itself would keep an open-ended block busy for ever.
    m_excludes_mask = !is_counted(m_options.commit) && found == 0;
    const bool block_finished = m_blocks.finished(candidates(), m_rows.masked_in(block()));
    if (const auto end = m_ending.find(m_rows, block(), block_finished))
      m_ending.end(m_rows, *end, block().end);
    else if (block_finished)
      move_to(m_blocks.number() + 1, block());
    return count;
  }
  Index commit_stored(std::span<const Prediction> predictions) {
    if (std::exchange(m_prefills, false)) {
      // The token behind it may be still to be committed.
      m_storing = m_options.commit_next && m_rows.is_masked(block().end);
      return 0;
    }
    for (const Prediction& one : predictions) m_rows.take(one);
    m_ending.drop(m_rows, predictions);
    m_storing = false;
    if (predictions.empty()) return 0;
    if (m_options.early_stop && m_special.end_of_text.contains(predictions.front().token))
      m_ending.end(m_rows, predictions.front().row, m_blocks.block().end);
    else
      move_to(m_blocks.number(), m_blocks.block());
    return static_cast<Index>(predictions.size());
  }

  // Which rows are masked, how many there are or which block is active may have changed.
  void rows_changed() {
    if (m_options.window == 0) return;
    m_window_end = never;  // of all candidates
    m_window_end = m_rows.end_of_masked(candidate_rows(), m_options.window);
  }

  // Begins the next block that has a mask, `from` or later. What lies before it may have to be
  // stored first, where `done`, the last block, lies in another block of attention, or was none.
  void move_to(Index from, std::optional<Range> done) {
    const BlockGrid& grid = m_blocks.grid();
    Index next = from;
    while (next < grid.count() && m_rows.masked_in(grid.block(next)) == 0) ++next;
    if (next == grid.count()) return m_ending.finish(m_rows);
    m_blocks.begin(next, m_rows.masked_in(grid.block(next)));
    if (m_options.attention_block == 0) return;
    const SequenceLayout layout = this->layout();
    const Index begin = layout.attention_begin(grid.block(next));
    const bool crosses = !done || layout.attention_begin(*done) != begin;
    const bool stores =
        m_options.commit_next ? m_rows.is_masked(begin) : crosses && !m_options.fuse_blocks;
    m_storing = stores && begin > 0;
  }

  DecodingOptions m_options;
  SpecialTokens m_special;
  detail::TokenRows m_rows;
  BlockSchedule m_blocks;
  Index m_step = 0;
  std::vector<std::int32_t> m_suppressed, m_last;
  detail::Ending m_ending;
  std::vector<double> m_density;  // scratch of weigh_predictions(), where it is asked for
  Index m_window_end = never;     // candidates lie before it
  bool m_excludes_mask = false;
  bool m_storing = false;   // the next forward stores, and does nothing else
  bool m_prefills = false;  // nor commits the token behind
};

}  // namespace dllm_cache::inline v0_1
