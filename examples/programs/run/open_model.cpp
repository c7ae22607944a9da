// SPDX-License-Identifier: Apache-2.0
#include "programs/run/open_model.hpp"

#include <nlohmann/json.hpp>

#include "dllm_cache/models/checkpoint/json_file.hpp"
#include "dllm_cache/models/load_model.hpp"

namespace programs {

std::shared_ptr<const dllm_cache::models::TransformerModel> open_model(
    const std::filesystem::path& folder, const dllm_cache::models::ComputeOptions& options,
    const TokenSettings& tokens, Warnings& warnings) {
  auto model =
      dllm_cache::models::load_model(folder, options, {.mask = tokens.mask, .ends = tokens.ends});
  for (const std::string& text : model->warnings) warnings.say(text);
  return model;
}

bool is_dream(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / "config.json";
  const nlohmann::json config = dllm_cache::models::read_json_object(file);
  return dllm_cache::models::family_of({config, file}) == dllm_cache::models::Family::Dream;
}

}  // namespace programs
