// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dllm_cache/models/checkpoint/file_error.hpp"
#include "dllm_cache/models/checkpoint/parse_json.hpp"
#include "dllm_cache/models/checkpoint/quantisation.hpp"
#include "dllm_cache/models/checkpoint/tensor.hpp"

namespace dllm_cache::inline v0_1::models::detail {

/// What an entry of a safetensors header says: a tensor without its bytes, and where these lie in
/// all that follows the header.
struct TensorPlace {
  Tensor tensor;
  std::size_t begin = 0;
  std::size_t end = 0;
};

/// Reads one entry of a safetensors header; every refusal, a std::runtime_error, names the file and
/// the tensor.
class TensorEntry {
 public:
  TensorEntry(const std::filesystem::path& path, const std::string& name,
              const nlohmann::json& entry)
      : m_path(path), m_name(name), m_entry(entry) {
    if (!entry.is_object()) refuse("expected an object, got ", json_text(entry));
  }

  /// The tensor, whose place may still lie outside the `size` bytes that follow the header: whether
  /// the file was cut short is seen when all places are known.
  [[nodiscard]] TensorPlace read(std::size_t size) const {
    TensorPlace place;
    Tensor& tensor = place.tensor;
    tensor.name = m_name;
    tensor.type = type();
    tensor.shape = shape();
    const auto [begin, end] = offsets(size);
    const std::optional<std::uint64_t> expected = tensor_bytes(tensor.type, tensor.shape);
    if (!expected)
      refuse("shape: expected a size below 2^63 bytes, got ", shape_text(tensor.shape));
    if (end - begin != *expected)
      refuse("data_offsets: expected ", *expected, " bytes for ", name_of(tensor.type), " ",
             shape_text(tensor.shape), ", got ", end - begin);
    place.begin = begin;
    place.end = end;
    return place;
  }

 private:
  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    refuse_tensor(m_path, m_name, parts...);
  }

  [[nodiscard]] const nlohmann::json& field(const char* key) const {
    const auto found = m_entry.find(key);
    if (found == m_entry.end()) refuse(key, ": expected a value, got none");
    return *found;
  }

  [[nodiscard]] TensorType type() const {
    const nlohmann::json& value = field("dtype");
    std::optional<TensorType> type;
    if (value.is_string()) type = tensor_type_of(value.get_ref<const std::string&>());
    if (!type && value.is_string() && is_narrow_type(value.get_ref<const std::string&>()))
      refuse_quantised(m_path, base::text("tensor ", in_quotes(m_name), " of type ",
                                          in_quotes(value.get_ref<const std::string&>())));
    if (!type) {
      std::string known;
      for (const TensorTypeRow& row : tensor_types) {
        known += known.empty() ? "" : ", ";
        known += row.name;
      }
      refuse("dtype: expected one of ", known, ", got ", json_text(value));
    }
    return *type;
  }

  [[nodiscard]] std::vector<std::int64_t> shape() const {
    const nlohmann::json& value = field("shape");
    if (!value.is_array()) refuse("shape: expected an array, got ", json_text(value));
    std::vector<std::int64_t> result;
    result.reserve(value.size());
    for (const nlohmann::json& item : value) {
      const std::optional<std::uint64_t> dimension = count_of(item);
      if (!dimension) refuse("shape: expected integers in [0, 2^63 - 1], got ", json_text(item));
      result.push_back(static_cast<std::int64_t>(*dimension));
    }
    return result;
  }

  [[nodiscard]] std::pair<std::size_t, std::size_t> offsets(std::size_t size) const {
    const nlohmann::json& value = field("data_offsets");
    std::optional<std::uint64_t> begin;
    std::optional<std::uint64_t> end;
    if (value.is_array() && value.size() == 2) {
      begin = count_of(value[0]);
      end = count_of(value[1]);
    }
    if (!begin || !end || *begin > *end)
      refuse("data_offsets: expected [begin, end] with 0 <= begin <= end <= ", size, ", got ",
             json_text(value));
    return {static_cast<std::size_t>(*begin), static_cast<std::size_t>(*end)};
  }

  // An integer in [0, 2^63 - 1], or none; 2.0 is not an integer, nor is what JSON reads as a double
  // because it does not fit in 64 bits.
  static std::optional<std::uint64_t> count_of(const nlohmann::json& value) {
    if (!value.is_number_integer()) return std::nullopt;
    if (!value.is_number_unsigned() && value.get<std::int64_t>() < 0) return std::nullopt;
    const auto count = value.get<std::uint64_t>();
    constexpr auto limit = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    return count <= limit ? std::optional(count) : std::nullopt;
  }

  const std::filesystem::path& m_path;
  const std::string& m_name;
  const nlohmann::json& m_entry;
};

}  // namespace dllm_cache::inline v0_1::models::detail
