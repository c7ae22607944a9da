// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ggml.h>
#include <gguf.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "dllm_cache/base/matrix_view.hpp"
#include "dllm_cache/models/checkpoint/mapped_file.hpp"
#include "dllm_cache/models/checkpoint/tensor.hpp"

// A GGUF file, checked whole before ggml sees any of it: ggml ends the program where an assertion
// of its own fails, and says little about a file that it does not read.
namespace ggml_runtime {

using dllm_cache::Index;

/// Types of weights that are computed with.
inline constexpr std::array<ggml_type, 15> weight_types = {
    GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16, GGML_TYPE_Q4_0,   GGML_TYPE_Q4_1,
    GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q8_0, GGML_TYPE_Q2_K,   GGML_TYPE_Q3_K,
    GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS};

/// A tensor of a file: its bytes are in mapped memory.
struct GgufTensor {
  std::string name;
  ggml_type type = GGML_TYPE_F32;
  std::vector<std::int64_t> shape;  ///< ggml's order: the length of a row first.
  std::span<const std::byte> bytes;
};

/// A GGUF file of version 2 or 3, mapped: keys, and tensors where they lie.
///
/// Const methods may be called from any number of threads, tensor() from one.
class GgufFile {
 public:
  /// Maps and checks `path`: header, keys, and that every tensor is of one of weight_types and
  /// lies inside the file. Throws std::runtime_error naming the file, the key or tensor, what was
  /// expected and what was found.
  explicit GgufFile(std::filesystem::path path) : m_path(std::move(path)), m_file(m_path) {
    const std::string_view magic = m_file.text().substr(0, 4);
    if (magic != GGUF_MAGIC)
      refuse("expected a GGUF file, which begins with \"GGUF\", got ",
             dllm_cache::models::detail::in_quotes(magic));
    m_at = magic.size();
    const auto version = take<std::uint32_t>("the version");
    if (version != 2 && version != GGUF_VERSION)
      refuse("expected GGUF version 2 or 3, little-endian, got ", version);
    const auto tensors = take<std::uint64_t>("the number of tensors");
    const auto keys = take<std::uint64_t>("the number of keys");
    for (std::uint64_t i = 0; i < keys; ++i) take_key();
    std::vector<std::uint64_t> offsets;
    for (std::uint64_t i = 0; i < tensors; ++i) offsets.push_back(take_tensor());
    place_tensors(offsets);
  }

  [[nodiscard]] const std::filesystem::path& path() const { return m_path; }

  /// Throws std::runtime_error naming the file, with the joined parts.
  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    dllm_cache::models::detail::refuse_file(m_path, parts...);
  }
  /// The same naming a key, with what it has.
  template <class... Parts>
  [[noreturn]] void refuse_key(std::string_view key, const Parts&... expected) const {
    refuse("key \"", key, "\": expected ", expected..., ", got ", value_text(key));
  }

  [[nodiscard]] bool has(std::string_view key) const { return m_keys.contains(key); }
  /// Names of the keys, sorted.
  [[nodiscard]] std::vector<std::string> keys() const {
    std::vector<std::string> names;
    for (const auto& [name, value] : m_keys) names.push_back(name);
    return names;
  }
  /// A string; throws std::runtime_error where it is missing or something else.
  [[nodiscard]] const std::string& text(std::string_view key) const {
    const std::string* const value = get<std::string>(key);
    if (value == nullptr) refuse_key(key, "a string");
    return *value;
  }
  /// An integer in [least, most] of any width; throws std::runtime_error otherwise.
  [[nodiscard]] Index integer(std::string_view key, Index least, Index most) const {
    const std::int64_t* const value = get<std::int64_t>(key);
    if (value == nullptr || *value < least || *value > most)
      refuse_key(key, "an integer in [", least, ", ", most, "]");
    return *value;
  }
  /// A number in [least, most]; throws std::runtime_error otherwise.
  [[nodiscard]] float number(std::string_view key, double least, double most) const {
    const double* const value = get<double>(key);
    if (value == nullptr || !(*value >= least && *value <= most))
      refuse_key(key, "a number in [", least, ", ", most, "]");
    return static_cast<float>(*value);
  }
  /// True or false, `absent` where there is no such key; throws std::runtime_error for others.
  [[nodiscard]] bool flag(std::string_view key, bool absent) const {
    if (!has(key)) return absent;
    const bool* const value = get<bool>(key);
    if (value == nullptr) refuse_key(key, "true or false");
    return *value;
  }

