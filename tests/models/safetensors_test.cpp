// SPDX-License-Identifier: Apache-2.0
#include "dllm_cache/models/checkpoint/safetensors_file.hpp"
#include "programs/text/safetensors_writer.hpp"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "tests/support/refusal.hpp"
#include "tests/support/temporary_folder.hpp"

namespace {

using Catch::Matchers::Contains;
using dllm_cache::models::bytes_of;
using dllm_cache::models::name_of;
using dllm_cache::models::SafetensorsFile;
using dllm_cache::models::Tensor;
using dllm_cache::models::tensor_type_of;
using dllm_cache::models::TensorType;
using dllm_cache::testing::refusal;
using dllm_cache::testing::TemporaryFolder;
using programs::SafetensorsWriter;

static_assert(std::is_nothrow_move_constructible_v<SafetensorsFile>);
static_assert(std::is_nothrow_move_assignable_v<SafetensorsFile>);
static_assert(!std::is_copy_constructible_v<SafetensorsFile>);
static_assert(!std::is_copy_assignable_v<SafetensorsFile>);

// The bytes of a file written by hand, so that the reader is not tested against our own writer.
std::string file_text(std::uint64_t header_length, std::string_view rest) {
  std::string text;
  for (int i = 0; i < 8; ++i) text += static_cast<char>((header_length >> (8 * i)) & 0xFFU);
  return text.append(rest);
}

std::string file_text(std::string_view header, std::size_t data_bytes) {
  return file_text(header.size(), std::string(header) + std::string(data_bytes, 'x'));
}

// The message with which such a file is refused; "" if it is accepted.
std::string refusal_of_text(const std::string& text) {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder.write("odd.safetensors", text);
  return refusal<std::runtime_error>([&] { return SafetensorsFile(path).tensors().size(); });
}

std::string refusal_of(std::string_view header, std::size_t data_bytes) {
  return refusal_of_text(file_text(header, data_bytes));
}

template <class T>
std::span<const std::byte> bytes_in(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

template <class T>
std::vector<T> values_of(const Tensor& tensor) {
  std::vector<T> values(tensor.bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
  return values;
}

std::string content_of(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

std::size_t entries_in(const std::filesystem::path& folder) {
  return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(folder),
                                                std::filesystem::directory_iterator()));
}

}  // namespace

// ---- what is read

TEST_CASE("SafetensorsFile: the bytes of a file laid out by hand are found", "[safetensors]") {
  const TemporaryFolder folder;
  const std::string header = R"({"b":{"dtype":"U8","shape":[3],"data_offsets":[4,7]},)"
                             R"("a":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}})";
  const auto path = folder.write(
      "hand.safetensors",
      file_text(header.size(), header + std::string("\x00\x00\xC0\x3F", 4) + "\x07\x08\x09"));
  const SafetensorsFile file(path);

  REQUIRE(file.path() == path);
  REQUIRE(file.tensors().size() == 2);
  REQUIRE(file.at("a").type == TensorType::F32);
  REQUIRE(file.at("a").shape == std::vector<std::int64_t>{1, 1});
  REQUIRE(values_of<float>(file.at("a")) == std::vector<float>{1.5F});
  REQUIRE(file.at("b").type == TensorType::U8);
  REQUIRE(values_of<std::uint8_t>(file.at("b")) == std::vector<std::uint8_t>{7, 8, 9});
}

TEST_CASE("SafetensorsFile: tensors come by name whatever their order in the file",
          "[safetensors]") {
  const TemporaryFolder folder;
  const auto path = folder.write(
      "order.safetensors", file_text(R"({"z":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                     R"("m":{"dtype":"U8","shape":[1],"data_offsets":[2,3]},)"
                                     R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                                     3));
  const SafetensorsFile file(path);
  std::vector<std::string> names;
  for (const Tensor& tensor : file.tensors()) names.push_back(tensor.name);
  REQUIRE(names == std::vector<std::string>{"a", "m", "z"});
  REQUIRE(file.at("m").bytes.data() == file.at("a").bytes.data() + 1);
  REQUIRE(file.at("a").bytes.data() == file.at("z").bytes.data() + 1);
}

TEST_CASE("SafetensorsFile: a header of odd length is read and leaves the bytes unaligned",
          "[safetensors]") {
  const TemporaryFolder folder;
  std::string header = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  while ((8 + header.size()) % 4 != 1) header += ' ';
  const std::vector<float> values = {-2.25F, 1e30F};
  std::string data(8, '\0');
  std::memcpy(data.data(), values.data(), 8);
  const SafetensorsFile file(
      folder.write("odd.safetensors", file_text(header.size(), header + data)));

  REQUIRE(reinterpret_cast<std::uintptr_t>(file.at("a").bytes.data()) % alignof(float) == 1);
  REQUIRE(values_of<float>(file.at("a")) == values);
}

TEST_CASE("SafetensorsFile: a scalar has an empty shape and one element", "[safetensors]") {
  const TemporaryFolder folder;
  const SafetensorsFile file(
      folder.write("scalar.safetensors",
                   file_text(R"({"s":{"dtype":"F64","shape":[],"data_offsets":[0,8]}})", 8)));
  REQUIRE(file.at("s").shape.empty());
  REQUIRE(file.at("s").bytes.size() == 8);
}

TEST_CASE("SafetensorsFile: tensors without elements may stand before, between and after others",
          "[safetensors]") {
  const TemporaryFolder folder;
  const SafetensorsFile file(folder.write(
      "empty.safetensors", file_text(R"({"z":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},)"
                                     R"("y":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                                     R"("x":{"dtype":"F32","shape":[3,0,5],"data_offsets":[2,2]},)"
                                     R"("w":{"dtype":"U8","shape":[1],"data_offsets":[2,3]},)"
                                     R"("v":{"dtype":"I64","shape":[0,0],"data_offsets":[3,3]}})",
                                     3)));
  REQUIRE(file.tensors().size() == 5);
  REQUIRE(file.at("x").bytes.empty());
  REQUIRE(file.at("x").shape == std::vector<std::int64_t>{3, 0, 5});
}

TEST_CASE("SafetensorsFile: a file without tensors is legal", "[safetensors]") {
  REQUIRE(refusal_of("{}", 0).empty());
  REQUIRE(refusal_of("{}      ", 0).empty());
}

TEST_CASE("SafetensorsFile: metadata are given and are no tensor", "[safetensors]") {
  const TemporaryFolder folder;
  const SafetensorsFile file(
      folder.write("meta.safetensors", file_text(R"({"__metadata__":{"format":"pt"}})", 0)));
  REQUIRE(file.metadata().size() == 1);
  REQUIRE(file.metadata().at("format") == "pt");
  REQUIRE(file.find("__metadata__") == nullptr);
}

TEST_CASE("SafetensorsFile: find gives nullptr for a name that is not there", "[safetensors]") {
  const TemporaryFolder folder;
  const SafetensorsFile file(folder.write(
      "m.safetensors", file_text(R"({"m":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1)));
  REQUIRE(file.find("m") == &file.tensors()[0]);
  REQUIRE(file.find("a") == nullptr);  // before all names
  REQUIRE(file.find("z") == nullptr);  // behind all names
  REQUIRE(file.find("") == nullptr);
}

TEST_CASE("SafetensorsFile: at names the file and the tensor that is not there", "[safetensors]") {
  const TemporaryFolder folder;
  const SafetensorsFile file(folder.write("m.safetensors", file_text("{}", 0)));
  const std::string message =
      refusal<std::runtime_error>([&] { return file.at("model.norm.weight").bytes.size(); });
  REQUIRE_THAT(message, Contains("m.safetensors") && Contains("\"model.norm.weight\"") &&
                            Contains("not in this file"));
}

TEST_CASE("SafetensorsFile: a move keeps the tensors where they are", "[safetensors]") {
  const TemporaryFolder folder;
  SafetensorsFile first(folder.write(
      "m.safetensors", file_text(R"({"m":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1)));
  const Tensor* const tensor = first.find("m");
  SafetensorsFile second(std::move(first));
  REQUIRE(second.find("m") == tensor);
  REQUIRE(tensor->bytes[0] == std::byte{'x'});

  SafetensorsFile third(folder.write("none.safetensors", file_text("{}", 0)));
  third = std::move(second);
  REQUIRE(third.find("m") == tensor);
  REQUIRE(tensor->bytes[0] == std::byte{'x'});
}

TEST_CASE("SafetensorsFile: every type of the format has its width", "[safetensors]") {
  const auto [name, width] = GENERATE(table<std::string, std::size_t>({
      {"F64", 8},     {"F32", 4},     {"F16", 2},         {"BF16", 2}, {"F8_E5M2", 1},
      {"F8_E4M3", 1}, {"F8_E8M0", 1}, {"F8_E4M3FNUZ", 1}, {"C64", 8},  {"F8_E5M2FNUZ", 1},
      {"I64", 8},     {"I32", 4},     {"I16", 2},         {"I8", 1},   {"U64", 8},
      {"U32", 4},     {"U16", 2},     {"U8", 1},          {"BOOL", 1},
  }));
  CAPTURE(name);
  const auto type = tensor_type_of(name);
  REQUIRE(type.has_value());
  REQUIRE(name_of(*type) == name);
  REQUIRE(bytes_of(*type) == width);
  const std::string header = R"({"t":{"dtype":")" + name + R"(","shape":[3],"data_offsets":[0,)" +
                             std::to_string(3 * width) + "]}}";
  REQUIRE(refusal_of(header, 3 * width).empty());
}

// ---- files that are refused

TEST_CASE("SafetensorsFile: a missing file is refused", "[safetensors][refusal]") {
  const TemporaryFolder folder;
  const std::string message = refusal<std::runtime_error>(
      [&] { return SafetensorsFile(folder / "absent.safetensors").tensors().size(); });
  REQUIRE_THAT(message, Contains("absent.safetensors") && Contains("No such file"));
}

TEST_CASE("SafetensorsFile: a folder is refused", "[safetensors][refusal]") {
  const TemporaryFolder folder;
  const std::string message =
      refusal<std::runtime_error>([&] { return SafetensorsFile(folder.path()).tensors().size(); });
  REQUIRE_THAT(message, Contains(folder.path().string()) && Contains("got a folder"));
}

TEST_CASE("SafetensorsFile: a named pipe is refused instead of waited for",
          "[safetensors][refusal]") {
  const TemporaryFolder folder;
  const std::filesystem::path pipe = folder / "pipe.safetensors";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  const std::string message =
      refusal<std::runtime_error>([&] { return SafetensorsFile(pipe).tensors().size(); });
  REQUIRE_THAT(message, Contains("pipe.safetensors") && Contains("expected a regular file"));
}

TEST_CASE("SafetensorsFile: a file shorter than the header length is refused",
          "[safetensors][refusal]") {
  const std::size_t size = GENERATE(1U, 7U);
  REQUIRE_THAT(refusal_of_text(std::string(size, '\0')),
               Contains("odd.safetensors") && Contains("cut short") &&
                   Contains("expected at least 8 bytes, got " + std::to_string(size)));
}

TEST_CASE("SafetensorsFile: a header longer than the file is refused", "[safetensors][refusal]") {
  const std::uint64_t length = GENERATE(std::uint64_t{3}, std::uint64_t{100'000'000});
  REQUIRE_THAT(
      refusal_of_text(file_text(length, "{}")),
      Contains("odd.safetensors") && Contains("cut short in its header: expected " +
                                              std::to_string(8 + length) + " bytes, got 10"));
}

TEST_CASE("SafetensorsFile: a header of an impossible length is refused",
          "[safetensors][refusal]") {
  const std::uint64_t length = GENERATE(std::uint64_t{1} << 32U, std::uint64_t{1} << 63U,
                                        std::numeric_limits<std::uint64_t>::max() - 7,
                                        std::numeric_limits<std::uint64_t>::max());
  REQUIRE_THAT(refusal_of_text(file_text(length, "{}")),
               Contains("odd.safetensors") &&
                   Contains("header length: expected at most 100000000 bytes, got " +
                            std::to_string(length)));
}

TEST_CASE("SafetensorsFile: a header above 100 MB is refused even if the file has it",
          "[safetensors][refusal]") {
  const TemporaryFolder folder;
  const auto path = folder.write("big.safetensors", file_text(100'000'001, "{}"));
  std::filesystem::resize_file(path, 8 + 100'000'001);  // sparse
  const std::string message =
      refusal<std::runtime_error>([&] { return SafetensorsFile(path).tensors().size(); });
  REQUIRE_THAT(message, Contains("big.safetensors") &&
                            Contains("expected at most 100000000 bytes, got 100000001"));
}

TEST_CASE("SafetensorsFile: a Git LFS pointer is called by its name", "[safetensors][refusal]") {
  REQUIRE_THAT(refusal_of_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
               Contains("odd.safetensors") && Contains("Git LFS pointer"));
}

TEST_CASE("SafetensorsFile: a header that is no JSON is refused", "[safetensors][refusal]") {
  const std::string header = GENERATE(R"({"a")", R"({"a":})", R"({} {})", R"({"a":nul})",
                                      R"({'a':1})", "{\"\xFF\":1}", R"({"a":1e999})", "{}}");
  CAPTURE(header);
  REQUIRE_THAT(refusal_of(header, 0), Contains("odd.safetensors") && Contains("not JSON"));
}

TEST_CASE("SafetensorsFile: a NUL byte does not hide the rest of the header",
          "[safetensors][refusal]") {
  REQUIRE_THAT(refusal_of(std::string_view("{}\0garbage", 10), 0),
               Contains("odd.safetensors") && Contains("NUL byte at byte 2"));
}

TEST_CASE("SafetensorsFile: a header that is no object is refused", "[safetensors][refusal]") {
  const std::string header = GENERATE("", "[]", "null", "7", " {}", "\"{}\"");
  CAPTURE(header);
  REQUIRE_THAT(refusal_of(header, 0), Contains("odd.safetensors") &&
                                          Contains("expected a JSON object that begins with '{'"));
}

TEST_CASE("SafetensorsFile: nesting is read up to 64 levels and refused beyond",
          "[safetensors][refusal]") {
  // Level 1 is the header and level 2 the tensor; a key unknown to the format may hold the rest.
  const auto header = [](std::size_t levels) {
    return R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"more":)" +
           std::string(levels - 2, '[') + std::string(levels - 2, ']') + "}}";
  };
  REQUIRE(refusal_of(header(64), 0).empty());
  REQUIRE_THAT(refusal_of(header(65), 0),
               Contains("odd.safetensors") && Contains("nested deeper than") && Contains("64"));
}

TEST_CASE("SafetensorsFile: a bomb of brackets is refused without running out of stack",
          "[safetensors][refusal]") {
  std::string objects;
  for (int i = 0; i < 1'000'000; ++i) objects += R"({"a":)";
  REQUIRE_THAT(refusal_of(objects, 0), Contains("nested deeper than"));
  REQUIRE_THAT(refusal_of("{\"a\":" + std::string(1'000'000, '['), 0),
               Contains("nested deeper than"));
}

TEST_CASE("SafetensorsFile: a tensor that stands twice is refused", "[safetensors][refusal]") {
  REQUIRE_THAT(refusal_of(R"({"twin":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                          R"("twin":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                          1),
               Contains("odd.safetensors") && Contains("\"twin\"") && Contains("stands twice"));
}

TEST_CASE("SafetensorsFile: a key of a tensor that stands twice is refused",
          "[safetensors][refusal]") {
  REQUIRE_THAT(
      refusal_of(R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"shape":[1]}})", 1),
      Contains("odd.safetensors") && Contains("\"shape\"") && Contains("stands twice"));
}

TEST_CASE("SafetensorsFile: the same key in two tensors is no duplicate", "[safetensors]") {
  REQUIRE(refusal_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                     R"("b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                     2)
              .empty());
}

TEST_CASE("SafetensorsFile: keys that the format does not know are ignored", "[safetensors]") {
  REQUIRE(refusal_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"note":{"x":1}}})", 1)
              .empty());
}

TEST_CASE("SafetensorsFile: metadata other than a map of strings are refused",
          "[safetensors][refusal]") {
  const auto [value, reason] = GENERATE(table<std::string, std::string>({
      {R"("pt")", R"(__metadata__: expected an object, got "pt")"},
      {"null", "__metadata__: expected an object, got null"},
      {"[]", "__metadata__: expected an object, got []"},
      {R"({"k":1})", R"(__metadata__: key "k": expected a string, got 1)"},
      {R"({"k":null})", R"(__metadata__: key "k": expected a string, got null)"},
      {R"({"k":{}})", R"(__metadata__: key "k": expected a string, got an object)"},
  }));
  REQUIRE_THAT(refusal_of(R"({"__metadata__":)" + value + "}", 0),
               Contains("odd.safetensors") && Contains(reason));
}

// ---- tensors that are refused

TEST_CASE("SafetensorsFile: a bad entry is refused with file, tensor and reason",
          "[safetensors][refusal]") {
  // The data are 8 bytes long.
  const auto [entry, reason] = GENERATE(table<std::string, std::string>({
      {"7", "expected an object, got 7"},
      {"[]", "expected an object, got []"},
      {R"({"shape":[8],"data_offsets":[0,8]})", "dtype: expected a value, got none"},
      {R"({"dtype":"U8","data_offsets":[0,8]})", "shape: expected a value, got none"},
      {R"({"dtype":"U8","shape":[8]})", "data_offsets: expected a value, got none"},
      {R"({"dtype":5,"shape":[8],"data_offsets":[0,8]})", "BOOL, got 5"},
      {R"({"dtype":null,"shape":[8],"data_offsets":[0,8]})", "BOOL, got null"},
      {R"({"dtype":"F12","shape":[8],"data_offsets":[0,8]})", R"(BOOL, got "F12")"},
      {R"({"dtype":"f32","shape":[2],"data_offsets":[0,8]})", R"(BOOL, got "f32")"},
      {R"({"dtype":"F128","shape":[],"data_offsets":[0,8]})", R"(dtype: expected one of F64, F32)"},
      {R"({"dtype":"U8","shape":8,"data_offsets":[0,8]})", "shape: expected an array, got 8"},
      {R"({"dtype":"U8","shape":{},"data_offsets":[0,8]})", "shape: expected an array, got an obj"},
      {R"({"dtype":"U8","shape":null,"data_offsets":[0,8]})", "shape: expected an array, got null"},
      {R"({"dtype":"U8","shape":[-8],"data_offsets":[0,8]})", "[0, 2^63 - 1], got -8"},
      {R"({"dtype":"U8","shape":[-2,-4],"data_offsets":[0,8]})", "[0, 2^63 - 1], got -2"},
      {R"({"dtype":"U8","shape":[8.0],"data_offsets":[0,8]})", "[0, 2^63 - 1], got 8.0"},
      {R"({"dtype":"U8","shape":["8"],"data_offsets":[0,8]})", R"([0, 2^63 - 1], got "8")"},
      {R"({"dtype":"U8","shape":[true,8],"data_offsets":[0,8]})", "[0, 2^63 - 1], got true"},
      {R"({"dtype":"U8","shape":[[8]],"data_offsets":[0,8]})", "[0, 2^63 - 1], got [8]"},
      {R"({"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,8]})",
       "[0, 2^63 - 1], got 9223372036854775808"},
      {R"({"dtype":"U8","shape":[18446744073709551624],"data_offsets":[0,8]})",
       "shape: expected integers in"},  // 2^64 + 8 would wrap to 8
      {R"({"dtype":"U8","shape":[8],"data_offsets":8})", "<= end <= 8, got 8"},
      {R"({"dtype":"U8","shape":[8],"data_offsets":[]})", "<= end <= 8, got []"},
      {R"({"dtype":"U8","shape":[8],"data_offsets":[0]})", "<= end <= 8, got [0]"},
      {R"({"dtype":"U8","shape":[8],"data_offsets":[0,8,8]})", "<= end <= 8, got [0,8,8]"},
      {R"({"dtype":"U8","shape":[8],"data_offsets":[0,"8"]})", R"(<= end <= 8, got [0,"8"])"},
      {R"({"dtype":"U8","shape":[8],"data_offsets":[0.0,8]})", "<= end <= 8, got [0.0,8]"},
      {R"({"dtype":"U8","shape":[9],"data_offsets":[-1,8]})", "<= end <= 8, got [-1,8]"},
      {R"({"dtype":"U8","shape":[0],"data_offsets":[8,0]})", "<= end <= 8, got [8,0]"},
      {R"({"dtype":"U8","shape":[0],"data_offsets":[9,9]})", "expected begin 0, got 9"},
      {R"({"dtype":"U8","shape":[8],"data_offsets":[0,18446744073709551615]})", "[begin, end]"},
      {R"({"dtype":"U8","shape":[7],"data_offsets":[0,8]})", "expected 7 bytes for U8 [7], got 8"},
      {R"({"dtype":"U8","shape":[9],"data_offsets":[0,8]})", "expected 9 bytes for U8 [9], got 8"},
      {R"({"dtype":"F32","shape":[8],"data_offsets":[0,8]})", "32 bytes for F32 [8], got 8"},
      {R"({"dtype":"F32","shape":[],"data_offsets":[0,8]})", "4 bytes for F32 [], got 8"},
      {R"({"dtype":"F32","shape":[2,0],"data_offsets":[0,8]})", "0 bytes for F32 [2, 0], got 8"},
  }));
  CAPTURE(entry);
  REQUIRE_THAT(
      refusal_of(R"({"bad.weight":)" + entry + "}", 8),
      Contains("odd.safetensors") && Contains("tensor \"bad.weight\": ") && Contains(reason));
}

