// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <istream>
#include <ostream>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "dllm_cache/base/checksum.hpp"
#include "dllm_cache/base/error.hpp"
#include "dllm_cache/base/matrix_view.hpp"

// A snapshot is a row of sections. A section is the word "dllmsnap", version, kind, fields, and a
// checksum of all of these; numbers and arrays lie in the byte order of the machine that wrote
// them, which the version's bytes tell. Snapshots move between runs and processes of one version of
// this library; they are no archive format.
namespace dllm_cache::inline v0_1 {

namespace detail {
inline constexpr std::string_view snapshot_magic = "dllmsnap";
inline constexpr std::uint32_t snapshot_version = 5;
inline constexpr std::uint64_t longest_snapshot_text = 1U << 16;

template <class T>
concept SnapshotNumber = std::is_arithmetic_v<T> || std::is_enum_v<T>;
template <class T>
concept SnapshotElement = std::is_trivially_copyable_v<T>;
}  // namespace detail

/// Writes sections of a snapshot to a stream, to memory, or wherever a function puts bytes. What
/// the function throws passes through; a section that was broken off is refused by the reader.
class SnapshotWriter {
 public:
  using Sink = std::function<void(std::span<const std::byte>)>;

  /// Writes to a function that takes bytes in order.
  // NOLINTNEXTLINE(google-explicit-constructor): `cache.save(stream)` is how it is meant to read.
  SnapshotWriter(Sink sink) : m_sink(std::move(sink)) {}
  /// Writes to a binary stream; throws std::runtime_error when the stream fails.
  // NOLINTNEXTLINE(google-explicit-constructor)
  SnapshotWriter(std::ostream& stream)
      : m_sink([&stream](std::span<const std::byte> bytes) {
          stream.write(reinterpret_cast<const char*>(bytes.data()),
                       static_cast<std::streamsize>(bytes.size()));
          if (!stream) throw std::runtime_error("snapshot: the stream cannot be written");
        }) {}
  /// Appends to memory.
  // NOLINTNEXTLINE(google-explicit-constructor)
  SnapshotWriter(std::vector<std::byte>& memory)
      : m_sink([&memory](std::span<const std::byte> bytes) {
          memory.insert(memory.end(), bytes.begin(), bytes.end());
        }) {}

  /// Begins a section of a kind.
  void begin(std::string_view kind) {
    m_checksum = {};
    put(std::as_bytes(std::span(detail::snapshot_magic)));
    number("version", detail::snapshot_version);
    text("kind", kind);
  }
  /// A number or enumerator. The name is that of the reader's messages.
  template <detail::SnapshotNumber T>
  void number(std::string_view, T value) {
    put(std::as_bytes(std::span(&value, 1)));
  }
  /// A text of at most 65,536 bytes; throws std::invalid_argument for a longer one.
  void text(std::string_view name, std::string_view value) {
    if (value.size() > detail::longest_snapshot_text)
      base::refuse_argument("snapshot: ", name, " must have at most ",
                            detail::longest_snapshot_text, " bytes, got ", value.size());
    number("", static_cast<std::uint64_t>(value.size()));
    put(std::as_bytes(std::span(value)));
  }
  /// Elements as they lie in memory, without their count.
  template <detail::SnapshotElement T>
  void array(std::string_view, std::span<const T> values) {
    put(std::as_bytes(values));
  }
  /// Ends the section.
  void finish() {
    const std::uint64_t sum = m_checksum.value();
    m_sink(std::as_bytes(std::span(&sum, 1)));
  }

 private:
  void put(std::span<const std::byte> bytes) {
    m_checksum.add(bytes);
    m_sink(bytes);
  }

  Sink m_sink;
  base::Checksum m_checksum;
};

/// Reads what SnapshotWriter wrote. All refusals are std::runtime_error and name the field, what is
/// legal and what was found; nothing large is allocated for a count before its data are there.
class SnapshotReader {
 public:
  using Source = std::function<void(std::span<std::byte>)>;

