// SPDX-License-Identifier: Apache-2.0
#include "dllm_cache/models/tensor_names.hpp"

#include <catch2/catch.hpp>
#include <string>

using namespace dllm_cache::models;

TEST_CASE("TensorNames: a layer's tensors are named by its number", "[models]") {
  CHECK(llada_names().of_layer(0) + llada_names().down == "model.transformer.blocks.0.ff_out");
  CHECK(llama_names().of_layer(27) + llama_names().query == "model.layers.27.self_attn.q_proj");
}
