// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "dllm_cache/models/checkpoint/file_descriptor.hpp"
#include "dllm_cache/models/checkpoint/file_error.hpp"
#include "dllm_cache/models/checkpoint/json_file.hpp"
#include "dllm_cache/models/checkpoint/tensor.hpp"

namespace programs {

namespace models = dllm_cache::models;

/// A new file beside the wanted one; renamed onto it by commit(), removed by the destructor if not.
class ReplacingFile {
 public:
  explicit ReplacingFile(const std::filesystem::path& path)
      : m_path(path), m_temporary(path), m_file(create(path, m_temporary)) {}
  ReplacingFile(const ReplacingFile&) = delete;
  ReplacingFile& operator=(const ReplacingFile&) = delete;
  ~ReplacingFile() {
    if (!m_committed) ::unlink(m_temporary.c_str());
  }

  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ::ssize_t written = ::write(m_file.get(), bytes.data(), bytes.size());
      if (written < 0) {
        if (errno == EINTR) continue;
        models::detail::refuse_system(m_path, "writing", errno);
      }
      bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
  }

  void commit() {
    // Without fsync a crash soon after the rename can leave an empty file under the final name.
    if (::fsync(m_file.get()) != 0 || !m_file.close())
      models::detail::refuse_system(m_path, "writing", errno);
    std::error_code error;
    std::filesystem::rename(m_temporary, m_path, error);
    if (error) models::detail::refuse_file(m_path, "renaming onto it failed: " + error.message());
    m_committed = true;
  }

 private:
  static models::detail::FileDescriptor create(const std::filesystem::path& path,
                                               std::filesystem::path& temporary) {
    // O_EXCL makes the name ours; another writer of the same path takes the next number.
    for (int number = 0;; ++number) {
      temporary = path;
      temporary += ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(number);
      models::detail::FileDescriptor file(
          ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
      if (file.valid()) return file;
      if (errno != EEXIST)
        models::detail::refuse_system(path, "creating a temporary file beside it", errno);
    }
  }

  std::filesystem::path m_path;
  std::filesystem::path m_temporary;
  models::detail::FileDescriptor m_file;
  bool m_committed = false;
};

/// Collects tensors and writes them as one safetensors file.
///
/// For test fixtures and conversions that fit in memory. Not safe to share between threads while
/// one of them adds; `write` is const. Format: Hugging Face safetensors, see SafetensorsFile.
class SafetensorsWriter {
 public:
  /// Adds a tensor and copies its bytes, so that the caller's memory may go away.
  ///
  /// `bytes` are row-major and little-endian, product of `shape` times bytes_of(type) of them.
  /// Throws std::invalid_argument for a name that is taken, reserved ("__metadata__") or not UTF-8,
  /// a negative dimension, a size of 2^63 bytes or more, and a wrong number of bytes.
  void add(std::string name, models::TensorType type, std::vector<std::int64_t> shape,
           std::span<const std::byte> bytes) {
    const std::string tensor =
        "SafetensorsWriter: tensor " + models::detail::in_quotes(name) + ": ";
    if (name == "__metadata__") throw std::invalid_argument(tensor + "this name is reserved");
    check_text(name, tensor);
    const std::optional<std::uint64_t> expected = models::detail::tensor_bytes(type, shape);
    if (!expected) {
      throw std::invalid_argument(tensor +
                                  "shape: expected dimensions >= 0 and a size below 2^63 bytes, "
                                  "got " +
                                  models::shape_text(shape));
    }
    if (*expected != bytes.size()) {
      throw std::invalid_argument(tensor + "bytes: expected " + std::to_string(*expected) +
                                  " for " + std::string(models::name_of(type)) + " " +
                                  models::shape_text(shape) + ", got " +
                                  std::to_string(bytes.size()));
    }
    Entry entry{type, std::move(shape), {bytes.begin(), bytes.end()}};
    if (!m_entries.try_emplace(std::move(name), std::move(entry)).second) {
      throw std::invalid_argument(tensor + "added twice, expected once");
    }
  }

  /// Sets an entry of the header's `__metadata__`; Python's transformers wants "format": "pt".
  ///
  /// Throws std::invalid_argument for text that is not UTF-8.
  void set_metadata(std::string key, std::string value) {
    const std::string place =
        "SafetensorsWriter: metadata " + models::detail::in_quotes(key) + ": ";
    check_text(key, place);
    check_text(value, place);
    m_metadata.insert_or_assign(std::move(key), std::move(value));
  }

  /// Writes everything added so far, tensors by ascending name, header padded to 8 bytes.
  ///
  /// The file appears under its name only when it is complete: it is written beside it and renamed,
  /// so that readers of a file that was there before keep the old content. Throws
  /// std::runtime_error naming the file when the system refuses or the header passes the 100 MB of
  /// the format; nothing is left behind then.
  void write(const std::filesystem::path& path) const {
    const std::string header = make_header();
    if (header.size() > models::max_json_bytes) {
      models::detail::refuse_file(path, "header: expected at most " +
                                            std::to_string(models::max_json_bytes) +
                                            " bytes, got " + std::to_string(header.size()));
    }
    std::string length;
    for (std::size_t i = 0; i < 8; ++i) {
      length += static_cast<char>((header.size() >> (8 * i)) & 0xFFU);
    }
    ReplacingFile file(path);
    file.write(std::as_bytes(std::span(length)));
    file.write(std::as_bytes(std::span(header)));
    for (const auto& [name, entry] : m_entries) file.write(entry.bytes);
    file.commit();
  }

 private:
  struct Entry {
    models::TensorType type;
    std::vector<std::int64_t> shape;
    std::vector<std::byte> bytes;
  };

  static void check_text(const std::string& text, const std::string& place) {
    try {
      static_cast<void>(nlohmann::json(text).dump());
    } catch (const nlohmann::json::type_error&) {
      throw std::invalid_argument(place + "expected UTF-8 text");
    }
  }

  std::string make_header() const {
    nlohmann::json header = nlohmann::json::object();
    if (!m_metadata.empty()) header["__metadata__"] = m_metadata;
    std::size_t begin = 0;
    for (const auto& [name, entry] : m_entries) {
      const std::size_t end = begin + entry.bytes.size();
      header[name] = {{"dtype", models::name_of(entry.type)},
                      {"shape", entry.shape},
                      {"data_offsets", {begin, end}}};
      begin = end;
    }
    std::string text = header.dump();
    text.append((8 - text.size() % 8) % 8, ' ');
    return text;
  }

  std::map<std::string, Entry> m_entries;
  std::map<std::string, std::string> m_metadata;
};

}  // namespace programs
