// SPDX-License-Identifier: Apache-2.0
// What downloads leave: files cut short, missing or replaced, and folders of other formats.
#include <catch2/catch.hpp>
#include <cstddef>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "dllm_cache/models/checkpoint/checkpoint_folder.hpp"
#include "tests/support/refusal.hpp"
#include "tests/support/temporary_folder.hpp"

namespace {

using Catch::Matchers::Contains;
using dllm_cache::models::CheckpointFolder;
using dllm_cache::testing::refusal;
using dllm_cache::testing::TemporaryFolder;
namespace models = dllm_cache::models;

const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize ";

// A file of one F32 tensor of 4 elements.
std::string weights(const std::string& name) {
  const std::string header =
      "{\"" + name + R"(":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})";
  return std::string(1, static_cast<char>(header.size())) + std::string(7, '\0') + header +
         std::string(16, '\0');
}

// A checkpoint of three shards with a tensor each.
struct Folder : TemporaryFolder {
  Folder() {
    write("config.json", R"({"model_type":"llada"})");
    write("model.safetensors.index.json",
          R"({"weight_map":{"a":"a.safetensors","b":"b.safetensors","c":"c.safetensors"}})");
    for (const char* name : {"a", "b", "c"})
      write(std::string(name) + ".safetensors", weights(name));
  }
  void remove(const std::string& name) const { std::filesystem::remove(*this / name); }
};

std::string refusal_of(const std::filesystem::path& folder) {
  return refusal<std::runtime_error>([&] { return CheckpointFolder(folder).path(); });
}

}  // namespace

TEST_CASE("Downloads: a file that is cut short is named with both sizes",
          "[checkpoint][download]") {
  const Folder folder;
  const std::string whole = weights("b");
  REQUIRE(refusal_of(folder.path()).empty());
  const std::size_t size =
      GENERATE_COPY(whole.size() - 1, whole.size() - 16, whole.size() - 17, std::size_t{9});
  folder.write("b.safetensors", whole.substr(0, size));
  CHECK_THAT(
      refusal_of(folder.path()),
      Contains("b.safetensors\": the file is cut short") &&
          Contains("expected " +
                   std::to_string(size + 17 > whole.size() ? whole.size() : whole.size() - 16) +
                   " bytes, got " + std::to_string(size)) &&
          Contains("the download is incomplete"));
}

TEST_CASE("Downloads: what stands in place of a file is called by its name",
          "[checkpoint][download]") {
  const auto [content, reason] = GENERATE(table<std::string, std::string>({
      {"", "an empty file"},
      {pointer + "4968745592\n",
       "a Git LFS pointer in place of the file, which must be downloaded "
       "itself (4968745592 bytes)"},
      {"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"},
      {"<!DOCTYPE html><html>404</html>", "a web page"},
      {"\xEF\xBB\xBF\n <HTML><body>", "a web page"},
      {"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", "a web page"},
      {"GGUF" + std::string("\3\0\0\0more of it", 14), "got a GGUF file"},
      {std::string("PK\x03\x04\0\0\x08\x08\0\0\0", 11), "got a zip archive"},
  }));
  const std::string name = GENERATE("config.json", "model.safetensors.index.json", "c.safetensors");
  CAPTURE(name);
  const Folder folder;
  folder.write(name, content);
  CHECK_THAT(refusal_of(folder.path()), Contains(name + "\": ") && Contains(reason));
}

TEST_CASE("Downloads: a file that was made before its bytes came is incomplete",
          "[checkpoint][download]") {
  const Folder folder;
  folder.write("a.safetensors", std::string(200, '\0'));
  CHECK_THAT(refusal_of(folder.path()),
             Contains("a.safetensors\"") && Contains("the download is incomplete"));
}

TEST_CASE("Downloads: JSON that is cut short is called so", "[checkpoint][download]") {
  const std::string name = GENERATE("config.json", "model.safetensors.index.json");
  const Folder folder;
  const std::string whole =
      R"({"model_type":"llada","weight_map":{"a":"a.safetensors"},"n":[12,1.5,true]})";
  folder.write(name, whole);
  REQUIRE(refusal_of(folder.path()).empty());
  for (std::size_t size = 1; size < whole.size(); ++size) {
    CAPTURE(size);
    folder.write(name, whole.substr(0, size));
    CHECK_THAT(
        refusal_of(folder.path()),
        Contains(name + "\": not JSON at byte " + std::to_string(size)) && Contains("cut short"));
  }
  folder.write(name, R"({"n":1,})");
  CHECK_THAT(refusal_of(folder.path()), Contains("not JSON at byte") && !Contains("cut short"));
}

TEST_CASE("Downloads: missing shards are counted", "[checkpoint][download]") {
  const Folder folder;
  folder.remove("b.safetensors");
  CHECK_THAT(refusal_of(folder.path()),
             Contains("b.safetensors\": missing, the download is incomplete: 1 of the 3 files that "
                      "\"model.safetensors.index.json\" names is missing"));
  // Before the others are opened.
  folder.write("a.safetensors", "");
  folder.remove("c.safetensors");
  CHECK_THAT(refusal_of(folder.path()),
             Contains("b.safetensors\": missing") && Contains("2 of the 3 files") &&
                 Contains("are missing (\"b.safetensors\", \"c.safetensors\")"));
}

