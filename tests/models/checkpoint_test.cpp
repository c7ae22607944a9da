// SPDX-License-Identifier: Apache-2.0
#include "dllm_cache/models/checkpoint/checkpoint_folder.hpp"

#include <catch2/catch.hpp>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "programs/text/safetensors_writer.hpp"
#include "tests/support/refusal.hpp"
#include "tests/support/temporary_folder.hpp"

namespace {

using Catch::Matchers::Contains;
using dllm_cache::models::CheckpointFolder;
using dllm_cache::models::ConfigReader;
using dllm_cache::models::Tensor;
using dllm_cache::models::TensorType;
using dllm_cache::testing::refusal;
using dllm_cache::testing::TemporaryFolder;
using programs::SafetensorsWriter;
namespace models = dllm_cache::models;

// A file of F32 tensors of shape [2, 1], each holding its number and minus its number.
void write_weights(const std::filesystem::path& path,
                   const std::vector<std::pair<std::string, float>>& tensors) {
  SafetensorsWriter writer;
  for (const auto& [name, number] : tensors) {
    const std::vector<float> values = {number, -number};
    writer.add(name, TensorType::F32, {2, 1}, std::as_bytes(std::span(values)));
  }
  writer.write(path);
}

float first_value(const Tensor& tensor) {
  float value = 0;
  std::memcpy(&value, tensor.bytes.data(), sizeof(value));
  return value;
}

std::string index_text(const std::string& weight_map) {
  return R"({"metadata":{"total_size":16},"weight_map":)" + weight_map + "}";
}

// config.json and two shards: "a" and "c" in the first, "b" in the second.
class ShardedFolder : public TemporaryFolder {
 public:
  ShardedFolder() {
    write("config.json", R"({"n_layers":2})");
    write_weights(*this / "part-1.safetensors", {{"a", 1.0F}, {"c", 3.0F}});
    write_weights(*this / "part-2.safetensors", {{"b", 2.0F}});
    write_index(R"({"a":"part-1.safetensors","b":"part-2.safetensors","c":"part-1.safetensors"})");
  }
  void write_index(const std::string& weight_map) const {
    write("model.safetensors.index.json", index_text(weight_map));
  }
};

std::string refusal_of(const std::filesystem::path& folder) {
  return refusal<std::runtime_error>([&] { return CheckpointFolder(folder).path(); });
}

const std::filesystem::path config_file = "some/config.json";

// What a reader of config.json says to the value `text` of the key "k" when `read` is called.
template <class Read>
std::string refusal_of_value(std::string_view text, const Read& read) {
  const auto config = nlohmann::json::parse("{\"k\":" + std::string(text) + "}");
  return refusal<std::runtime_error>([&] { return read(ConfigReader(config, config_file)); });
}

}  // namespace

// ---- folders that are read

TEST_CASE("CheckpointFolder: a single weights file is read", "[checkpoint]") {
  const TemporaryFolder folder;
  folder.write("config.json", R"({"model_type":"llada","n_layers":2})");
  write_weights(folder / "model.safetensors", {{"wte", 4.0F}, {"norm", 5.0F}});
  const CheckpointFolder checkpoint(folder.path());

  REQUIRE(checkpoint.path() == folder.path());
  REQUIRE(checkpoint.config_path() == folder / "config.json");
  REQUIRE(checkpoint.config().at("n_layers") == 2);
  REQUIRE(first_value(checkpoint.tensor("wte", {2, 1})) == 4.0F);
  REQUIRE(first_value(checkpoint.tensor("norm", {2, 1})) == 5.0F);
}

TEST_CASE("CheckpointFolder: the tensors of all shards are found", "[checkpoint]") {
  const ShardedFolder folder;
  const CheckpointFolder checkpoint(folder.path());
  REQUIRE(first_value(checkpoint.tensor("a", {2, 1})) == 1.0F);
  REQUIRE(first_value(checkpoint.tensor("b", {2, 1})) == 2.0F);
  REQUIRE(first_value(checkpoint.tensor("c", {2, 1})) == 3.0F);
}

TEST_CASE("CheckpointFolder: find gives the tensor, or nullptr", "[checkpoint]") {
  const ShardedFolder folder;
  const CheckpointFolder checkpoint(folder.path());
  REQUIRE(checkpoint.find("b") == &checkpoint.tensor("b", {2, 1}));
  REQUIRE(checkpoint.find("lm_head.weight") == nullptr);
}

