// SPDX-License-Identifier: Apache-2.0
#include "dllm_cache/models/checkpoint/quantisation.hpp"

#include <catch2/catch.hpp>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "dllm_cache/models/checkpoint/checkpoint_folder.hpp"
#include "programs/text/safetensors_writer.hpp"
#include "tests/support/refusal.hpp"
#include "tests/support/temporary_folder.hpp"

namespace {

using Catch::Matchers::Contains;
using dllm_cache::models::CheckpointFolder;
using dllm_cache::models::TensorType;
using dllm_cache::models::detail::ConfigQuantisation;
using dllm_cache::testing::refusal;
using dllm_cache::testing::TemporaryFolder;
using programs::SafetensorsWriter;

// A checkpoint of one tensor of that many bytes.
struct Folder : TemporaryFolder {
  Folder(const std::string& config, const std::string& name, TensorType type,
         std::vector<std::int64_t> shape) {
    write("config.json", config);
    SafetensorsWriter writer;
    std::size_t bytes = dllm_cache::models::bytes_of(type);
    for (const std::int64_t dimension : shape) bytes *= static_cast<std::size_t>(dimension);
    writer.add(name, type, std::move(shape), std::vector<std::byte>(bytes));
    writer.write(*this / "model.safetensors");
  }
};

std::string refusal_of(const TemporaryFolder& folder) {
  return refusal<std::runtime_error>([&] { return CheckpointFolder(folder.path()).path(); });
}

}  // namespace