  /// Reads from a function that fills the bytes it is given, or throws.
  // NOLINTNEXTLINE(google-explicit-constructor): `cache.restore(stream)` is how it is meant to
  // read.
  SnapshotReader(Source source) : m_source(std::move(source)) {}
  /// Reads from a binary stream.
  // NOLINTNEXTLINE(google-explicit-constructor)
  SnapshotReader(std::istream& stream)
      : m_source([&stream](std::span<std::byte> bytes) {
          stream.read(reinterpret_cast<char*>(bytes.data()),
                      static_cast<std::streamsize>(bytes.size()));
          if (!stream) refuse("ends too early");
        }) {}
  /// Reads from memory, which must outlive the reader.
  // NOLINTNEXTLINE(google-explicit-constructor)
  SnapshotReader(std::span<const std::byte> memory)
      : m_source([memory](std::span<std::byte> bytes) mutable {
          if (bytes.size() > memory.size()) refuse("ends too early");
          std::copy_n(memory.begin(), bytes.size(), bytes.begin());
          memory = memory.subspan(bytes.size());
        }) {}
  /// The same.
  // NOLINTNEXTLINE(google-explicit-constructor)
  SnapshotReader(const std::vector<std::byte>& memory)
      : SnapshotReader(std::span<const std::byte>(memory)) {}

  /// Begins a section, which must be of this kind and version.
  void begin(std::string_view kind) {
    m_checksum = {};
    std::array<char, detail::snapshot_magic.size()> magic{};
    get(std::as_writable_bytes(std::span(magic)));
    if (std::string_view(magic.data(), magic.size()) != detail::snapshot_magic)
      refuse("begins with other bytes than \"", detail::snapshot_magic, "\"");
    expect("version", detail::snapshot_version);
    expect_text("kind", kind);
  }
  /// A number in [low, high].
  template <detail::SnapshotNumber T>
  [[nodiscard]] T number(std::string_view name, T low, T high) {
    const T value = raw<T>();
    if (!(low <= value && value <= high))  // written so that NaN is refused
      refuse(name, " must be in [", shown(low), ", ", shown(high), "], got ", shown(value));
    return value;
  }
  /// A flag.
  [[nodiscard]] bool flag(std::string_view name) {
    return number<std::uint8_t>(name, 0, 1) != 0;  // a bool may not hold any other byte
  }
  /// A number that must be this one.
  template <detail::SnapshotNumber T>
  void expect(std::string_view name, T wanted) {
    const T value = raw<T>();
    if (value != wanted) refuse(name, " must be ", shown(wanted), ", got ", shown(value));
  }
  /// A text that must be this one.
  void expect_text(std::string_view name, std::string_view wanted) {
    const std::string value = text(name);
    if (value != wanted) refuse(name, " must be \"", wanted, "\", got \"", value, "\"");
  }
  /// A text of at most 65,536 bytes.
  [[nodiscard]] std::string text(std::string_view name) {
    std::string value(number<std::uint64_t>(name, 0, detail::longest_snapshot_text), '\0');
    get(std::as_writable_bytes(std::span(value)));
    return value;
  }
  /// Fills elements as they lie in memory.
  template <detail::SnapshotElement T>
  void array(std::string_view, std::span<T> values) {
    get(std::as_writable_bytes(values));
  }
  /// As many elements as are said to be there; memory grows with what has been read.
  template <detail::SnapshotElement T>
  [[nodiscard]] std::vector<T> elements(std::size_t count) {
    // The writer wrote one piece, so its checksum is one piece's.
    std::vector<T> values;
    constexpr std::size_t most = (std::size_t{1} << 20) / sizeof(T);
    while (values.size() < count) {
      const std::size_t old = values.size();
      values.resize(old + std::min(most, count - old));
      m_source(std::as_writable_bytes(std::span(values).subspan(old)));
    }
    m_checksum.add(std::as_bytes(std::span<const T>(values)));
    return values;
  }
  /// Ends the section; its checksum must be right.
  void finish() {
    std::uint64_t sum = 0;
    m_source(std::as_writable_bytes(std::span(&sum, 1)));
    if (sum != m_checksum.value()) refuse("is damaged: its checksum is wrong");
  }

  /// Throws std::runtime_error with the joined parts.
  template <class... Parts>
  [[noreturn]] static void refuse(const Parts&... parts) {
    throw std::runtime_error(base::text("snapshot: ", parts...));
  }

 private:
  void get(std::span<std::byte> bytes) {
    m_source(bytes);
    m_checksum.add(bytes);
  }
  template <class T>
  T raw() {
    T value{};
    get(std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }
  template <class T>
  static auto shown(T value) {
    if constexpr (std::is_enum_v<T>)
      return static_cast<std::int64_t>(value);
    else if constexpr (sizeof(T) == 1)
      return static_cast<int>(value);
    else
      return value;
  }

  Source m_source;
  base::Checksum m_checksum;
};

}  // namespace dllm_cache::inline v0_1
