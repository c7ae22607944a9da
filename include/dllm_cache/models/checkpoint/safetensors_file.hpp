// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "dllm_cache/models/checkpoint/file_error.hpp"
#include "dllm_cache/models/checkpoint/json_file.hpp"
#include "dllm_cache/models/checkpoint/mapped_file.hpp"
#include "dllm_cache/models/checkpoint/tensor.hpp"
#include "dllm_cache/models/checkpoint/tensor_entry.hpp"
#include "dllm_cache/models/checkpoint/wrong_file.hpp"

namespace dllm_cache::inline v0_1::models {

/// A safetensors file, mapped read-only and checked whole before the first tensor is handed out.
///
/// Follows the format of Hugging Face (https://github.com/huggingface/safetensors): 8 bytes of
/// little-endian header length, a JSON header, then the tensors without holes or overlaps.
/// Movable, not copyable; a move keeps tensors and their bytes where they are. Const methods may be
/// called from any number of threads. See MappedFile for what must not happen to the file
/// meanwhile.
class SafetensorsFile {
 public:
  /// Opens and checks `path`; reads the header only, so the size of the weights does not matter.
  ///
  /// Throws std::runtime_error naming the file, the tensor (if one is to blame), and what was
  /// expected and found: a file that is missing, cut short or not in the format; a tensor of
  /// unknown type, of a shape that is negative or does not match its bytes, or placed outside the
  /// file; two tensors that share bytes, and bytes that no tensor covers. Keys that the format does
  /// not know are ignored, as in the reference reader.
  explicit SafetensorsFile(std::filesystem::path path) : m_path(std::move(path)), m_file(m_path) {
    const std::string_view header = find_header();
    const std::span<const std::byte> data = m_file.bytes().subspan(length_bytes + header.size());
    const nlohmann::json entries = parse_json(header, detail::path_text(m_path));
    check_length(entries, data.size());
    m_tensors.reserve(entries.size());
    for (const auto& [name, entry] : entries.items()) {  // in ascending order of the names
      if (name == "__metadata__")
        read_metadata(entry);
      else
        m_tensors.push_back(detail::TensorEntry(m_path, name, entry).read(data));
    }
    check_layout(data);
  }

  SafetensorsFile(SafetensorsFile&&) noexcept = default;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept = default;
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;
  ~SafetensorsFile() = default;

  /// The path as it was given.
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return m_path; }

  /// All tensors, by ascending name; they live as long as this object.
  [[nodiscard]] std::span<const Tensor> tensors() const noexcept { return m_tensors; }

  /// The free text of the header's `__metadata__`, for example "format": "pt"; may be empty.
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const noexcept {
    return m_metadata;
  }

  /// The tensor of that name, or nullptr.
  [[nodiscard]] const Tensor* find(std::string_view name) const noexcept {
    const auto found = std::lower_bound(
        m_tensors.begin(), m_tensors.end(), name,
        [](const Tensor& tensor, std::string_view wanted) { return tensor.name < wanted; });
    return found != m_tensors.end() && found->name == name ? &*found : nullptr;
  }

  /// The tensor of that name; throws std::runtime_error naming file and tensor if there is none.
  [[nodiscard]] const Tensor& at(std::string_view name) const {
    const Tensor* const found = find(name);
    if (found == nullptr)
      detail::refuse_tensor(m_path, name, "not in this file, which has ", m_tensors.size());
    return *found;
  }

 private:
  static constexpr std::size_t length_bytes = 8;  // the little-endian length in front of the header