TEST_CASE("SafetensorsFile: a product of dimensions that overflows is refused",
          "[safetensors][refusal]") {
  const auto [type, shape] = GENERATE(table<std::string, std::string>({
      {"U8", "4294967296,4294967296"},    // 2^64 wraps to 0
      {"U8", "4294967296,2147483648"},    // 2^63 does not fit in std::int64_t
      {"F64", "2305843009213693952"},     // 2^61 elements of 8 bytes wrap to 0
      {"U8", "9223372036854775807,3"},    // 3 * (2^63 - 1) wraps
      {"U8", "0,4294967296,4294967296"},  // empty, but its strides overflow
      {"U8", "4294967296,4294967296,0"},  // the same in another order
  }));
  CAPTURE(type, shape);
  REQUIRE_THAT(refusal_of(R"({"wide":{"dtype":")" + type + R"(","shape":[)" + shape +
                              R"(],"data_offsets":[0,0]}})",
                          0),
               Contains("odd.safetensors") && Contains("tensor \"wide\"") &&
                   Contains("expected a size below 2^63 bytes"));
}

TEST_CASE("SafetensorsFile: two tensors that share bytes are refused", "[safetensors][refusal]") {
  REQUIRE_THAT(refusal_of(R"({"first":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},)"
                          R"("second":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
                          8),
               Contains("odd.safetensors") && Contains("tensor \"second\"") &&
                   Contains("overlaps tensor \"first\"") && Contains("expected begin 5, got 4"));
}