TEST_CASE("CheckpointFolder: the index decides which shard a tensor comes from", "[checkpoint]") {
  const ShardedFolder folder;
  write_weights(folder / "part-2.safetensors", {{"a", 7.0F}, {"b", 2.0F}, {"unlisted", 8.0F}});
  const CheckpointFolder checkpoint(folder.path());
  REQUIRE(first_value(checkpoint.tensor("a", {2, 1})) == 1.0F);
  REQUIRE(checkpoint.find("unlisted") == nullptr);
}

TEST_CASE("CheckpointFolder: a single weights file wins over an index", "[checkpoint]") {
  const ShardedFolder folder;
  write_weights(folder / "model.safetensors", {{"a", 9.0F}});
  const CheckpointFolder checkpoint(folder.path());
  REQUIRE(first_value(checkpoint.tensor("a", {2, 1})) == 9.0F);
  REQUIRE(checkpoint.find("b") == nullptr);
}

TEST_CASE("CheckpointFolder: weights behind links are read, as in a download cache",
          "[checkpoint]") {
  const TemporaryFolder folder;
  const TemporaryFolder blobs;
  write_weights(blobs / "0123abcd", {{"a", 6.0F}});
  folder.write("config.json", "{}");
  std::filesystem::create_symlink(blobs / "0123abcd", folder / "model.safetensors");
  REQUIRE(first_value(CheckpointFolder(folder.path()).tensor("a", {2, 1})) == 6.0F);
}

TEST_CASE("CheckpointFolder: its lifetime keeps tensors and config after the object is gone",
          "[checkpoint]") {
  const ShardedFolder folder;
  std::shared_ptr<const void> lifetime;
  const Tensor* tensor = nullptr;
  const nlohmann::json* config = nullptr;
  {
    const CheckpointFolder checkpoint(folder.path());
    lifetime = checkpoint.lifetime();
    tensor = checkpoint.find("b");
    config = &checkpoint.config();
  }
  REQUIRE(first_value(*tensor) == 2.0F);  // AddressSanitizer or a fault tells if it was unmapped
  REQUIRE(tensor->name == "b");
  REQUIRE(config->at("n_layers") == 2);
}

TEST_CASE("CheckpointFolder: a copy shares the mapped weights", "[checkpoint]") {
  const ShardedFolder folder;
  const CheckpointFolder first(folder.path());
  const CheckpointFolder second = first;
  REQUIRE(second.find("a") == first.find("a"));
  REQUIRE(second.lifetime() == first.lifetime());
}

// ---- tensors that are not as expected

TEST_CASE("CheckpointFolder: another shape is refused with file, tensor and both shapes",
          "[checkpoint][refusal]") {
  const ShardedFolder folder;
  const CheckpointFolder checkpoint(folder.path());
  using Shape = std::vector<std::int64_t>;
  const auto [shape, text] = GENERATE(table<Shape, std::string>({
      {Shape{1, 2}, "[1, 2]"},
      {Shape{2}, "[2]"},
      {Shape{2, 1, 1}, "[2, 1, 1]"},
      {Shape{}, "[]"},
  }));
  const std::string message = refusal<std::runtime_error>(
      [&, &wanted = shape] { return checkpoint.tensor("b", std::span(wanted)).name; });
  REQUIRE_THAT(message, Contains("part-2.safetensors\"") && Contains("tensor \"b\"") &&
                            Contains("expected shape " + text + ", got [2, 1]"));
}

TEST_CASE("CheckpointFolder: a tensor that is not there is refused with file, tensor and shape",
          "[checkpoint][refusal]") {
  const ShardedFolder folder;
  const CheckpointFolder checkpoint(folder.path());
  const std::string message =
      refusal<std::runtime_error>([&] { return checkpoint.tensor("norm.weight", {64}).name; });
  REQUIRE_THAT(message, Contains("model.safetensors.index.json") &&
                            Contains("tensor \"norm.weight\"") &&
                            Contains("expected shape [64], got no such tensor"));
}

TEST_CASE("CheckpointFolder: without an index the message about an absent tensor names the weights",
          "[checkpoint][refusal]") {
  const TemporaryFolder folder;
  folder.write("config.json", "{}");
  write_weights(folder / "model.safetensors", {});
  const CheckpointFolder checkpoint(folder.path());
  const std::string message =
      refusal<std::runtime_error>([&] { return checkpoint.tensor("x", {1}).name; });
  REQUIRE_THAT(message, Contains("model.safetensors\"") && Contains("tensor \"x\""));
}

