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

#include "dllm_cache/models/checkpoint/broken_file.hpp"
#include "dllm_cache/models/checkpoint/file_error.hpp"
#include "dllm_cache/models/checkpoint/json_file.hpp"
#include "dllm_cache/models/checkpoint/mapped_file.hpp"
#include "dllm_cache/models/checkpoint/tensor.hpp"
#include "dllm_cache/models/checkpoint/tensor_entry.hpp"

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
  /// expected and found: a file that is missing, cut short (with the size that it should have), a
  /// Git LFS pointer or a web page in place of the file, or otherwise not in the format; a tensor
  /// of unknown type, or of a shape that is negative or does not match its bytes; two tensors that
  /// share bytes, and bytes that no tensor covers. A tensor of one of the packed types that
  /// TensorType leaves out is refused as quantised. Keys that the format does not know are ignored,
  /// as in the reference reader.
  explicit SafetensorsFile(std::filesystem::path path) : m_path(std::move(path)), m_file(m_path) {
    const std::string_view header = find_header();
    const std::span<const std::byte> data = m_file.bytes().subspan(length_bytes + header.size());
    const nlohmann::json entries = parse_json(header, detail::path_text(m_path));
    std::vector<detail::TensorPlace> places;
    places.reserve(entries.size());
    for (const auto& [name, entry] : entries.items()) {
      if (name == "__metadata__")
        read_metadata(entry);
      else
        places.push_back(detail::TensorEntry(m_path, name, entry).read(data.size()));
    }
    check_end(check_layout(places), data.size());
    m_tensors.reserve(places.size());
    for (detail::TensorPlace& place : places) {
      place.tensor.bytes = data.subspan(place.begin, place.end - place.begin);
      m_tensors.push_back(std::move(place.tensor));
    }
    std::sort(m_tensors.begin(), m_tensors.end(),
              [](const Tensor& a, const Tensor& b) { return a.name < b.name; });
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
    detail::refuse_broken(m_path, m_file.text(), "a safetensors file");
    if (bytes.size() < length_bytes)
      detail::refuse_file(m_path, "the file is cut short: expected at least ", length_bytes,
                          " bytes, got ", bytes.size(), "; the download is incomplete");
    std::uint64_t length = 0;
    for (std::size_t i = 0; i < length_bytes; ++i)
      length |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
    // Some programs for downloads give the file its size before its bytes.
    if (length == 0 && bytes.size() > 2 * length_bytes &&
        std::all_of(bytes.begin(), bytes.begin() + 2 * length_bytes,
                    [](std::byte byte) { return byte == std::byte{0}; }))
      detail::refuse_file(m_path,
                          "header: expected a length and a JSON object, got zero bytes; the ",
                          "download is incomplete");
    const auto most = static_cast<std::size_t>(std::min<std::uint64_t>(length, max_json_bytes));
    const auto header = m_file.text().substr(length_bytes, most);
    // Before the length is called wrong: another kind of file has any length there.
    if (!header.starts_with('{') && (length == 0 || bytes.size() > length_bytes))
      detail::refuse_file(m_path, "header: expected a JSON object that begins with '{', got ",
                          detail::in_quotes(header.substr(0, 16)), ": no safetensors file");
    if (length > max_json_bytes)
      detail::refuse_file(m_path, "header length: expected at most ", max_json_bytes,
                          " bytes, got ", length);
    if (header.size() < length) refuse_cut(length_bytes + length, " in its header");
    return header;
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

  // Checks that the tensors lie without holes or overlaps; gives the bytes that they take. The
  // format allows neither: bytes that no tensor names could hide anything, and shared ones mean
  // that one of the two tensors is wrong.
  [[nodiscard]] std::size_t check_layout(std::vector<detail::TensorPlace>& places) const {
    using detail::TensorPlace;
    // An empty tensor comes before the full one that begins at the same byte.
    std::sort(places.begin(), places.end(), [](const TensorPlace& a, const TensorPlace& b) {
      return std::tie(a.begin, a.end, a.tensor.name) < std::tie(b.begin, b.end, b.tensor.name);
    });
    std::size_t covered = 0;
    const Tensor* before = nullptr;
    for (const TensorPlace& place : places) {
      if (place.begin != covered) {
        const std::string reason = place.begin < covered
                                       ? "overlaps tensor " + detail::in_quotes(before->name)
                                       : "leaves a hole before it";
        detail::refuse_tensor(m_path, place.tensor.name, "data_offsets: ", reason,
                              ", expected begin ", covered, ", got ", place.begin);
      }
      covered = place.end;
      before = &place.tensor;
    }
    return covered;
  }

  // The tensors must end where the file ends. Its header stands at the front: a download that broke
  // off lacks the end.
  void check_end(std::size_t covered, std::size_t data_bytes) const {
    const std::size_t size = m_file.bytes().size();
    const std::size_t expected = size - data_bytes + covered;
    if (covered > data_bytes) refuse_cut(expected);
    if (covered < data_bytes)
      detail::refuse_file(m_path, "trailing bytes behind the last tensor, ", data_bytes - covered,
                          " of them: expected a file of ", expected, " bytes, got ", size);
  }

  // Refuses a file that should have `expected` bytes.
  [[noreturn]] void refuse_cut(std::uint64_t expected, const char* where = "") const {
    detail::refuse_file(m_path, "the file is cut short", where, ": expected ", expected,
                        " bytes, got ", m_file.bytes().size(), "; the download is incomplete");
  }

  std::filesystem::path m_path;
  MappedFile m_file;
  std::vector<Tensor> m_tensors;  // by ascending name
  std::map<std::string, std::string> m_metadata;
};

}  // namespace dllm_cache::inline v0_1::models