TEST_CASE("SafetensorsFile: two tensors on the same bytes are refused", "[safetensors][refusal]") {
  REQUIRE_THAT(refusal_of(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},)"
                          R"("b":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})",
                          8),
               Contains("odd.safetensors") && Contains("tensor \"b\"") &&
                   Contains("overlaps tensor \"a\"") && Contains("expected begin 8, got 0"));
}

TEST_CASE("SafetensorsFile: an empty tensor inside another is refused", "[safetensors][refusal]") {
  REQUIRE_THAT(refusal_of(R"({"full":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},)"
                          R"("none":{"dtype":"U8","shape":[0],"data_offsets":[3,3]}})",
                          8),
               Contains("odd.safetensors") && Contains("tensor \"none\"") &&
                   Contains("overlaps tensor \"full\""));
}

TEST_CASE("SafetensorsFile: a hole between tensors is refused", "[safetensors][refusal]") {
  REQUIRE_THAT(refusal_of(R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
                          R"("b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
                          8),
               Contains("odd.safetensors") && Contains("tensor \"b\"") && Contains("hole") &&
                   Contains("expected begin 3, got 4"));
}

TEST_CASE("SafetensorsFile: a hole before the first tensor is refused", "[safetensors][refusal]") {
  REQUIRE_THAT(refusal_of(R"({"a":{"dtype":"U8","shape":[7],"data_offsets":[1,8]}})", 8),
               Contains("odd.safetensors") && Contains("tensor \"a\"") && Contains("hole") &&
                   Contains("expected begin 0, got 1"));
}

