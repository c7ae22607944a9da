// SPDX-License-Identifier: Apache-2.0
#include "dllm_cache/models/tensor_names.hpp"

#include <catch2/catch.hpp>
#include <stdexcept>
#include <string>

#include "tests/support/refusal.hpp"

using namespace dllm_cache::models;

TEST_CASE("TensorNames: a layer's tensors are named by its number", "[models]") {
  CHECK(llada_names().of_layer(0) + llada_names().down == "model.transformer.blocks.0.ff_out");
  CHECK(dream_names().of_layer(27) + dream_names().query == "model.layers.27.self_attn.q_proj");
}

TEST_CASE("TensorNames: names are found by architecture", "[models]") {
  CHECK(&tensor_names("LLaDAModelLM") == &llada_names());
  CHECK(&tensor_names("DreamModel") == &dream_names());
  CHECK(tensor_names("SDARForCausalLM").key_norm == std::string("self_attn.k_norm"));
  CHECK_FALSE(tensor_names("A2DQwen2LMHeadModel").has_query_key_norms());
}

TEST_CASE("TensorNames: another architecture is refused by name", "[models][refusal]") {
  const std::string message = dllm_cache::testing::refusal<std::invalid_argument>(
      [] { return tensor_names("LlamaForCausalLM").head; });
  CHECK_THAT(message, Catch::Contains("architecture") && Catch::Contains("LlamaForCausalLM"));
}
