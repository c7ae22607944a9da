// SPDX-License-Identifier: Apache-2.0
#include <stdexcept>

#include "dllm_cache/models/load_model.hpp"
#include "tests/fuzz/targets.hpp"
#include "tests/support/temporary_folder.hpp"

namespace dllm_cache::fuzz {
namespace {

std::string_view text(Input input) {
  return {reinterpret_cast<const char*>(input.data()), input.size()};
}

// The weights of a tiny LLaDA, waiting for a config.json.
class Checkpoint {
 public:
  Checkpoint() {
    std::filesystem::create_symlink(
        std::filesystem::path(DLLM_CACHE_TEST_DATA) / "models" / "llada-tiny" / "model.safetensors",
        m_folder / "model.safetensors");
  }
  const std::filesystem::path& with(Input config) {
    m_folder.write("config.json", text(config));
    return m_folder.path();
  }

 private:
  testing::TemporaryFolder m_folder;
};

// Two shards with a tensor each.
class Shards {
 public:
  Shards() {
    m_folder.write("config.json", "{}");
    for (const char* name : {"a", "b"}) m_folder.write(name, shard(name));
  }
  const std::filesystem::path& with(Input index) {
    m_folder.write("model.safetensors.index.json", text(index));
    return m_folder.path();
  }

 private:
  static std::string shard(const std::string& tensor) {
    const std::string header =
        "{\"" + tensor + "\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}";
    return std::string(1, static_cast<char>(header.size())) + std::string(7, '\0') + header + "x";
  }
  testing::TemporaryFolder m_folder;
};

}  // namespace

void config(Input input) {
  static Checkpoint checkpoint;
  const std::filesystem::path& folder = checkpoint.with(input);
  allow<std::runtime_error>(folder.string(), [&] {
    const auto model = models::load_model(folder, {.backend = models::Backend::Eigen});
    must(model->config.layers >= 1, "a model has layers");
  });
}

void index(Input input) {
  static Shards shards;
  const std::filesystem::path& folder = shards.with(input);
  allow<std::runtime_error>(folder.string(), [&] {
    const models::CheckpointFolder checkpoint(folder);
    for (const char* name : {"a", "b"}) {
      const models::Tensor* tensor = checkpoint.find(name);
      must(tensor == nullptr || tensor->bytes.size() == 1, "a tensor is the shard's");
    }
  });
}

}  // namespace dllm_cache::fuzz