TEST_CASE("SafetensorsFile: bytes behind the last tensor are refused", "[safetensors][refusal]") {
  REQUIRE_THAT(refusal_of(R"({"a":{"dtype":"U8","shape":[7],"data_offsets":[0,7]}})", 8),
               Contains("odd.safetensors") && Contains("trailing bytes") &&
                   Contains("1 of them: expected a file of 68 bytes, got 69"));
  REQUIRE_THAT(refusal_of("{}", 1), Contains("expected a file of 10 bytes, got 11"));
}

TEST_CASE("SafetensorsFile: a hostile name cannot flood or steer the terminal",
          "[safetensors][refusal]") {
  const std::string message =
      refusal_of(R"({"\u001b[2J\n)" + std::string(1'000'000, 'n') + R"(":7})", 0);
  REQUIRE_THAT(message, Contains("odd.safetensors") && Contains("\\x1b[2J\\x0an"));
  REQUIRE(message.size() < 1000);
  REQUIRE(std::none_of(message.begin(), message.end(), [](char c) { return c >= 0 && c < 32; }));
}

TEST_CASE("SafetensorsFile: every cut of a good file is refused", "[safetensors][refusal]") {
  const std::string good =
      file_text(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8);
  REQUIRE(refusal_of_text(good).empty());
  for (std::size_t size = 0; size < good.size(); ++size) {
    CAPTURE(size);
    REQUIRE_THAT(refusal_of_text(good.substr(0, size)), Contains("odd.safetensors"));
  }
}

TEST_CASE("SafetensorsFile: a file with random damage is read within its bounds or refused",
          "[safetensors][refusal]") {
  const std::string good = file_text(R"({"__metadata__":{"format":"pt"},)"
                                     R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                                     R"("b":{"dtype":"U8","shape":[2,2],"data_offsets":[8,12]}} )",
                                     12);
  constexpr std::string_view likely = "0123456789-.,:[]{}\" \x01\x7F\xFF";
  const TemporaryFolder folder;
  constexpr unsigned seed = 20250611;
  std::mt19937 random(seed);
  int read = 0;
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    CAPTURE(seed, round);
    std::string text = good;
    for (auto changes = 1 + random() % 3; changes > 0; --changes) {
      text[random() % text.size()] = likely[random() % likely.size()];
    }
    const auto path = folder.write("odd.safetensors", text);
    std::size_t bytes = 0;
    const std::string message = refusal<std::runtime_error>([&] {
      const SafetensorsFile file(path);
      std::byte sum{};
      for (const Tensor& tensor : file.tensors()) {
        for (const std::byte byte : tensor.bytes) sum ^= byte;
        bytes += tensor.bytes.size();
      }
      return sum;
    });
    if (message.empty()) {
      ++read;
      REQUIRE(bytes <= text.size());
    } else {
      ++refused;
      REQUIRE_THAT(message, Contains("odd.safetensors"));
    }
  }
  REQUIRE(read > 0);  // damage to the numbers of a tensor passes
  REQUIRE(refused > read);
}

