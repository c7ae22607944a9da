// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "dllm_cache/models/checkpoint/broken_file.hpp"
#include "dllm_cache/models/checkpoint/file_error.hpp"
#include "dllm_cache/models/checkpoint/folder_content.hpp"
#include "dllm_cache/models/checkpoint/mapped_file.hpp"
#include "dllm_cache/models/checkpoint/parse_json.hpp"

namespace dllm_cache::inline v0_1::models {

/// The longest JSON text that is read, in bytes; the limit of the safetensors format for a header.
inline constexpr std::size_t max_json_bytes = 100'000'000;

/// Reads a JSON file whose outermost value is an object, at most `max_json_bytes` long.
///
/// Throws std::runtime_error naming the file when it is missing, empty, too long, cut short, a Git
/// LFS pointer or a web page in place of the file, not JSON in the sense of parse_json, or another
/// kind of value. Of a config.json the message says, too, what is wrong with the folder: that it is
/// missing, or a file, or has weights in another format.
[[nodiscard]] inline nlohmann::json read_json_object(const std::filesystem::path& path) {
  if (path.filename() == "config.json" && path.has_parent_path())
    detail::require_config(path.parent_path());
  const MappedFile file(path);
  if (file.bytes().size() > max_json_bytes)
    detail::refuse_file(path, "expected at most ", max_json_bytes, " bytes of JSON, got ",
                        file.bytes().size());
  detail::refuse_broken(path, file.text(), "a JSON object");
  nlohmann::json result = parse_json(file.text(), detail::path_text(path));
  if (!result.is_object())
    detail::refuse_file(path, "expected a JSON object, got ", detail::json_text(result));
  return result;
}

}  // namespace dllm_cache::inline v0_1::models