TEST_CASE("CheckpointFolder: weights of no floating-point type are refused with file and tensor",
          "[checkpoint][refusal]") {
  const TemporaryFolder folder;
  folder.write("config.json", "{}");
  const std::vector<std::int64_t> integers(2);
  SafetensorsWriter writer;
  writer.add("w", TensorType::I64, {2, 1}, std::as_bytes(std::span(integers)));
  writer.write(folder / "model.safetensors");
  const CheckpointFolder checkpoint(folder.path());
  CHECK(checkpoint.tensor("w", {2, 1}).type == TensorType::I64);
  const std::string message = refusal<std::runtime_error>([&] {
    return checkpoint.weight("w", {2, 1}).name;
  });
  CHECK_THAT(message, Contains("model.safetensors\"") && Contains("tensor \"w\"") &&
                          Contains("expected type F32, F16 or BF16, got I64"));
}

// ---- folders that are refused

TEST_CASE("CheckpointFolder: a missing folder is refused", "[checkpoint][refusal]") {
  const TemporaryFolder folder;
  REQUIRE_THAT(refusal_of(folder / "LLaDA-8B"),
               Contains("LLaDA-8B\"") && Contains("expected a folder") && Contains("got none"));
}

TEST_CASE("CheckpointFolder: a file in place of the folder is refused", "[checkpoint][refusal]") {
  const TemporaryFolder folder;
  const auto [name, hint] = GENERATE(table<std::string, std::string>({
      {"model.safetensors", "got a file: give the folder that it lies in"},
      {"llada-q4.gguf", "got a file of GGUF, which is not read"},
      {"consolidated.00.pth", "got a file of PyTorch, which is not read"},
      {"config.json", "got a file"},
  }));
  REQUIRE_THAT(refusal_of(folder.write(name, "")),
               Contains(name + "\"") && Contains("expected a folder") && Contains(hint));
}

TEST_CASE("CheckpointFolder: a missing config.json is refused", "[checkpoint][refusal]") {
  const ShardedFolder folder;
  std::filesystem::remove(folder / "config.json");
  REQUIRE_THAT(refusal_of(folder.path()), Contains("config.json\": missing"));
}