// ---- the writer

TEST_CASE("SafetensorsWriter: the three float types come back bit by bit", "[safetensors]") {
  const TemporaryFolder folder;
  // 1.5, -2, infinity and a NaN with a payload
  const std::vector<std::uint32_t> f32 = {0x3FC00000, 0xC0000000, 0x7F800000, 0x7FC01234};
  const std::vector<std::uint16_t> f16 = {0x3E00, 0xC000, 0x7C00, 0x7E12};
  const std::vector<std::uint16_t> bf16 = {0x3FC0, 0xC000, 0x7F80, 0x7FC1};
  SafetensorsWriter writer;
  writer.add("x.f32", TensorType::F32, {2, 2}, bytes_in(f32));
  writer.add("x.f16", TensorType::F16, {4}, bytes_in(f16));
  writer.add("x.bf16", TensorType::BF16, {1, 4, 1}, bytes_in(bf16));
  writer.write(folder / "floats.safetensors");

  const SafetensorsFile file(folder / "floats.safetensors");
  REQUIRE(file.tensors().size() == 3);
  REQUIRE(file.at("x.f32").type == TensorType::F32);
  REQUIRE(file.at("x.f32").shape == std::vector<std::int64_t>{2, 2});
  REQUIRE(values_of<std::uint32_t>(file.at("x.f32")) == f32);
  REQUIRE(file.at("x.f16").type == TensorType::F16);
  REQUIRE(file.at("x.f16").shape == std::vector<std::int64_t>{4});
  REQUIRE(values_of<std::uint16_t>(file.at("x.f16")) == f16);
  REQUIRE(file.at("x.bf16").type == TensorType::BF16);
  REQUIRE(file.at("x.bf16").shape == std::vector<std::int64_t>{1, 4, 1});
  REQUIRE(values_of<std::uint16_t>(file.at("x.bf16")) == bf16);
}

