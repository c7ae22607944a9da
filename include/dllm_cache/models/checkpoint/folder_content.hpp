// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "dllm_cache/models/checkpoint/file_error.hpp"
#include "dllm_cache/models/checkpoint/json_file.hpp"

namespace dllm_cache::inline v0_1::models {

namespace detail {

/// Whether there is an entry of that name; links count even when they dangle, so that the message
/// is then about the file that was meant.
[[nodiscard]] inline bool has_entry(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::symlink_status(path, error).type() !=
         std::filesystem::file_type::not_found;
}

/// Names in a folder that look like weights or like the rest of a download, in their order.
[[nodiscard]] inline std::vector<std::string> weight_like_names(
    const std::filesystem::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (auto entry = std::filesystem::directory_iterator(folder, error);
       !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    for (const std::string_view ending :
         {".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pth", ".pt",
          ".gguf", ".ckpt", ".h5", ".msgpack", ".npz", ".onnx", ".incomplete", ".part"})
      if (name.size() > ending.size() && name.ends_with(ending)) {
        names.push_back(name);
        break;
      }
  }
  std::sort(names.begin(), names.end());
  return names;
}

/// ", found \"a\", \"b\" and 2 more", or nothing where there are no names.
[[nodiscard]] inline std::string found_text(const std::vector<std::string>& names) {
  constexpr std::size_t shown = 3;
  std::string text;
  for (std::size_t i = 0; i < names.size() && i < shown; ++i)
    text += (i == 0 ? ", found " : ", ") + in_quotes(names[i]);
  if (names.size() > shown) text += " and " + std::to_string(names.size() - shown) + " more";
  return text;
}

/// ": the download is incomplete" and what says so: leftovers of a downloader in the folder or
/// where that of Hugging Face keeps them.
[[nodiscard]] inline std::string download_text(const std::filesystem::path& folder) {
  for (const auto& place : {folder, folder / ".cache" / "huggingface" / "download"})
    for (const std::string& name : weight_like_names(place))
      if (name.ends_with(".incomplete") || name.ends_with(".part"))
        return ": the download is incomplete, found " + in_quotes(name);
  return ": the download is incomplete";
}

}  // namespace detail

/// Reads config.json of a checkpoint folder.
///
/// Throws std::runtime_error naming what was found instead: no folder, a file (GGUF, say), a folder
/// without config.json; and what read_json_object refuses.
[[nodiscard]] inline nlohmann::json read_config(const std::filesystem::path& folder) {
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) {
    const bool exists = std::filesystem::exists(folder, error);
    std::string extension = folder.extension().string();
    detail::refuse_file(folder, "expected a folder, got ", exists ? "a file" : "none",
                        exists ? ": a checkpoint is read from the folder that has config.json and "
                                 "safetensors files"
                               : "",
                        exists && extension == ".gguf" ? ", GGUF files are not read" : "");
  }
  const std::filesystem::path file = folder / "config.json";
  if (!detail::has_entry(file))
    detail::refuse_file(folder, "expected config.json and safetensors files, got no config.json",
                        detail::found_text(detail::weight_like_names(folder)));
  return read_json_object(file);
}

}  // namespace dllm_cache::inline v0_1::models
