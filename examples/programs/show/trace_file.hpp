// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "dllm_cache/base/matrix_view.hpp"

namespace programs {

using dllm_cache::Index;

/// What a trace says of one sequence; see Trace for the words.
struct TraceSequence {
  Index prompt = 0;
  Index response = 0;
  Index layers = 0;
  Index forwards = 0;
  Index steps = 0;
  std::vector<std::int64_t> prompt_tokens;    ///< [prompt]; empty where the file does not say.
  std::vector<std::int64_t> tokens;           ///< [steps + 1, response]: before each, at the end.
  std::vector<std::int64_t> step_of_forward;  ///< [forwards], ascending.
  std::vector<std::uint8_t> actions;          ///< [forwards, layers, rows], each 0 to 3.
  std::vector<Index> verified_places;  ///< Ascending `forward * layers + layer` that verified.
  std::vector<float> similarities;     ///< [verified_places, response]; NaN: row not verified.

  [[nodiscard]] Index rows() const { return prompt + response; }
  /// RowAction [rows] of one layer in one forward.
  [[nodiscard]] std::span<const std::uint8_t> layer(Index forward, Index number) const {
    return std::span(actions).subspan(
        static_cast<std::size_t>((forward * layers + number) * rows()),
        static_cast<std::size_t>(rows()));
  }
};

/// Reads what Trace writes, one entry a sequence; throws std::runtime_error naming the file, the
/// tensor, and what was expected and found.
[[nodiscard]] std::vector<TraceSequence> read_trace(const std::filesystem::path& path);

}  // namespace programs