TEST_CASE("Downloads: what is unfinished is named beside the file that is missing",
          "[checkpoint][download]") {
  const Folder folder;
  const std::string place = GENERATE("", ".cache/huggingface/download");
  std::filesystem::create_directories(folder / place);
  const std::string name = GENERATE("b.safetensors.incomplete", "b.safetensors.part");
  folder.write((std::filesystem::path(place) / name).string(), "x");
  SECTION("a shard") { folder.remove("b.safetensors"); }
  SECTION("a link to a blob") {
    folder.remove("b.safetensors");
    std::filesystem::create_symlink("blob", folder / "b.safetensors");
  }
  SECTION("all weights") { folder.remove("model.safetensors.index.json"); }
  SECTION("config.json") {
    folder.remove("config.json");
    CHECK_THAT(refusal_of(folder.path()), !Contains("no index"));
  }
  CHECK_THAT(refusal_of(folder.path()), Contains("unfinished downloads: \"" + name + "\""));
}

TEST_CASE("Downloads: weights of other formats are named", "[checkpoint][download]") {
  const TemporaryFolder folder;
  const auto [name, format] = GENERATE(table<std::string, std::string>({
      {"pytorch_model.bin", "not read (PyTorch)"},
      {"consolidated.00.pth", "not read (PyTorch)"},
      {"llada-8b-q4_k_m.gguf", "not read (GGUF)"},
      {"model.onnx", "not read"},
      {"model-00001-of-00006.safetensors", "which no index in this folder names"},
      {"consolidated.safetensors", "which no index in this folder names"},
  }));
  folder.write(name, "x");
  const std::string found = "found \"" + name + "\"";
  CHECK_THAT(refusal_of(folder.path()), Contains("config.json\": missing") && Contains(found) &&
                                            Contains("safetensors files"));
  folder.write("config.json", "{}");
  CHECK_THAT(refusal_of(folder.path()),
             Contains("expected model.safetensors or model.safetensors.index.json, got neither") &&
                 Contains(found) && Contains(format));
}

TEST_CASE("Downloads: config.json alone says what is wrong with its folder",
          "[checkpoint][download]") {
  const TemporaryFolder folder;
  const auto read = [](const std::filesystem::path& path) {
    return refusal<std::runtime_error>([&] { return models::read_json_object(path).size(); });
  };
  CHECK_THAT(read(folder / "absent/config.json"),
             Contains("absent\": expected a folder") && Contains("got none"));
  folder.write("a.gguf", "x");
  CHECK_THAT(read(folder / "a.gguf/config.json"), Contains("a.gguf\"") && Contains("of GGUF"));
  CHECK_THAT(read(folder / "config.json"), Contains("missing") && Contains("found \"a.gguf\""));
}

TEST_CASE("Downloads: a folder of Hugging Face's cache points to its snapshots",
          "[checkpoint][download]") {
  const TemporaryFolder folder;
  std::filesystem::create_directories(folder / "snapshots/0123");
  CHECK_THAT(refusal_of(folder.path()), Contains("/snapshots\""));
  std::filesystem::create_directories(folder / "blobs");
  folder.write("blobs/77.incomplete", "x");
  folder.write("snapshots/0123/config.json", "{}");
  CHECK_THAT(refusal_of(folder / "snapshots/0123"),
             Contains("unfinished downloads: \"77.incomplete\""));
}

// ---- tensors that no loader asks for

TEST_CASE("CheckpointFolder: what was not read is known by name", "[checkpoint]") {
  const Folder folder;
  folder.write("c.safetensors", weights("unlisted"));
  folder.write("model.safetensors.index.json",
               R"({"weight_map":{"a":"a.safetensors","b":"b.safetensors",)"
               R"("unlisted":"c.safetensors"}})");
  const CheckpointFolder checkpoint(folder.path());
  using Names = std::vector<std::string>;
  CHECK(checkpoint.unread() == Names{"a", "b", "unlisted"});
  CHECK(checkpoint.find("a") != nullptr);
  CHECK_THROWS_AS(checkpoint.weight("a", {2, 2}), std::runtime_error);
  CHECK(checkpoint.unread() == Names{"a", "b", "unlisted"});
  const CheckpointFolder copy = checkpoint;
  CHECK(copy.weight("a", {4}).name == "a");
  CHECK(checkpoint.tensor("b", {4}).name == "b");
  CHECK(checkpoint.unread() == Names{"unlisted"});
  CHECK(copy.unread() == Names{"unlisted"});
}

TEST_CASE("CheckpointFolder: tensors that the index leaves out are not read", "[checkpoint]") {
  const Folder folder;
  folder.write("model.safetensors.index.json", R"({"weight_map":{"a":"a.safetensors"}})");
  const std::string header = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                             R"("z":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})";
  folder.write("a.safetensors", std::string(1, static_cast<char>(header.size())) +
                                    std::string(7, '\0') + header + "xx");
  const CheckpointFolder checkpoint(folder.path());
  CHECK(checkpoint.tensor("a", {1}).name == "a");
  CHECK(checkpoint.unread() == std::vector<std::string>{"z"});
}
