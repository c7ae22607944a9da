// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>

#include "dllm_cache/decoding/decoding_counts.hpp"
#include "dllm_cache/models/compute/backend.hpp"
#include "programs/options/settings.hpp"

namespace programs {

/// Everything that decides how tokens are decoded, `gen_length` apart, under the keys of a request,
/// defaults included; `model` says how the model is decoded. Null: gen_length.
[[nodiscard]] nlohmann::ordered_json decoding_json(const OptionValues& decoding,
                                                   const ModelDecoding& model);

/// The policy's name as `policy`, its options as `policy_options`, defaults included, and the name
/// of the preset as `preset`, null where none was named.
[[nodiscard]] nlohmann::ordered_json policy_json(const PolicyChoice& choice);

/// `backend`, `precision` and `features`.
[[nodiscard]] nlohmann::ordered_json compute_json(const dllm_cache::models::ComputeOptions& compute,
                                                  FeatureType features);

/// `flow`, `value`, `update` and `head`.
[[nodiscard]] nlohmann::ordered_json rows_json(const dllm_cache::DecodingCounts& rows);

}  // namespace programs