TEST_CASE("CheckpointFolder: a config.json that is no JSON object is refused",
          "[checkpoint][refusal]") {
  const ShardedFolder folder;
  const auto [text, reason] = GENERATE(table<std::string, std::string>({
      {"[1,2]", "expected a JSON object, got [1,2]"},
      {"null", "expected a JSON object, got null"},
      {"", "an empty file"},
      {"{\"n_layers\":", "cut short"},
      {"{\"rope_theta\":NaN}", "not JSON"},
      {"{\"n\":1,\"n\":2}", "key \"n\" stands twice"},
      {std::string(100'000, '['), "nested deeper than"},
  }));
  CAPTURE(text.substr(0, 40));
  folder.write("config.json", text);
  REQUIRE_THAT(refusal_of(folder.path()), Contains("config.json\"") && Contains(reason));
}

TEST_CASE("CheckpointFolder: a config.json above 100 MB is refused", "[checkpoint][refusal]") {
  const ShardedFolder folder;
  std::filesystem::resize_file(folder / "config.json", 100'000'001);  // sparse
  REQUIRE_THAT(refusal_of(folder.path()),
               Contains("config.json\"") && Contains("expected at most 100000000 bytes"));
}

TEST_CASE("CheckpointFolder: a folder without weights is refused", "[checkpoint][refusal]") {
  const TemporaryFolder folder;
  folder.write("config.json", "{}");
  folder.write("pytorch_model.bin", "");
  REQUIRE_THAT(refusal_of(folder.path()),
               Contains(folder.path().string()) &&
                   Contains("expected model.safetensors or model.safetensors.index.json") &&
                   Contains("got neither"));
}

TEST_CASE("CheckpointFolder: a dangling link is refused by its own name, index or not",
          "[checkpoint][refusal]") {
  const ShardedFolder folder;
  std::filesystem::create_symlink(folder / "gone", folder / "model.safetensors");
  REQUIRE_THAT(refusal_of(folder.path()),
               Contains("model.safetensors\": a link to a file that is missing"));
}

TEST_CASE("CheckpointFolder: damaged weights are refused by the name of their file",
          "[checkpoint][refusal]") {
  const ShardedFolder folder;
  folder.write("part-2.safetensors", "short");
  REQUIRE_THAT(refusal_of(folder.path()),
               Contains("part-2.safetensors\"") && Contains("expected at least 8 bytes, got 5"));
}

TEST_CASE("CheckpointFolder: a malformed index is refused", "[checkpoint][refusal]") {
  const ShardedFolder folder;
  const auto [text, reason] = GENERATE(table<std::string, std::string>({
      {"{", "not JSON"},
      {"[]", "expected a JSON object, got []"},
      {"{}", "weight_map: expected an object, got none"},
      {index_text("null"), "weight_map: expected an object, got null"},
      {index_text(R"(["part-1.safetensors"])"), "weight_map: expected an object, got ["},
      {index_text(R"({"a":"part-1.safetensors","a":"part-2.safetensors"})"), "\"a\" stands twice"},
      {index_text(R"({"a":3})"), "tensor \"a\": weight_map: expected the name of a file"},
      {index_text(R"({"a":null})"), "tensor \"a\": weight_map: expected the name of a file"},
  }));
  CAPTURE(text);
  folder.write("model.safetensors.index.json", text);
  REQUIRE_THAT(refusal_of(folder.path()),
               Contains("model.safetensors.index.json\"") && Contains(reason));
}

TEST_CASE("CheckpointFolder: a shard outside the folder is refused even if it exists",
          "[checkpoint][refusal]") {
  const TemporaryFolder outer;
  const std::filesystem::path inner = outer / "inner";
  std::filesystem::create_directory(inner);
  std::filesystem::create_directory(inner / "sub");
  outer.write("inner/config.json", "{}");
  for (const char* name : {"w.safetensors", "inner/sub/w.safetensors", "inner/sub\\w.safetensors",
                           "inner/w.safetensors"}) {
    write_weights(outer / name, {{"a", 1.0F}});
  }
  const std::string absolute = (outer / "w.safetensors").string();
  const auto [shard, shown] = GENERATE_COPY(table<std::string, std::string>({
      {"../w.safetensors", "../w.safetensors"},
      {absolute, "w.safetensors"},
      {"sub/w.safetensors", "sub/w.safetensors"},
      {"sub\\w.safetensors", "sub\\w.safetensors"},
      {"./w.safetensors", "./w.safetensors"},
      {std::string("w.safetensors\0x", 15), "w.safetensors\\x00x"},
      {"..", "\"..\""},
      {".", "\".\""},
      {"", "\"\""},
  }));
  nlohmann::json index;
  index["weight_map"]["a"] = shard;
  outer.write("inner/model.safetensors.index.json", index.dump());
  REQUIRE_THAT(refusal_of(inner),
               Contains("model.safetensors.index.json\"") && Contains("tensor \"a\"") &&
                   Contains("expected the name of a file in this folder") && Contains(shown));
}

TEST_CASE("CheckpointFolder: a missing shard is refused", "[checkpoint][refusal]") {
  const ShardedFolder folder;
  std::filesystem::remove(folder / "part-2.safetensors");
  REQUIRE_THAT(refusal_of(folder.path()),
               Contains("part-2.safetensors\": missing, the download is incomplete") &&
                   Contains("1 of the 2 files that \"model.safetensors.index.json\" names"));
}

TEST_CASE("CheckpointFolder: a tensor that is not in the shard of the index is refused",
          "[checkpoint][refusal]") {
  const ShardedFolder folder;
  folder.write_index(R"({"a":"part-1.safetensors","c":"part-2.safetensors"})");
  REQUIRE_THAT(refusal_of(folder.path()),
               Contains("part-2.safetensors\"") && Contains("tensor \"c\"") &&
                   Contains("expected here by \"model.safetensors.index.json\"") &&
                   Contains("got no such tensor"));
}

// ---- config.json

TEST_CASE("ConfigReader: values inside the range are given, its ends included", "[config]") {
  const auto config = nlohmann::json::parse(
      R"({"low":1,"high":32,"least":-9223372036854775808,"theta":500000.0,"whole":2,"yes":true,)"
      R"("no":false,"type":"llada"})");
  const ConfigReader reader(config, config_file);
  constexpr std::int64_t least = std::numeric_limits<std::int64_t>::min();
  REQUIRE(reader.integer("low", 1, 32) == 1);
  REQUIRE(reader.integer("high", 1, 32) == 32);
  REQUIRE(reader.integer("least", least, 0) == least);
  REQUIRE(reader.string("type") == "llada");
  REQUIRE(reader.optional_integer("low", 1, 32) == 1);
  REQUIRE(reader.optional_number("theta", 1.0, 500000.0) == 500000.0);
  REQUIRE(reader.optional_number("whole", 2.0, 3.0) == 2.0);
  REQUIRE(reader.optional_bool("yes") == true);
  REQUIRE(reader.optional_bool("no") == false);
  REQUIRE(reader.optional_string("type") == "llada");
}

TEST_CASE("ConfigReader: optional values are none where the key is absent or null", "[config]") {
  const auto config = nlohmann::json::parse(R"({"k":null})");
  const ConfigReader reader(config, config_file);
  const std::string key = GENERATE("k", "absent");
  REQUIRE(reader.optional_integer(key, 1, 2) == std::nullopt);
  REQUIRE(reader.optional_number(key, 1, 2) == std::nullopt);
  REQUIRE(reader.optional_bool(key) == std::nullopt);
  REQUIRE(reader.optional_string(key) == std::nullopt);
}

TEST_CASE("ConfigReader: other values are refused where the key is absent or null",
          "[config][refusal]") {
  const auto config = nlohmann::json::parse(R"({"null_key":null})");
  const ConfigReader reader(config, config_file);
  const std::string key = GENERATE("null_key", "absent_key");
  const auto refused = [&](const std::string& expected, auto read) {
    REQUIRE_THAT(refusal<std::runtime_error>(read),
                 Contains("some/config.json\"") && Contains("key \"" + key + "\"") &&
                     Contains("expected " + expected + ", got none"));
  };
  refused("an integer in [1, 32]", [&] { return reader.integer(key, 1, 32); });
  refused("a string", [&] { return reader.string(key); });
}

TEST_CASE("ConfigReader: an integer of another kind or outside the range is refused",
          "[config][refusal]") {
  const std::string value = GENERATE("0", "33", "-1", "2.0", "\"2\"", "true", "[2]", "[]",
                                     "9223372036854775808", "18446744073709551615");
  REQUIRE_THAT(
      refusal_of_value(
          value, [](const ConfigReader& reader) { return reader.optional_integer("k", 1, 32); }),
      Contains("some/config.json\"") && Contains("key \"k\"") &&
          Contains("expected an integer in [1, 32], got " + value));
}

TEST_CASE("ConfigReader: an integer that does not fit in 64 signed bits is refused, not wrapped",
          "[config][refusal]") {
  const auto read = [](const ConfigReader& reader) {
    return reader.integer("k", std::numeric_limits<std::int64_t>::min(),
                          std::numeric_limits<std::int64_t>::max());
  };
  REQUIRE_THAT(refusal_of_value("18446744073709551615", read),
               Contains("got 18446744073709551615"));
}

TEST_CASE("ConfigReader: a number of another kind or outside the range is refused",
          "[config][refusal]") {
  const std::string value = GENERATE("0.5", "5001", "-3", "\"10.0\"", "true", "[10.0]");
  const auto read = [](const ConfigReader& reader) {
    return reader.optional_number("k", 1.0, 5000.0);
  };
  REQUIRE_THAT(refusal_of_value(value, read),
               Contains("some/config.json\"") && Contains("key \"k\"") &&
                   Contains("expected a number in [1, 5000], got " + value));
}

TEST_CASE("ConfigReader: a NaN that a program put there is refused", "[config][refusal]") {
  const nlohmann::json config = {{"k", std::numeric_limits<double>::quiet_NaN()}};
  const ConfigReader reader(config, config_file);
  REQUIRE_THAT(refusal<std::runtime_error>([&] { return reader.optional_number("k", 0, 1); }),
               Contains("some/config.json\"") && Contains("key \"k\""));
}

TEST_CASE("ConfigReader: a truth value must be true or false", "[config][refusal]") {
  const std::string value = GENERATE("0", "1", "\"true\"", "[true]");
  const auto read = [](const ConfigReader& reader) { return reader.optional_bool("k"); };
  REQUIRE_THAT(refusal_of_value(value, read), Contains("some/config.json\"") &&
                                                  Contains("key \"k\"") &&
                                                  Contains("expected true or false, got " + value));
}

TEST_CASE("ConfigReader: a string must be a string", "[config][refusal]") {
  const auto [value, shown] = GENERATE(table<std::string, std::string>(
      {{"1", "1"}, {"[\"llada\"]", "[\"llada\"]"}, {"{}", "an object"}, {"false", "false"}}));
  const auto read = [](const ConfigReader& reader) { return reader.optional_string("k"); };
  REQUIRE_THAT(refusal_of_value(value, read), Contains("some/config.json\"") &&
                                                  Contains("key \"k\"") &&
                                                  Contains("expected a string, got " + shown));
}

TEST_CASE("ConfigReader: a key is looked for in objects only", "[config][refusal]") {
  const nlohmann::json config = nlohmann::json::array();
  const ConfigReader reader(config, config_file);
  REQUIRE_THAT(refusal<std::runtime_error>([&] { return reader.optional_bool("k"); }),
               Contains("some/config.json\"") && Contains("key \"k\"") &&
                   Contains("expected it in a JSON object, got []"));
}
