// SPDX-License-Identifier: Apache-2.0
#include "programs/text/vocabulary.hpp"

#include <fstream>

#include "dllm_cache/options.hpp"
#include "programs/text/errors.hpp"

namespace programs {

bool Vocabulary::exists(const std::filesystem::path& folder) {
  return std::filesystem::is_regular_file(folder / "vocab.txt");
}

Vocabulary::Vocabulary(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "vocab.txt";
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line == "\\n") line = "\n";
    m_ids.emplace(line, static_cast<std::int32_t>(m_symbols.size()));
    m_symbols.push_back(line);
  }
  if (m_symbols.empty())
    throw std::runtime_error(path.string() + ": expected one symbol a line, got none");
}

std::vector<std::int32_t> Vocabulary::encode(const std::string& text,
                                             const std::string& what) const {
  std::vector<std::int32_t> tokens;
  for (std::size_t at = 0; at < text.size();) {
    // A character of UTF-8 may take several bytes; it is named whole when it is unknown.
    std::size_t bytes = 1;
    while (at + bytes < text.size() &&
           (static_cast<unsigned char>(text[at + bytes]) & 0xC0U) == 0x80U)
      ++bytes;
    const std::string character = text.substr(at, bytes);
    const auto found = m_ids.find(character);
    if (found == m_ids.end())
      throw BadRequest(std::string(what)
                           .append(": character '")
                           .append(character)
                           .append("' at place ")
                           .append(std::to_string(at))
                           .append(" is not in the model's vocabulary"));
    tokens.push_back(found->second);
    at += bytes;
  }
  return tokens;
}

std::vector<std::int32_t> Vocabulary::encode_gaps(const std::string& text,
                                                  std::int32_t mask) const {
  constexpr std::string_view begin = "<mask:";
  constexpr dllm_cache::Index longest = 1 << 20;
  std::vector<std::int32_t> tokens;
  std::string piece;
  const auto end_piece = [&] {
    const std::vector<std::int32_t> ids = encode(piece, "infill");
    tokens.insert(tokens.end(), ids.begin(), ids.end());
    piece.clear();
  };
  for (std::size_t at = 0; at < text.size(); ++at) {
    if (text[at] == '\\' && at + 1 < text.size()) {
      const char next = text[at + 1];
      if (next == 'n' || next == 't' || next == '\\') {
        piece += next == 'n' ? '\n' : next == 't' ? '\t' : '\\';
        ++at;
        continue;
      }
    }
    if (text.compare(at, begin.size(), begin) != 0) {
      piece += text[at];
      continue;
    }
    end_piece();
    const std::size_t end = std::min(text.find('>', at), text.size());
    const std::size_t number = at + begin.size();
    const auto count = dllm_cache::parse_option<dllm_cache::Index>(
        std::string_view(text).substr(number, end - number),
        dllm_cache::OptionRange<dllm_cache::Index>{});
    if (end == text.size() || !count || *count < 1 || *count > longest)
      throw BadRequest("infill: a gap must be written <mask:N> with N in [1, " +
                       std::to_string(longest) + "], got " + text.substr(at, end + 1 - at));
    tokens.insert(tokens.end(), static_cast<std::size_t>(*count), mask);
    at = end;
  }
  end_piece();
  return tokens;
}

std::string Vocabulary::decode(std::span<const std::int32_t> tokens,
                               const dllm_cache::EndTokens& ends) const {
  std::string text;
  for (const std::int32_t token : tokens) {
    if (ends.contains(token)) break;
    text += symbol(token);
  }
  return text;
}

const std::string& Vocabulary::symbol(std::int32_t token) const {
  static const std::string unknown = "?";
  const auto place = static_cast<std::size_t>(token);
  return token >= 0 && place < m_symbols.size() ? m_symbols[place] : unknown;
}

}  // namespace programs
