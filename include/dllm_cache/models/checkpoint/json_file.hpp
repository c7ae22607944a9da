// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

#include "dllm_cache/models/checkpoint/file_error.hpp"
#include "dllm_cache/models/checkpoint/mapped_file.hpp"
#include "dllm_cache/models/checkpoint/parse_json.hpp"
#include "dllm_cache/models/checkpoint/wrong_file.hpp"

namespace dllm_cache::inline v0_1::models {

/// The longest JSON text that is read, in bytes; the limit of the safetensors format for a header.
inline constexpr std::size_t max_json_bytes = 100'000'000;

/// Reads a JSON file whose outermost value is an object, at most `max_json_bytes` long.
///
/// Throws std::runtime_error naming the file when it is missing, too long, not JSON in the sense of
/// parse_json, or another kind of value.
[[nodiscard]] inline nlohmann::json read_json_object(const std::filesystem::path& path) {
  const MappedFile file(path);
  if (file.bytes().size() > max_json_bytes)
    detail::refuse_file(path, "expected at most ", max_json_bytes, " bytes of JSON, got ",
                        file.bytes().size());
  if (file.bytes().empty()) detail::refuse_file(path, "not JSON: the file is empty");
  if (const std::string_view kind = detail::wrong_kind(file.text()); !kind.empty())
    detail::refuse_file(path, "expected JSON, got ", kind);
  nlohmann::json result = parse_json(file.text(), detail::path_text(path));
  if (!result.is_object())
    detail::refuse_file(path, "expected a JSON object, got ", detail::json_text(result));
  return result;
}

}  // namespace dllm_cache::inline v0_1::models
