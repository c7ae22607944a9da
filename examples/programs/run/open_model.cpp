// SPDX-License-Identifier: Apache-2.0
#include "programs/run/open_model.hpp"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "dllm_cache/models/load_model.hpp"

namespace programs {

namespace models = dllm_cache::models;

std::shared_ptr<const models::TransformerModel> open_model(const std::filesystem::path& folder,
                                                           const models::ComputeOptions& options,
                                                           const models::TokenChoice& tokens) {
  auto model = models::load_model(folder, options, tokens);
  for (const std::string& warning : model->warnings)
    std::fprintf(stderr, "warning: %s\n", warning.c_str());
  return model;
}

bool is_dream(const std::filesystem::path& folder) {
  const nlohmann::json config = models::read_config(folder);
  const models::Family& family =
      models::family_of(models::ConfigReader(config, folder / "config.json"));
  return family.computation == models::Computation::Dream;
}

}  // namespace programs