TEST_CASE("SafetensorsWriter: scalars, empty tensors, metadata and odd names come back",
          "[safetensors]") {
  const TemporaryFolder folder;
  SafetensorsWriter writer;
  writer.add("", TensorType::I64, {}, bytes_in(std::vector<std::int64_t>{-5}));
  writer.add("empty", TensorType::F32, {0, 7}, {});
  writer.add("\"quoted\"\n\xC3\xA9", TensorType::BOOL, {1}, bytes_in(std::vector<std::uint8_t>{1}));
  writer.set_metadata("format", "np");
  writer.set_metadata("format", "pt");
  writer.write(folder / "odd.safetensors");

  const SafetensorsFile file(folder / "odd.safetensors");
  REQUIRE(file.tensors().size() == 3);
  REQUIRE(values_of<std::int64_t>(file.at("")) == std::vector<std::int64_t>{-5});
  REQUIRE(file.at("empty").shape == std::vector<std::int64_t>{0, 7});
  REQUIRE(file.at("\"quoted\"\n\xC3\xA9").bytes[0] == std::byte{1});
  REQUIRE(file.metadata().size() == 1);
  REQUIRE(file.metadata().at("format") == "pt");
}

TEST_CASE("SafetensorsWriter: names are sorted and the header is padded with spaces to 8 bytes",
          "[safetensors]") {
  const TemporaryFolder folder;
  const std::string name = "b" + std::string(GENERATE(range(0U, 8U)), 'b');
  SafetensorsWriter writer;
  writer.add(name, TensorType::U8, {1}, bytes_in(std::vector<std::uint8_t>{2}));
  writer.add("a", TensorType::U8, {1}, bytes_in(std::vector<std::uint8_t>{1}));
  writer.write(folder / "padded.safetensors");

  const std::string content = content_of(folder / "padded.safetensors");
  REQUIRE(content.size() > 10);
  const std::size_t length = static_cast<unsigned char>(content[0]);
  REQUIRE(length % 8 == 0);
  REQUIRE(content.substr(1, 7) == std::string(7, '\0'));
  REQUIRE(content.size() == 8 + length + 2);
  const std::string header = content.substr(8, length);
  const std::size_t brace = header.rfind('}');
  REQUIRE(length - brace - 1 < 8);
  REQUIRE(header.find_first_not_of(' ', brace + 1) == std::string::npos);
  const auto json = nlohmann::json::parse(header);
  REQUIRE(json["a"]["data_offsets"] == nlohmann::json({0, 1}));
  REQUIRE(json[name]["data_offsets"] == nlohmann::json({1, 2}));
  REQUIRE(content.substr(8 + length) == "\x01\x02");
}

