// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

#include "dllm_cache/decoding/sampler.hpp"

namespace dllm_cache::inline v0_1 {

/// Tokens any of which ends a text, none at first: chat models have one for the text and one for
/// the turn. Written as a token, as a list, or filled by add().
class EndTokens {
 public:
  EndTokens() = default;
  /// One token; `no_token` is none.
  EndTokens(std::int32_t token) {  // NOLINT(google-explicit-constructor): a token is a list of one
    add(token);
  }
  EndTokens(std::initializer_list<std::int32_t> tokens) {
    for (const std::int32_t token : tokens) add(token);
  }

  /// One more token, unless it is there already or negative, as checkpoints write "none".
  void add(std::int32_t token) {
    if (token >= 0 && !contains(token)) m_tokens.push_back(token);
  }

  [[nodiscard]] bool contains(std::int32_t token) const {
    return std::find(m_tokens.begin(), m_tokens.end(), token) != m_tokens.end();
  }
  [[nodiscard]] bool empty() const { return m_tokens.empty(); }
  /// The first, which fills what follows the end of a text; no_token when there is none.
  [[nodiscard]] std::int32_t first() const { return empty() ? no_token : m_tokens.front(); }
  /// All of them, in the order in which they were given; valid until the next add().
  [[nodiscard]] std::span<const std::int32_t> all() const { return m_tokens; }

  friend bool operator==(const EndTokens&, const EndTokens&) = default;

 private:
  std::vector<std::int32_t> m_tokens;
};

/// Tokens that mean something to the loop.
struct SpecialTokens {
  std::int32_t mask = no_token;
  EndTokens end_of_text = {};
};

}  // namespace dllm_cache::inline v0_1