  /// The tensor of that name, or nullptr; does not count as reading it.
  [[nodiscard]] const GgufTensor* find(std::string_view name) const {
    const auto found = m_tensors.find(name);
    return found == m_tensors.end() ? nullptr : &found->second;
  }
  /// The tensor of that name, whose shape in ggml's order must be exactly that one; throws
  /// std::runtime_error otherwise.
  [[nodiscard]] const GgufTensor& tensor(const std::string& name,
                                         std::initializer_list<std::int64_t> shape) const {
    using dllm_cache::models::shape_text;
    const std::span<const std::int64_t> wanted(shape.begin(), shape.size());
    const GgufTensor* const found = find(name);
    if (found == nullptr)
      refuse("tensor \"", name, "\": expected shape ", shape_text(wanted), ", got no such tensor");
    if (!std::equal(wanted.begin(), wanted.end(), found->shape.begin(), found->shape.end()))
      refuse("tensor \"", name, "\": expected shape ", shape_text(wanted), ", got ",
             shape_text(found->shape));
    m_read.insert(found->name);
    return *found;
  }
  /// Names of the tensors that tensor() has not given yet, sorted.
  [[nodiscard]] std::vector<std::string> unread() const {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : m_tensors)
      if (!m_read.contains(name)) names.push_back(name);
    return names;
  }

 private:
  struct List {
    std::uint64_t size = 0;  // the elements are passed over: no key that is read has a list
  };
  using Value = std::variant<std::int64_t, double, bool, std::string, List>;

  template <class T>
  [[nodiscard]] const T* get(std::string_view key) const {
    const auto found = m_keys.find(key);
    return found == m_keys.end() ? nullptr : std::get_if<T>(&found->second);
  }
  [[nodiscard]] std::string value_text(std::string_view key) const {
    using dllm_cache::base::text;
    const auto found = m_keys.find(key);
    if (found == m_keys.end()) return "no such key";
    if (const auto* const list = std::get_if<List>(&found->second))
      return text("a list of ", list->size);
    if (const auto* const flag = std::get_if<bool>(&found->second)) return *flag ? "true" : "false";
    if (const auto* const name = std::get_if<std::string>(&found->second))
      return dllm_cache::models::detail::in_quotes(*name);
    if (const auto* const number = std::get_if<double>(&found->second)) return text(*number);
    return text(std::get<std::int64_t>(found->second));
  }

  // Moves on by so many bytes, which must be there; `what` they are is for messages.
  const std::byte* skip(std::uint64_t bytes, const std::string& what) {
    const std::span<const std::byte> all = m_file.bytes();
    if (bytes > all.size() - m_at)
      refuse("the file is cut short or broken: expected ", bytes, " bytes for ", what, " at byte ",
             m_at, ", got ", all.size() - m_at);
    const std::byte* const here = all.data() + m_at;
    m_at += static_cast<std::size_t>(bytes);
    return here;
  }
  template <class T>
  T take(const std::string& what) {
    static_assert(std::endian::native == std::endian::little);
    T value;
    std::memcpy(&value, skip(sizeof(T), what), sizeof(T));
    return value;
  }
  std::string take_text(const std::string& what) {
    const auto length = take<std::uint64_t>("the length of " + what);
    return {reinterpret_cast<const char*>(skip(length, what)), static_cast<std::size_t>(length)};
  }

  // Calls `work` with a number of the type that the file means by `type`; false for strings, lists
  // and types that there are none.
  template <class Work>
  static bool with_number(std::uint32_t type, const Work& work) {
    const auto is = [&](gguf_type number_type, auto number) {
      if (type != static_cast<std::uint32_t>(number_type)) return false;
      work(number);
      return true;
    };
    return is(GGUF_TYPE_UINT8, std::uint8_t{}) || is(GGUF_TYPE_INT8, std::int8_t{}) ||
           is(GGUF_TYPE_UINT16, std::uint16_t{}) || is(GGUF_TYPE_INT16, std::int16_t{}) ||
           is(GGUF_TYPE_UINT32, std::uint32_t{}) || is(GGUF_TYPE_INT32, std::int32_t{}) ||
           is(GGUF_TYPE_UINT64, std::uint64_t{}) || is(GGUF_TYPE_INT64, std::int64_t{}) ||
           is(GGUF_TYPE_FLOAT32, float{}) || is(GGUF_TYPE_FLOAT64, double{}) ||
           is(GGUF_TYPE_BOOL, bool{});
  }

  void take_key() {
    const std::string key = take_text("a key");
    const std::string what = "key " + dllm_cache::models::detail::in_quotes(key);
    const auto type = take<std::uint32_t>(what);
    Value value;
    const bool number = with_number(type, [&]<class T>(T) {
      if constexpr (std::is_same_v<T, bool>)
        value = take<std::uint8_t>(what) != 0;
      else if constexpr (std::is_floating_point_v<T>)
        value = static_cast<double>(take<T>(what));
      else
        value = static_cast<std::int64_t>(take<T>(what));
    });
    if (!number && type == GGUF_TYPE_STRING)
      value = take_text(what);
    else if (!number && type == GGUF_TYPE_ARRAY)
      value = take_list(what);
    else if (!number)
      refuse(what, ": expected a type below ", static_cast<int>(GGUF_TYPE_COUNT), ", got ", type);
    if (!m_keys.emplace(key, std::move(value)).second) refuse(what, " is there twice");
  }

  List take_list(const std::string& what) {
    const auto type = take<std::uint32_t>(what);
    const List list{take<std::uint64_t>(what)};
    const bool numbers = with_number(type, [&]<class T>(T) {
      // Written so that no product can overflow.
      if (list.size > m_file.bytes().size() / sizeof(T))
        refuse(what, ": the file is cut short or broken: expected a list of at most ",
               m_file.bytes().size() / sizeof(T), ", got ", list.size);
      skip(list.size * sizeof(T), what);
    });
    if (!numbers && type != GGUF_TYPE_STRING)
      refuse(what, ": expected a list of numbers or strings, got type ", type);
    for (std::uint64_t i = 0; !numbers && i < list.size; ++i) skip(take<std::uint64_t>(what), what);
    return list;
  }

  // Takes what is said about a tensor; gives the place of its bytes behind the header.
  std::uint64_t take_tensor() {
    GgufTensor tensor{.name = take_text("the name of a tensor"), .shape = {}, .bytes = {}};
    const std::string what = "tensor " + dllm_cache::models::detail::in_quotes(tensor.name);
    if (tensor.name.size() >= GGML_MAX_NAME)
      refuse(what, ": expected a name of fewer than ", GGML_MAX_NAME, " bytes, got ",
             tensor.name.size());
    const auto dimensions = take<std::uint32_t>(what);
    if (dimensions < 1 || dimensions > GGML_MAX_DIMS)
      refuse(what, ": expected 1 to ", GGML_MAX_DIMS, " dimensions, got ", dimensions);
    for (std::uint32_t i = 0; i < dimensions; ++i) tensor.shape.push_back(take<std::int64_t>(what));
    const auto type = take<std::uint32_t>(what);
    const auto known = std::find(weight_types.begin(), weight_types.end(), type);
    if (known == weight_types.end()) refuse(what, ": ", type_text(type));
    tensor.type = *known;
    const auto offset = take<std::uint64_t>(what);
    const std::string name = tensor.name;
    if (!m_tensors.emplace(name, std::move(tensor)).second) refuse(what, " is there twice");
    m_order.push_back(name);
    return offset;
  }
  static std::string type_text(std::uint32_t type) {
    std::string list = "expected one of the types";
    for (const ggml_type one : weight_types) list += std::string(" ") + ggml_type_name(one);
    const bool named = type < GGML_TYPE_COUNT && ggml_type_name(static_cast<ggml_type>(type));
    return list + ", got " +
           (named ? ggml_type_name(static_cast<ggml_type>(type)) : std::to_string(type));
  }

  void place_tensors(const std::vector<std::uint64_t>& offsets) {
    constexpr const char* key = GGUF_KEY_GENERAL_ALIGNMENT;
    const auto alignment = static_cast<std::uint64_t>(has(key) ? integer(key, 8, 1 << 20)
                                                               : Index{GGUF_DEFAULT_ALIGNMENT});
    if (!std::has_single_bit(alignment)) refuse_key(key, "a power of two");
    const std::uint64_t begin = (m_at + alignment - 1) / alignment * alignment;
    const std::span<const std::byte> all = m_file.bytes();
    for (std::size_t i = 0; i < offsets.size(); ++i) {
      GgufTensor& tensor = m_tensors.find(m_order[i])->second;
      const std::string what = "tensor " + dllm_cache::models::detail::in_quotes(tensor.name);
      const std::uint64_t bytes = bytes_of(tensor, what);
      if (offsets[i] % alignment != 0)
        refuse(what, ": expected a multiple of ", alignment, " as its place, got ", offsets[i]);
      const std::uint64_t there = all.size() > begin ? all.size() - begin : 0;
      if (offsets[i] > there || bytes > there - offsets[i])
        refuse(what, ": the file is cut short or broken: expected ", bytes, " bytes at byte ",
               offsets[i], " of the ", there, " bytes of tensors");
      tensor.bytes = all.subspan(static_cast<std::size_t>(begin + offsets[i]),
                                 static_cast<std::size_t>(bytes));
    }
  }
  // Bytes of a tensor whose shape has been checked.
  [[nodiscard]] std::uint64_t bytes_of(const GgufTensor& tensor, const std::string& what) const {
    const std::int64_t block = ggml_blck_size(tensor.type);
    constexpr std::int64_t most = std::int64_t{1} << 56;
    std::int64_t elements = 1;
    for (const std::int64_t size : tensor.shape) {
      if (size < 1 || size > most / elements)
        refuse(what, ": expected dimensions of at least 1 and at most 2^56 elements, got ",
               dllm_cache::models::shape_text(tensor.shape));
      elements *= size;
    }
    if (tensor.shape.front() % block != 0)
      refuse(what, ": expected rows of a multiple of ", block, " for ", ggml_type_name(tensor.type),
             ", got ", tensor.shape.front());
    return static_cast<std::uint64_t>(elements / block) * ggml_type_size(tensor.type);
  }

  std::filesystem::path m_path;
  dllm_cache::models::MappedFile m_file;
  std::size_t m_at = 0;  // bytes of the header that have been taken
  std::map<std::string, Value, std::less<>> m_keys;
  std::map<std::string, GgufTensor, std::less<>> m_tensors;
  std::vector<std::string> m_order;  // names of the tensors as the header has them
  mutable std::set<std::string> m_read;
};

}  // namespace ggml_runtime
