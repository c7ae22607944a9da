// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "dllm_cache/models/checkpoint/file_error.hpp"

// What a message about an absent file says of the folder's other files. Nothing here throws for a
// folder that cannot be listed: the message is then shorter.
namespace dllm_cache::inline v0_1::models::detail {

/// Names of files in `folder` that `wanted` takes, sorted.
template <class Wanted>
[[nodiscard]] std::vector<std::string> names_in(const std::filesystem::path& folder,
                                                const Wanted& wanted) {
  std::vector<std::string> result;
  std::error_code error;
  std::filesystem::directory_iterator entry(folder, error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    std::error_code ignored;
    if (wanted(name) && !entry->is_directory(ignored)) result.push_back(name);
  }
  std::sort(result.begin(), result.end());
  return result;
}

/// "\"a\", \"b\" and 7 more"; "" for none.
[[nodiscard]] inline std::string list_text(const std::vector<std::string>& names) {
  constexpr std::size_t shown = 3;
  std::string result;
  for (std::size_t i = 0; i < names.size() && i < shown; ++i)
    result += (i == 0 ? "" : ", ") + in_quotes(names[i]);
  if (names.size() > shown) result += " and " + std::to_string(names.size() - shown) + " more";
  return result;
}

/// Whether a file of that name holds weights in a format that is not read.
[[nodiscard]] inline bool is_other_weights(std::string_view name) {
  for (const std::string_view ending : {".bin", ".pth", ".pt", ".ckpt", ".gguf", ".ggml", ".h5",
                                        ".msgpack", ".onnx", ".npz", ".tflite", ".nemo"})
    if (name.ends_with(ending)) return true;
  return name.starts_with("consolidated");
}

/// What a name of weights that are not read says of their format: "GGUF" or "PyTorch", or "".
[[nodiscard]] inline std::string_view format_of_name(std::string_view name) {
  if (name.ends_with(".gguf") || name.ends_with(".ggml")) return "GGUF";
  for (const std::string_view ending : {".bin", ".pth", ".pt", ".ckpt"})
    if (name.ends_with(ending)) return "PyTorch";
  return "";
}

/// Whether a file of that name is what a program for downloads left unfinished.
[[nodiscard]] inline bool is_leftover(std::string_view name) {
  for (const std::string_view ending :
       {".incomplete", ".part", ".partial", ".aria2", ".crdownload", ".download", ".tmp"})
    if (name.ends_with(ending)) return true;
  return false;
}

/// "; unfinished downloads lie beside it: ...", or "". Hugging Face keeps them in a hidden folder
/// of a local folder, and for a folder of its cache among the blobs.
[[nodiscard]] inline std::string leftovers_text(const std::filesystem::path& folder) {
  std::vector<std::string> names = names_in(folder, is_leftover);
  for (const auto& other :
       {folder / ".cache/huggingface/download", folder / ".." / ".." / "blobs"}) {
    const std::vector<std::string> more = names_in(other, is_leftover);
    names.insert(names.end(), more.begin(), more.end());
  }
  return names.empty() ? "" : "; unfinished downloads: " + list_text(names);
}

/// "; found ..., which is not read", or ""; and the same of safetensors files that no loader looks
/// for, in a folder without an index.
[[nodiscard]] inline std::string other_weights_text(const std::filesystem::path& folder) {
  std::string result;
  const std::vector<std::string> others = names_in(folder, [](std::string_view name) {
    return is_other_weights(name) && !name.ends_with(".safetensors");
  });
  if (!others.empty()) {
    const std::string_view format = format_of_name(others.front());
    result += "; found " + list_text(others) + ", which " + (others.size() == 1 ? "is" : "are") +
              " not read" + (format.empty() ? "" : " (" + std::string(format) + ")");
  }
  std::error_code error;
  if (std::filesystem::exists(folder / "model.safetensors.index.json", error)) return result;
  const std::vector<std::string> unlisted = names_in(folder, [](std::string_view name) {
    return name.ends_with(".safetensors") && name != "model.safetensors";
  });
  if (!unlisted.empty())
    result += "; found " + list_text(unlisted) + ", which no index in this folder names";
  return result;
}

/// Refuses a path that is no folder.
inline void require_folder(const std::filesystem::path& path) {
  std::error_code error;
  const auto type = std::filesystem::status(path, error).type();
  if (type == std::filesystem::file_type::directory) return;
  constexpr std::string_view expected =
      "expected a folder, with config.json and weights in safetensors files, got ";
  if (type == std::filesystem::file_type::none) refuse_file(path, expected, error.message());
  if (type == std::filesystem::file_type::not_found) {
    const bool link = std::filesystem::is_symlink(path, error);
    refuse_file(path, expected, link ? "a link to a place that does not exist" : "none",
                link ? "" : ": there is no such folder here");
  }
  const std::string name = path.filename().string();
  if (name.ends_with(".safetensors"))
    refuse_file(path, expected, "a file: give the folder that it lies in");
  const std::string_view format = format_of_name(name);
  refuse_file(path, expected, "a file", format.empty() ? "" : " of ", format,
              is_other_weights(name) ? ", which is not read" : "");
}

/// Refuses a file that is not there, or is a link to what is not there; `why` says who wants it.
inline void require_file(const std::filesystem::path& path, const std::string& why = "") {
  std::error_code error;
  const auto type = std::filesystem::status(path, error).type();
  if (type != std::filesystem::file_type::not_found) return;
  const bool link = std::filesystem::is_symlink(path, error);
  refuse_file(path, link ? "a link to a file that is missing" : "missing",
              ", the download is incomplete", why, leftovers_text(path.parent_path()));
}

/// Refuses what is no folder, and a folder without config.json.
inline void require_config(const std::filesystem::path& folder) {
  require_folder(folder);
  std::error_code error;
  const std::filesystem::path config = folder / "config.json";
  // A link counts even when it dangles: the message is then about what it was to be.
  if (std::filesystem::symlink_status(config, error).type() !=
      std::filesystem::file_type::not_found)
    return require_file(config);
  if (std::filesystem::is_directory(folder / "snapshots", error))
    refuse_file(config,
                "missing: this is a folder of Hugging Face's cache, whose checkpoints are "
                "the folders in ",
                path_text(folder / "snapshots"));
  refuse_file(config,
              "missing: expected a checkpoint folder, with config.json and weights in "
              "safetensors files",
              other_weights_text(folder), leftovers_text(folder));
}

}  // namespace dllm_cache::inline v0_1::models::detail
