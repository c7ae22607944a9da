// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/dllm_cache.hpp"
#include "dllm_cache/models/load_model.hpp"
#include "dllm_cache/policies/policy_table.hpp"

namespace golden {

using dllm_cache::Index;
namespace models = dllm_cache::models;

inline std::filesystem::path folder() { return DLLM_CACHE_TEST_DATA; }

/// Names of the cases whose folders begin with `prefix`, sorted.
inline std::vector<std::string> cases(const std::string& prefix) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder()))
    if (entry.path().filename().string().rfind(prefix, 0) == 0)
      names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

inline std::vector<std::int64_t> integers(const models::Tensor& tensor) {
  const auto read = [&]<class T>(T) {
    std::vector<T> all(tensor.bytes.size() / sizeof(T));
    if (!all.empty()) std::memcpy(all.data(), tensor.bytes.data(), tensor.bytes.size());
    return std::vector<std::int64_t>(all.begin(), all.end());
  };
  if (tensor.type == models::TensorType::I32) return read(std::int32_t{});
  if (tensor.type != models::TensorType::I64)
    throw std::runtime_error(tensor.name + ": expected integers");
  return read(std::int64_t{});
}

/// Every backend of this build.
inline std::vector<models::Backend> backends() {
  std::vector<models::Backend> all{models::Backend::Eigen};
  if (models::has_onednn) all.push_back(models::Backend::OneDnn);
  return all;
}

/// The object in a JSON file, empty where there is no such file.
inline nlohmann::json read_request(const std::filesystem::path& path) {
  std::ifstream file(path);
  return file ? nlohmann::json::parse(file) : nlohmann::json::object();
}

/// A folder `forward-*`: one forward over all rows, and what each layer of the reference gave.
struct Forward {
  explicit Forward(const std::string& name)
      : request(read_request(folder() / name / "case.json")),
        expected(folder() / name / "expected.safetensors"),
        model(request.value("model", name.substr(std::string("forward-").size()))) {}

  [[nodiscard]] std::shared_ptr<const models::TransformerModel> load(
      models::Backend backend) const {
    return models::load_model(folder() / "models" / model, {.backend = backend});
  }
  [[nodiscard]] Index rows() const {
    return static_cast<Index>(expected.at("input_ids").shape.at(1));
  }
  [[nodiscard]] Index batch() const {
    return static_cast<Index>(expected.at("input_ids").shape.at(0));
  }
  [[nodiscard]] std::vector<std::int32_t> tokens(Index i) const {
    const std::vector<std::int64_t> all = integers(expected.at("input_ids"));
    return {all.begin() + i * rows(), all.begin() + (i + 1) * rows()};
  }
  /// The part of sequence i of a tensor `[batch, ...]`.
  [[nodiscard]] std::vector<float> part(const std::string& tensor, Index i) const {
    const std::vector<float> all = models::read_floats(expected.at(tensor));
    const auto size = static_cast<Index>(all.size()) / batch();
    return {all.begin() + i * size, all.begin() + (i + 1) * size};
  }
  /// All rows are live: with block-causal attention none may lie behind the active block.
  [[nodiscard]] dllm_cache::SequenceShape shape() const {
    return {.response = rows(),
            .attention_block = request.value("attention_block", Index{0}),
            .attention_phase = request.value("attention_phase", Index{0})};
  }
  [[nodiscard]] std::optional<Index> prediction_shift() const {
    if (!request.contains("prediction_shift")) return std::nullopt;
    return request.at("prediction_shift").get<Index>();
  }

  nlohmann::json request;
  models::SafetensorsFile expected;
  std::string model;  ///< The folder in `models/`.
};

/// One folder of the golden cases: the request, and what the public reference answered.
struct Case {
  explicit Case(const std::string& name)
      : request(read_request(folder() / name / "case.json")),
        expected(folder() / name / "expected.safetensors") {}

  [[nodiscard]] std::shared_ptr<const models::TransformerModel> load(
      models::Backend backend = models::ComputeOptions{}.backend) const {
    return models::load_model(folder() / "models" / request.at("model").get<std::string>(),
                              {.backend = backend});
  }
  [[nodiscard]] Index batch() const { return static_cast<Index>(request.at("prompt_ids").size()); }
  [[nodiscard]] std::vector<std::int32_t> prompt(Index i) const {
    return request.at("prompt_ids").at(static_cast<std::size_t>(i));
  }
  [[nodiscard]] Index response() const { return request.at("gen_length"); }

