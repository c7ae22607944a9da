// SPDX-License-Identifier: Apache-2.0
#include "programs/run/open_model.hpp"

#include <nlohmann/json.hpp>

#include "dllm_cache/models/checkpoint/json_file.hpp"
#include "dllm_cache/models/load_model.hpp"

namespace programs {

std::shared_ptr<const dllm_cache::models::TransformerModel> open_model(
    const std::filesystem::path& folder, const dllm_cache::models::ComputeOptions& options,
    const TokenSettings& tokens, Warnings& warnings) {
  auto model = dllm_cache::models::load_model(
      folder, options, {.mask = tokens.mask, .end = tokens.ends, .end_alone = tokens.ends_alone});
  for (const std::string& text : model->warnings) warnings.say(text);
  return model;
}

dllm_cache::models::ComputeOptions options_for(dllm_cache::models::ComputeOptions options,
                                               const dllm_cache::AnyPolicy& policy) {
  // The width depends on no shape; this one has every row that an option may name.
  options.verify_rank = policy.traits({.prompt = 1 << 30, .response = 1 << 30}).verify_width;
  return options;
}

ModelDecoding decoding_of(const std::filesystem::path& folder) {
  namespace models = dllm_cache::models;
  const nlohmann::json config = models::read_json_object(folder / "config.json");
  const models::ConfigReader reader(config, folder / "config.json");
  const models::Family& family = models::family_of(reader);
  return {.decoder = std::string(family.decoder),
          .attention_block = models::attention_block(reader, family)};
}

}  // namespace programs