TEST_CASE("SafetensorsWriter: the order of adding does not change the file", "[safetensors]") {
  const TemporaryFolder folder;
  const std::vector<float> one = {1};
  const std::vector<float> two = {2, 3};
  SafetensorsWriter forward;
  forward.add("a", TensorType::F32, {1}, bytes_in(one));
  forward.add("b", TensorType::F32, {2}, bytes_in(two));
  forward.write(folder / "forward");
  SafetensorsWriter backward;
  backward.add("b", TensorType::F32, {2}, bytes_in(two));
  backward.add("a", TensorType::F32, {1}, bytes_in(one));
  backward.write(folder / "backward");
  REQUIRE(content_of(folder / "forward") == content_of(folder / "backward"));
}

TEST_CASE("SafetensorsWriter: the bytes are copied when they are added", "[safetensors]") {
  const TemporaryFolder folder;
  std::vector<float> values = {1, 2};
  SafetensorsWriter writer;
  writer.add("a", TensorType::F32, {2}, bytes_in(values));
  values = {3, 4};
  writer.write(folder / "copied.safetensors");
  REQUIRE(values_of<float>(SafetensorsFile(folder / "copied.safetensors").at("a")) ==
          std::vector<float>{1, 2});
}

TEST_CASE("SafetensorsWriter: a file that is replaced stays whole for those who have it open",
          "[safetensors]") {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "same.safetensors";
  const auto write = [&](float value) {
    SafetensorsWriter writer;
    writer.add("a", TensorType::F32, {1}, bytes_in(std::vector<float>{value}));
    writer.write(path);
  };
  write(1);
  const SafetensorsFile before(path);
  write(2);
  REQUIRE(values_of<float>(before.at("a")) == std::vector<float>{1});
  REQUIRE(values_of<float>(SafetensorsFile(path).at("a")) == std::vector<float>{2});
  REQUIRE(entries_in(folder.path()) == 1);  // no temporary file is left
}