  // The JSON text, padding included.
  [[nodiscard]] std::string_view find_header() const {
    const std::span<const std::byte> bytes = m_file.bytes();
    if (const std::string_view kind = detail::wrong_kind(m_file.text()); !kind.empty())
      detail::refuse_file(m_path, "expected tensors, got ", kind);
    if (bytes.size() < length_bytes)
      detail::refuse_file(m_path, bytes.empty() ? "empty" : "cut short", ": expected at least ",
                          length_bytes, " bytes, got ", bytes.size());
    std::uint64_t length = 0;
    for (std::size_t i = 0; i < length_bytes; ++i)
      length |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
    if (length > max_json_bytes)
      detail::refuse_file(m_path, "not a safetensors file: header length: expected at most ",
                          max_json_bytes, " bytes, got ", length);
    if (length > bytes.size() - length_bytes)
      detail::refuse_file(m_path, "cut short in its header: expected at least ",
                          length_bytes + length, " bytes, got ", bytes.size());
    const auto header = m_file.text().substr(length_bytes, static_cast<std::size_t>(length));
    if (!header.starts_with('{'))
      detail::refuse_file(m_path, "header: expected a JSON object that begins with '{', got ",
                          detail::in_quotes(header.substr(0, 16)));
    return header;
  }

  // A download that broke off is the most frequent damage, and its header is whole: what it says
  // about the length is told before any tensor is blamed.
  void check_length(const nlohmann::json& entries, std::size_t held) const {
    std::uint64_t needed = 0, listed = 0;
    for (const auto& [name, entry] : entries.items()) {
      if (name == "__metadata__" || !entry.is_object()) continue;
      const auto place = detail::TensorEntry(m_path, name, entry).place();
      if (!place) return;
      needed = std::max(needed, place->end);
      if (listed + (place->end - place->begin) < listed) return;
      listed += place->end - place->begin;
    }
    if (listed != needed) return;  // not a cut but a wrong header
    const std::uint64_t header = m_file.bytes().size() - held;
    if (needed > held)
      detail::refuse_file(m_path, "cut short: expected ", header + needed, " bytes, got ",
                          m_file.bytes().size(), ": download or copy it again");
  }

  void read_metadata(const nlohmann::json& entry) {
    if (!entry.is_object())
      detail::refuse_file(m_path, "__metadata__: expected an object, got ",
                          detail::json_text(entry));
    for (const auto& [key, value] : entry.items()) {
      if (!value.is_string())
        detail::refuse_file(m_path, "__metadata__: key ", detail::in_quotes(key),
                            ": expected a string, got ", detail::json_text(value));
      m_metadata.emplace(key, value.get<std::string>());
    }
  }

  // The format allows neither holes nor overlaps: bytes that no tensor names could hide anything,
  // and shared ones mean that one of the two tensors is wrong.
  void check_layout(std::span<const std::byte> data) const {
    struct Place {
      std::size_t begin, end;
      const Tensor* tensor;
    };
    std::vector<Place> places;
    places.reserve(m_tensors.size());
    for (const Tensor& tensor : m_tensors) {
      const auto begin = static_cast<std::size_t>(tensor.bytes.data() - data.data());
      places.push_back({begin, begin + tensor.bytes.size(), &tensor});
    }
    // An empty tensor comes before the full one that begins at the same byte.
    std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) {
      return std::tie(a.begin, a.end, a.tensor->name) < std::tie(b.begin, b.end, b.tensor->name);
    });
    std::size_t covered = 0;
    const Tensor* before = nullptr;
    for (const Place& place : places) {
      if (place.begin != covered) {
        const std::string reason = place.begin < covered
                                       ? "overlaps tensor " + detail::in_quotes(before->name)
                                       : "leaves a hole before it";
        detail::refuse_tensor(m_path, place.tensor->name, "data_offsets: ", reason,
                              ", expected begin ", covered, ", got ", place.begin);
      }
      covered = place.end;
      before = place.tensor;
    }
    if (covered != data.size())
      detail::refuse_file(m_path, "trailing bytes: expected ", covered, " bytes of tensors, got ",
                          data.size());
  }

  std::filesystem::path m_path;
  MappedFile m_file;
  std::vector<Tensor> m_tensors;  // by ascending name
  std::map<std::string, std::string> m_metadata;
};

}  // namespace dllm_cache::inline v0_1::models