  [[nodiscard]] bool dream() const { return request.contains("alg"); }

  /// Decoding options of the case, of whichever reference.
  [[nodiscard]] dllm_cache::DecodingOptions options() const {
    dllm_cache::DecodingOptions options;
    options.response = response();
    options.block_length = request.value("block_length", Index{0});
    options.steps = request.value("steps", Index{0});
    options.early_stop = request.value("early_stop", false);
    options.end_drops_rows = request.value("eos_truncates", false);
    options.threshold_alpha = request.value("confidence_alpha", 0.0);
    options.window = request.value("window_length", Index{0});
    if (given("certainty_sigma")) options.certainty_sigma = request.at("certainty_sigma");
    options.guidance_scale = request.value("cfg_scale", 0.0);
    if (has_cache())
      options.guidance_interval = request.at("cache").value("cfg_interval_steps", Index{1});
    if (dream()) {
      const std::string alg = request.at("alg");
      options.sampling = dllm_cache::Sampling::Categorical;
      options.commit = dllm_cache::TimestepCommit{request.value("eps", 1e-3)};
      options.confidence = alg == "entropy"       ? dllm_cache::Confidence::NegativeEntropy
                           : alg == "topk_margin" ? dllm_cache::Confidence::Margin
                                                  : dllm_cache::Confidence::Probability;
    }
    if (given("tokens_per_step"))
      options.commit = dllm_cache::FixedCommit{request.at("tokens_per_step").get<Index>()};
    if (given("threshold"))
      options.commit = dllm_cache::ThresholdCommit{request.at("threshold").get<double>()};
    return options;
  }
  [[nodiscard]] dllm_cache::AnyPolicy policy() const {
    const std::string kind = request.value("cache_kind", has_cache() ? "dllm-cache" : "none");
    if (kind == "prefix") return dllm_cache::PrefixCachePolicy{};
    if (kind == "dual") return dllm_cache::DualCachePolicy{};
    if (kind == "dkv") return dllm_cache::DkvDecodePolicy{request.at("refresh_interval")};
    if (kind == "none") return dllm_cache::NoCache{};
    if (kind != "dllm-cache") return table_policy(kind);
    const nlohmann::json& cache = request.at("cache");
    return dllm_cache::DllmCachePolicy{.prompt_interval = cache.at("prompt_interval_steps"),
                                       .response_interval = cache.at("gen_interval_steps"),
                                       .ratio = cache.at("transfer_ratio")};
  }
  /// The policy of that name with the options that the request has; null is "none".
  [[nodiscard]] dllm_cache::AnyPolicy table_policy(const std::string& name) const {
    const dllm_cache::PolicyTable table = dllm_cache::bundled_policies();
    dllm_cache::OptionValues values;
    for (const dllm_cache::OptionInfo& option : table.at(name).options)
      if (const auto found = request.find(option.key); found != request.end())
        values[option.key] = found->is_null()     ? "none"
                             : found->is_string() ? found->get<std::string>()
                             : found->is_array()
                                 ? dllm_cache::option_text(dllm_cache::RowLists{
                                       found->get<std::vector<std::vector<Index>>>()})
                                 : found->dump();
    return table.make(name, values);
  }
  /// Rows in all forwards of the reference; 0: not told.
  [[nodiscard]] Index reference_rows() const {
    Index rows = 0;
    if (request.contains("rows_per_forward"))
      for (const Index one : request.at("rows_per_forward").get<std::vector<Index>>()) rows += one;
    return rows;
  }
  /// The reference's answer to prompt `i`; some cases hold the prompt in front of it.
  [[nodiscard]] std::vector<std::int32_t> answer(Index i) const {
    const models::Tensor& tensor = expected.at("final_tokens");
    const std::vector<std::int64_t> all = integers(tensor);
    const auto columns = static_cast<Index>(tensor.shape.at(1));
    const auto end = all.begin() + (i + 1) * columns;
    return {end - response(), end};
  }

  [[nodiscard]] bool has_cache() const { return given("cache"); }
  /// Whether a key is there and not null.
  [[nodiscard]] bool given(const char* key) const {
    return request.contains(key) && !request.at(key).is_null();
  }

  nlohmann::json request;
  models::SafetensorsFile expected;
};

}  // namespace golden
