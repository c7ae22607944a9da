// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "dllm_cache/decoding/sampler.hpp"
#include "dllm_cache/decoding/special_tokens.hpp"
#include "dllm_cache/plan.hpp"
#include "dllm_cache/snapshot.hpp"

namespace dllm_cache::inline v0_1::detail {

/// Tokens of a sequence, and which of them were given and which are still to be found.
class TokenRows {
 public:
  TokenRows() = default;
  /// A prompt, whose masks are gaps to be filled, and masks behind it up to `rows` rows.
  TokenRows(std::span<const std::int32_t> prompt, Index rows, std::int32_t mask)
      : m_mask(mask),
        m_prompt(static_cast<Index>(prompt.size())),
        m_tokens(prompt.begin(), prompt.end()) {
    m_tokens.resize(static_cast<std::size_t>(rows), mask);
    m_masked.resize(m_tokens.size());
    for (std::size_t row = 0; row < m_tokens.size(); ++row)
      m_masked[row] = row >= prompt.size() || prompt[row] == mask ? 1 : 0;
    m_given = m_masked;
    for (std::uint8_t& flag : m_given) flag ^= 1;
    m_first = std::find(m_given.begin(), m_given.end(), std::uint8_t{0}) - m_given.begin();
  }

  [[nodiscard]] std::span<const std::int32_t> tokens() const { return m_tokens; }
  [[nodiscard]] std::span<const std::uint8_t> masked() const { return m_masked; }
  [[nodiscard]] std::span<const std::uint8_t> given() const { return m_given; }
  [[nodiscard]] Index rows() const { return static_cast<Index>(m_tokens.size()); }
  [[nodiscard]] Index prompt() const { return m_prompt; }
  [[nodiscard]] std::int32_t mask() const { return m_mask; }
  /// The first row that is or was to be found.
  [[nodiscard]] Index first_to_fill() const { return m_first; }
  [[nodiscard]] bool has_gaps() const { return m_first < m_prompt; }

  [[nodiscard]] std::int32_t token(Index row) const { return m_tokens[place(row)]; }
  [[nodiscard]] bool is_masked(Index row) const { return m_masked[place(row)] != 0; }
  [[nodiscard]] Index masked_in(Range rows) const {
    return std::count(m_masked.begin() + rows.begin, m_masked.begin() + rows.end, std::uint8_t{1});
  }
  /// Where a range ends that holds the first `count` of its masked rows, at least 1.
  [[nodiscard]] Index end_of_masked(Range rows, Index count) const {
    for (Index row = rows.begin; row < rows.end; ++row)
      if (is_masked(row) && --count == 0) return row + 1;
    return rows.end;
  }
  /// The masked share of the rows of a range that are not hidden (one flag a row, or none at all);
  /// 1 where there are none.
  [[nodiscard]] double masked_share(Range rows, std::span<const std::uint8_t> hidden) const {
    Index seen = 0, masks = 0;
    for (Index row = rows.begin; row < rows.end; ++row) {
      if (!hidden.empty() && hidden[place(row)] != 0) continue;
      ++seen;
      masks += is_masked(row) ? 1 : 0;
    }
    return seen == 0 ? 1.0 : static_cast<double>(masks) / static_cast<double>(seen);
  }
  /// The first row of a range that holds one of these tokens behind the prompt: text that was
  /// given, and the rest of a prompt around a gap, goes on behind an end token.
  [[nodiscard]] std::optional<Index> find(Range rows, const EndTokens& ends) const {
    for (Index row = std::max(rows.begin, m_prompt); row < rows.end; ++row)
      if (ends.contains(token(row))) return row;
    return std::nullopt;
  }

  /// A row gets its token; false where that is the mask, so that it is still to be found.
  bool take(const Prediction& best) {
    m_tokens[place(best.row)] = best.token;
    m_masked[place(best.row)] = best.token == m_mask ? 1 : 0;
    return best.token != m_mask;
  }
  /// Rows get a token that nobody predicted.
  void fill(Range rows, std::int32_t token) {
    std::fill(m_tokens.begin() + rows.begin, m_tokens.begin() + rows.end, token);
    std::fill(m_masked.begin() + rows.begin, m_masked.begin() + rows.end, std::uint8_t{0});
  }
  /// The same for those of them that are masked.
  void fill_masks(Range rows, std::int32_t token) {
    for (Index row = rows.begin; row < rows.end; ++row)
      if (is_masked(row)) fill({row, row + 1}, token);
  }
  /// Rows that are masked keep the mask and are not to be found any more.
  void drop(Range rows) {
    std::fill(m_masked.begin() + rows.begin, m_masked.begin() + rows.end, std::uint8_t{0});
  }
  /// More masks behind the last row; throws std::bad_alloc, and then nothing has changed.
  void extend(Index rows) {
    const auto all = static_cast<std::size_t>(rows);
    m_tokens.reserve(all);
    m_masked.reserve(all);
    m_given.reserve(all);
    m_tokens.resize(all, m_mask);
    m_masked.resize(all, 1);
    m_given.resize(all, 0);
  }

  void save(SnapshotWriter& out) const {
    out.array("tokens", tokens());
    out.array("masked", masked());
    out.array("given", given());
  }
  /// Rows as they were saved, of a prompt of so many rows.
  [[nodiscard]] static TokenRows restored(SnapshotReader& in, Index prompt, Index rows,
                                          std::int32_t mask) {
    const auto count = static_cast<std::size_t>(rows);
    std::vector<std::int32_t> tokens = in.elements<std::int32_t>(count);
    std::vector<std::uint8_t> masked = in.elements<std::uint8_t>(count);
    const std::vector<std::uint8_t> given = in.elements<std::uint8_t>(count);
    std::vector<std::int32_t> asked(tokens.begin(), tokens.begin() + prompt);
    for (std::size_t row = 0; row < asked.size(); ++row)
      if (given[row] == 0) asked[row] = mask;
    TokenRows restored(asked, rows, mask);
    if (restored.m_given != given)
      SnapshotReader::refuse("given must be 0 or 1, and 0 where a row was the mask");
    for (std::size_t row = 0; row < tokens.size(); ++row) {
      const bool may_be_masked = given[row] == 0 && tokens[row] == mask;
      if (masked[row] > (may_be_masked ? 1 : 0))
        SnapshotReader::refuse(
            "masked must be 0, or 1 where a row to be filled holds the mask; row ", row, " has ",
            static_cast<int>(masked[row]));
    }
    restored.m_tokens = std::move(tokens);
    restored.m_masked = std::move(masked);
    return restored;
  }
  /// The prompt as it was given: with masks where it had gaps.
  [[nodiscard]] std::vector<std::int32_t> asked() const {
    std::vector<std::int32_t> prompt(m_tokens.begin(), m_tokens.begin() + m_prompt);
    for (std::size_t row = 0; row < prompt.size(); ++row)
      if (m_given[row] == 0) prompt[row] = m_mask;
    return prompt;
  }

 private:
  static std::size_t place(Index row) { return static_cast<std::size_t>(row); }

  std::int32_t m_mask = no_token;
  Index m_prompt = 0;
  Index m_first = 0;
  std::vector<std::int32_t> m_tokens;
  std::vector<std::uint8_t> m_masked;
  std::vector<std::uint8_t> m_given;
};

}  // namespace dllm_cache::inline v0_1::detail
