// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dllm_cache::inline v0_1::models {

/// Element types of the safetensors format that take whole bytes.
///
/// The packed types F4, F6_E2M3 and F6_E3M2 are left out: a file that has them is refused as
/// quantised.
// NOLINTBEGIN(readability-identifier-naming): the names are those of the format.
enum class TensorType : std::uint8_t {
  F64,
  F32,
  F16,   ///< IEEE 754 binary16.
  BF16,  ///< The upper half of an F32.
  F8_E5M2,
  F8_E4M3,
  F8_E8M0,
  F8_E4M3FNUZ,
  F8_E5M2FNUZ,
  C64,  ///< Complex, two F32.
  I64,
  I32,
  I16,
  I8,
  U64,
  U32,
  U16,
  U8,
  BOOL,
};
// NOLINTEND(readability-identifier-naming)

namespace detail {

/// A row of the table of element types.
struct TensorTypeRow {
  TensorType type;
  std::string_view name;  ///< As in the header of a file.
  std::size_t bytes;
};

inline constexpr std::array<TensorTypeRow, 19> tensor_types = {{
    {TensorType::F64, "F64", 8},
    {TensorType::F32, "F32", 4},
    {TensorType::F16, "F16", 2},
    {TensorType::BF16, "BF16", 2},
    {TensorType::F8_E5M2, "F8_E5M2", 1},
    {TensorType::F8_E4M3, "F8_E4M3", 1},
    {TensorType::F8_E8M0, "F8_E8M0", 1},
    {TensorType::F8_E4M3FNUZ, "F8_E4M3FNUZ", 1},
    {TensorType::F8_E5M2FNUZ, "F8_E5M2FNUZ", 1},
    {TensorType::C64, "C64", 8},
    {TensorType::I64, "I64", 8},
    {TensorType::I32, "I32", 4},
    {TensorType::I16, "I16", 2},
    {TensorType::I8, "I8", 1},
    {TensorType::U64, "U64", 8},
    {TensorType::U32, "U32", 4},
    {TensorType::U16, "U16", 2},
    {TensorType::U8, "U8", 1},
    {TensorType::BOOL, "BOOL", 1},
}};

// The lookups below index the table with the enumerator.
static_assert([] {
  for (std::size_t i = 0; i < tensor_types.size(); ++i)
    if (static_cast<std::size_t>(tensor_types[i].type) != i) return false;
  return static_cast<std::size_t>(TensorType::BOOL) + 1 == tensor_types.size();
}());

}  // namespace detail

/// Bytes of one element, 1 to 8.
[[nodiscard]] constexpr std::size_t bytes_of(TensorType type) {
  return detail::tensor_types[static_cast<std::size_t>(type)].bytes;
}

/// Whether elements are F32, F16 or BF16, which weights may be.
[[nodiscard]] constexpr bool is_float(TensorType type) {
  return type == TensorType::F32 || type == TensorType::F16 || type == TensorType::BF16;
}

/// The name of `type` in a safetensors header, for example "BF16".
[[nodiscard]] constexpr std::string_view name_of(TensorType type) {
  return detail::tensor_types[static_cast<std::size_t>(type)].name;
}

/// The type with that name in a safetensors header (upper case), or none.
[[nodiscard]] constexpr std::optional<TensorType> tensor_type_of(std::string_view name) {
  for (const detail::TensorTypeRow& row : detail::tensor_types)
    if (row.name == name) return row.type;
  return std::nullopt;
}

/// A named tensor of a checkpoint: row-major elements seen in mapped memory, not owned.
///
/// The bytes are little-endian and may be unaligned for the type (a header of any length stands
/// before them): copy them with std::memcpy, never read them through a cast pointer. They stay
/// valid as long as the file object that gave the tensor.
struct Tensor {
  std::string name;
  TensorType type = TensorType::F32;
  std::vector<std::int64_t> shape;   ///< Each >= 0; empty: a scalar, one element.
  std::span<const std::byte> bytes;  ///< Product of shape times bytes_of(type) of them.
};

/// "[2, 3]", for messages.
[[nodiscard]] inline std::string shape_text(std::span<const std::int64_t> shape) {
  constexpr std::size_t shown = 16;
  std::string result = "[";
  for (std::size_t i = 0; i < shape.size() && i < shown; ++i) {
    if (i > 0) result += ", ";
    result += std::to_string(shape[i]);
  }
  return result + (shape.size() > shown ? ", ...]" : "]");
}

namespace detail {

/// Bytes of a tensor, or none for a negative dimension or a size of 2^63 or more. Dimensions of 0
/// are left out of the product that is checked, so that the answer does not depend on their order
/// and strides never overflow.
[[nodiscard]] inline std::optional<std::uint64_t> tensor_bytes(
    TensorType type, std::span<const std::int64_t> shape) {
  constexpr auto limit = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  std::uint64_t product = bytes_of(type);
  bool empty = false;
  for (const std::int64_t dimension : shape) {
    if (dimension < 0) return std::nullopt;
    if (dimension == 0) {
      empty = true;
      continue;
    }
    const auto factor = static_cast<std::uint64_t>(dimension);
    if (product > limit / factor) return std::nullopt;
    product *= factor;
  }
  return empty ? 0 : product;
}

}  // namespace detail

}  // namespace dllm_cache::inline v0_1::models
