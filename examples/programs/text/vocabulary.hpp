// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "dllm_cache/decoding/special_tokens.hpp"

namespace programs {

/// The vocabulary of a character-level model: `vocab.txt` beside its weights, one symbol a line, a
/// line break written as `\n`; symbols of several characters (`<eos>`) are never read from text.
class Vocabulary {
 public:
  /// Reads `folder`/vocab.txt; throws std::runtime_error naming the file.
  explicit Vocabulary(const std::filesystem::path& folder);

  /// Whether the folder has one.
  [[nodiscard]] static bool exists(const std::filesystem::path& folder);

  /// Token ids of a text; throws BadRequest naming the first character outside the vocabulary,
  /// with `what` in front of it.
  [[nodiscard]] std::vector<std::int32_t> encode(const std::string& text,
                                                 const std::string& what = "prompt") const;

  /// Token ids of a text with gaps, in which `<mask:12>` stands for twelve masks and `\\n`, `\\t`
  /// and
  /// `\\\\` for a line break, a tabulator and a backslash; throws BadRequest like encode(), and for
  /// a gap of another form.
  [[nodiscard]] std::vector<std::int32_t> encode_gaps(const std::string& text,
                                                      std::int32_t mask) const;

  /// Text of tokens up to the first that ends a text; other special symbols are written as their
  /// names.
  [[nodiscard]] std::string decode(std::span<const std::int32_t> tokens,
                                   const dllm_cache::EndTokens& ends) const;

  /// Number of tokens that it has.
  [[nodiscard]] dllm_cache::Index size() const {
    return static_cast<dllm_cache::Index>(m_symbols.size());
  }

  /// The symbol of one token, "?" for an unknown one.
  [[nodiscard]] const std::string& symbol(std::int32_t token) const;

 private:
  std::vector<std::string> m_symbols;
  std::map<std::string, std::int32_t> m_ids;
};

}  // namespace programs