TEST_CASE("SafetensorsWriter: a temporary file that another writer left is not touched",
          "[safetensors]") {
  const TemporaryFolder folder;
  const std::string left = "a.safetensors.tmp-" + std::to_string(::getpid()) + "-0";
  folder.write(left, "left");
  SafetensorsWriter().write(folder / "a.safetensors");
  REQUIRE(content_of(folder / left) == "left");
  REQUIRE(SafetensorsFile(folder / "a.safetensors").tensors().empty());
}

TEST_CASE("SafetensorsWriter: a folder that is not there is refused", "[safetensors][refusal]") {
  const TemporaryFolder folder;
  const std::string message = refusal<std::runtime_error>([&] {
    SafetensorsWriter().write(folder / "absent/out.safetensors");
    return 0;
  });
  REQUIRE_THAT(message, Contains("absent/out.safetensors") && Contains("No such file"));
}

TEST_CASE("SafetensorsWriter: a name taken by a folder is refused and nothing is left behind",
          "[safetensors][refusal]") {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder / "out.safetensors");
  const std::string message = refusal<std::runtime_error>([&] {
    SafetensorsWriter().write(folder / "out.safetensors");
    return 0;
  });
  REQUIRE_THAT(message, Contains("out.safetensors\"") && Contains("renaming"));
  REQUIRE(entries_in(folder.path()) == 1);
}

TEST_CASE("SafetensorsWriter: a full disk leaves the old file and nothing else",
          "[safetensors][refusal]") {
  const TemporaryFolder folder;
  const auto path = folder.write("out.safetensors", "old");
  SafetensorsWriter writer;
  writer.add("a", TensorType::U8, {100'000}, bytes_in(std::vector<std::uint8_t>(100'000)));

  // A limit on the size of files stands for the full disk: the system writes a part, then refuses.
  ::rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  ::rlimit small = before;
  small.rlim_cur = 50'000;
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  const std::string message = refusal<std::runtime_error>([&] {
    writer.write(path);
    return 0;
  });
  ::setrlimit(RLIMIT_FSIZE, &before);
  ::signal(SIGXFSZ, handler);

  REQUIRE_THAT(message, Contains("out.safetensors\"") && Contains("writing failed"));
  REQUIRE(content_of(path) == "old");
  REQUIRE(entries_in(folder.path()) == 1);
}

TEST_CASE("SafetensorsWriter: a bad tensor is refused when it is added", "[safetensors][refusal]") {
  SafetensorsWriter writer;
  const std::vector<float> values = {1, 2};
  writer.add("taken", TensorType::F32, {2}, bytes_in(values));
  const auto add = [&](const std::string& name, std::vector<std::int64_t> shape) {
    return refusal<std::invalid_argument>([&] {
      writer.add(name, TensorType::F32, std::move(shape), bytes_in(values));
      return 0;
    });
  };
  REQUIRE_THAT(add("taken", {2}), Contains("tensor \"taken\"") && Contains("added twice"));
  REQUIRE_THAT(add("short", {3}),
               Contains("tensor \"short\"") && Contains("expected 12 for F32 [3], got 8"));
  REQUIRE_THAT(add("minus", {-1, -2}),
               Contains("tensor \"minus\"") && Contains("dimensions >= 0") && Contains("[-1, -2]"));
  REQUIRE_THAT(add("wide", {std::int64_t{1} << 62, 4}),
               Contains("tensor \"wide\"") && Contains("below 2^63 bytes"));
  REQUIRE_THAT(add("__metadata__", {2}), Contains("reserved"));
  REQUIRE_THAT(add("\xFF", {2}), Contains("UTF-8"));
  REQUIRE_THAT(refusal<std::invalid_argument>([&] {
                 writer.set_metadata("key", "\xC3");
                 return 0;
               }),
               Contains("metadata \"key\"") && Contains("UTF-8"));
}

TEST_CASE("SafetensorsWriter: a refused tensor leaves the writer as it was", "[safetensors]") {
  const TemporaryFolder folder;
  SafetensorsWriter writer;
  writer.add("taken", TensorType::F32, {1}, bytes_in(std::vector<float>{1}));
  REQUIRE_THROWS_AS(writer.add("taken", TensorType::F32, {1}, bytes_in(std::vector<float>{2})),
                    std::invalid_argument);
  writer.write(folder / "kept.safetensors");
  const SafetensorsFile file(folder / "kept.safetensors");
  REQUIRE(file.tensors().size() == 1);
  REQUIRE(values_of<float>(file.at("taken")) == std::vector<float>{1});
}