TEST_CASE("Quantised checkpoints are refused with what config.json says about them",
          "[checkpoint][quantised]") {
  const auto [config, how] = GENERATE(table<std::string, std::string>({
      {R"({"quantization_config":{"quant_method":"gptq","bits":4,"group_size":128}})",
       "gptq, 4 bits, groups of 128"},
      {R"({"quantization_config":{"quant_method":"awq","w_bit":4,"q_group_size":64}})",
       "awq, 4 bits, groups of 64"},
      {R"({"quantization_config":{"quant_method":"bitsandbytes","load_in_4bit":true,)"
       R"("load_in_8bit":false,"bnb_4bit_quant_type":"nf4"}})",
       "bitsandbytes, 4 bits, nf4)"},
      {R"({"quantization_config":{"load_in_8bit":true,"bnb_4bit_quant_type":"fp4"}})", ": 8 bits)"},
      {R"({"quantization_config":{"quant_method":"fp8","fmt":"e4m3","weight_block_size":[128,1]}})",
       "fp8, e4m3"},
      {R"({"quantization_config":{"quant_method":"compressed-tensors","format":"pack-quantized",)"
       R"("config_groups":{"group_0":{"weights":{"num_bits":4,"type":"int","group_size":32}}}}})",
       "compressed-tensors, 4 bits, int, pack-quantized, groups of 32"},
      {R"({"compression_config":{"config_groups":{"group_0":{"weights":{"num_bits":8}}}}})",
       "compression_config: 8 bits"},
      {R"({"quantization_config":{"quant_method":"torchao","quant_type":{"default":)"
       R"({"_type":"Int4WeightOnlyConfig","_data":{}}}}})",
       "torchao, Int4WeightOnlyConfig"},
      {R"({"quantization_config":{"quant_method":"quanto","weights":"int8"}})", "quanto, int8"},
      {R"({"quantization":{"bits":4,"group_size":64}})", "MLX, 4 bits, groups of 64"},
      {R"({"quantization":{"bits":3,"group_size":64},"quantization_config":{"bits":3}})",
       "MLX, 3 bits"},
      {R"({"quantization_config":"fp8"})", "quantization_config: fp8"},
      {R"({"quantization_config":{"some":{"thing":[1,2]}}})", "(quantization_config)"},
      {R"({"quantization_config":["odd"]})", "(quantization_config)"},
      {R"({"quantization_config":true})", "quantization_config: true"},
      {R"({"quantization_config":{"quant_method":"a\u001b[2J"}})", "a\\x1b[2J"},
  }));
  CAPTURE(config);
  const Folder folder(config, "w", TensorType::F32, {1});
  CHECK_THAT(refusal_of(folder), Contains("config.json\": the checkpoint is quantised (") &&
                                     Contains(how) && Contains("F32, F16 and BF16 are read"));
}

TEST_CASE("A config.json that says that nothing is quantised is read", "[checkpoint][quantised]") {
  const std::string config = GENERATE(
      "{}", R"({"quantization_config":null})", R"({"quantization_config":{}})",
      R"({"quantization_config":false,"quantization":null,"compression_config":[]})",
      R"({"quantization_config":{"quant_method":null,"bits":null}})",
      R"({"quantization_config":{"quant_method":"none","bits":4}})", R"({"quantization":"None"})",
      R"({"quantization_config":{"quant_method":"bitsandbytes","load_in_4bit":false,)"
      R"("load_in_8bit":false,"bnb_4bit_quant_type":"fp4","llm_int8_threshold":6.0}})");
  CAPTURE(config);
  CHECK(refusal_of(Folder(config, "w", TensorType::F32, {1})).empty());
}

TEST_CASE("Quantised checkpoints are known by tensors beside the packed weights",
          "[checkpoint][quantised]") {
  const auto [name, how] = GENERATE(table<std::string, std::string>({
      {"blocks.0.q_proj.qweight", "GPTQ or AWQ"},
      {"blocks.0.q_proj.qzeros", "GPTQ or AWQ"},
      {"blocks.0.q_proj.weight.absmax", "bitsandbytes, 4 bits"},
      {"blocks.0.q_proj.SCB", "bitsandbytes, 8 bits"},
      {"blocks.0.q_proj.weight_scale", "a scale of its weight"},
      {"blocks.0.q_proj.weight_scale_inv", "fp8"},
      {"blocks.0.q_proj.weight_packed", "compressed-tensors"},
      {"qweight", "GPTQ or AWQ"},
  }));
  const Folder folder("{}", name, TensorType::F32, {1});
  CHECK_THAT(refusal_of(folder), Contains("model.safetensors\": the checkpoint is quantised") &&
                                     Contains("tensor \"" + name + "\"") && Contains(how));
}

TEST_CASE("Names that only resemble those of a quantisation are read", "[checkpoint][quantised]") {
  const std::string name = GENERATE("blocks.0.attn_norm.weight", "my_qweight", "qweight.weight",
                                    "absmaximum", "scales", "bias", "scale");
  CAPTURE(name);
  CHECK(refusal_of(Folder("{}", name, TensorType::F32, {1})).empty());
}

TEST_CASE("A weight whose type holds codes is called quantised, whatever its shape",
          "[checkpoint][quantised]") {
  const TensorType type =
      GENERATE(TensorType::I8, TensorType::U8, TensorType::I32, TensorType::U32,
               TensorType::F8_E4M3, TensorType::F8_E5M2, TensorType::F8_E8M0, TensorType::I16);
  const std::int64_t width = GENERATE(32, 4);
  const Folder folder("{}", "q_proj.weight", type, {32, width});
  const CheckpointFolder checkpoint(folder.path());  // of a buffer nobody asks
  CHECK(checkpoint.find("q_proj.weight") != nullptr);
  CHECK_THAT(refusal<std::runtime_error>([&] {
               return checkpoint.weight("q_proj.weight", {32, 32}).name;
             }),
             Contains("model.safetensors\": the checkpoint is quantised") &&
                 Contains("tensor \"q_proj.weight\" of type " + std::string(name_of(type))) &&
                 Contains("F32, F16 and BF16 are read"));
}

TEST_CASE("Packed types that are not read are called quantised in the header",
          "[safetensors][quantised]") {
  const std::string type = GENERATE("F4", "F6_E2M3", "F6_E3M2", "F8_E4M3FN", "I4", "U4", "NF4");
  const std::string header =
      R"({"w":{"dtype":")" + type + R"(","shape":[16],"data_offsets":[0,8]}})";
  const TemporaryFolder folder;
  const auto path =
      folder.write("w.safetensors", std::string(1, static_cast<char>(header.size())) +
                                        std::string(7, '\0') + header + std::string(8, 'x'));
  CHECK_THAT(refusal<std::runtime_error>(
                 [&] { return dllm_cache::models::SafetensorsFile(path).tensors().size(); }),
             Contains("w.safetensors\": the checkpoint is quantised") &&
                 Contains("tensor \"w\" of type \"" + type + "\""));
}
