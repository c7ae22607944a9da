// SPDX-License-Identifier: Apache-2.0
// Checkpoints as they come: keys, spellings, names and special tokens of config.json.
#include "dllm_cache/models/load_model.hpp"

#include <catch2/catch.hpp>
#include <fstream>
#include <string>
#include <vector>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "tests/support/random_checkpoint.hpp"
#include "tests/support/refusal.hpp"
#include "tests/support/temporary_folder.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;
using Catch::Contains;
using Json = nlohmann::json;
using Tokens = std::vector<std::int32_t>;

namespace {

Json small_llada() {
  return {{"model_type", "llada"}, {"d_model", 32},         {"n_heads", 4},
          {"n_kv_heads", 2},       {"mlp_hidden_size", 48}, {"n_layers", 2},
          {"vocab_size", 40},      {"mask_token_id", 39},   {"rope_theta", 500000.0}};
}
// The same model under Llama's names.
Json renamed_llada() {
  return {{"model_type", "llada"},    {"hidden_size", 32},       {"num_attention_heads", 4},
          {"num_key_value_heads", 2}, {"intermediate_size", 48}, {"num_hidden_layers", 2},
          {"vocab_size", 40},         {"mask_token_id", 39},     {"rope_theta", 500000.0},
          {"rms_norm_eps", 1e-5}};
}
Json small_dream() {
  Json config = renamed_llada();
  config["model_type"] = "Dream";
  return config;
}

// A folder with random weights, whose config.json may be written anew.
struct Checkpoint {
  explicit Checkpoint(const Json& config, float bias_deviation = 0.1F) {
    const RandomCheckpoint written(path(), config, bias_deviation);
  }
  [[nodiscard]] std::filesystem::path path() const { return folder / "model"; }
  void write(const char* name, const Json& json) const { std::ofstream(path() / name) << json; }
  [[nodiscard]] std::shared_ptr<const models::TransformerModel> load(
      const models::TokenChoice& tokens = {}) const {
    return models::load_model(path(), {.backend = models::Backend::Eigen}, tokens);
  }
  // Loads it with these keys in place of some of the written ones; null takes a key away.
  [[nodiscard]] std::shared_ptr<const models::TransformerModel> load_with(
      Json config, const Json& changes) const {
    for (const auto& [key, value] : changes.items()) config[key] = value;
    write("config.json", config);
    return load();
  }
  [[nodiscard]] std::string refusal_with(const Json& config, const Json& changes) const {
    return refusal<std::runtime_error>([&] { static_cast<void>(load_with(config, changes)); });
  }
  TemporaryFolder folder;
};

Tokens answer(const std::shared_ptr<const models::TransformerModel>& model) {
  models::TransformerRunner runner(model, 1);
  DenoisingLoop loop(runner);
  loop.add(Tokens{3, 1, 4, 1, 5, 9, 2, 6}, {.response = 12, .block_length = 6}, NoCache{});
  loop.run();
  const auto response = loop.sequence(0).response();
  return {response.begin(), response.end()};
}

}  // namespace

TEST_CASE("load_model: the base of the rotary embedding may stand in rope_parameters",
          "[load_model]") {
  for (const Json& config : {small_llada(), small_dream()}) {
    const Checkpoint checkpoint(config);
    const Tokens expected = answer(checkpoint.load());
    const auto model = checkpoint.load_with(
        config, {{"rope_theta", nullptr},
                 {"rope_parameters", {{"rope_theta", 500000.0}, {"rope_type", "default"}}}});
    CHECK(model->config.rotary_theta == 500000.0);
    CHECK(answer(model) == expected);
    CHECK(model->warnings.empty());
    // Both places may say it, but not differ.
    CHECK_NOTHROW(checkpoint.load_with(config, {{"rope_parameters", {{"rope_theta", 500000}}}}));
    CHECK_THAT(checkpoint.refusal_with(config, {{"rope_parameters", {{"rope_theta", 10000}}}}),
               Contains("rope_parameters") && Contains("10000"));
  }
}

TEST_CASE("load_model: rope_scaling of type default is none", "[load_model]") {
  const Checkpoint checkpoint(small_dream());
  const Tokens expected = answer(checkpoint.load());
  for (const Json& scaling :
       {Json(nullptr), Json{{"type", "default"}}, Json{{"rope_type", "default"}},
        Json{{"type", "default"}, {"rope_type", "default"}}, Json::object()})
    CHECK(answer(checkpoint.load_with(small_dream(), {{"rope_scaling", scaling}})) == expected);
}

TEST_CASE("load_model: linear and llama3 scaling are computed", "[load_model]") {
  using models::RotaryScaling;
  const Checkpoint checkpoint(small_dream());
  const Tokens plain = answer(checkpoint.load());
  const auto linear =
      checkpoint.load_with(small_dream(), {{"rope_scaling", {{"type", "linear"}, {"factor", 8}}}});
  CHECK(linear->config.rotary_scaling ==
        RotaryScaling{.rule = RotaryScaling::Rule::Linear, .factor = 8.0});
  CHECK(answer(linear) != plain);
  const auto llama3 =
      checkpoint.load_with(small_dream(), {{"rope_theta", nullptr},
                                           {"rope_parameters",
                                            {{"rope_theta", 500000.0},
                                             {"rope_type", "llama3"},
                                             {"factor", 8.0},
                                             {"low_freq_factor", 1.0},
                                             {"high_freq_factor", 4.0},
                                             {"original_max_position_embeddings", 8192}}}});
  CHECK(llama3->config.rotary_scaling ==
        RotaryScaling{RotaryScaling::Rule::Llama3, 8.0, 1.0, 4.0, 8192.0});
}

TEST_CASE("RotaryScaling: frequencies are those of the public formulas", "[load_model]") {
  // Of 16 dimensions and base 500000; computed in Python from the formulas of transformers'
  // modeling_rope_utils.py, in double.
  const std::vector<double> plain{1,
                                  0.193922745,
                                  0.0376060309,
                                  0.00729266474,
                                  0.00141421356,
                                  0.000274248176,
                                  5.3182959e-05,
                                  1.03133854e-05};
  const std::vector<double> llama3{1,
                                   0.193922745,
                                   0.0376060309,
                                   0.00729266474,
                                   0.000524846161,
                                   3.4281022e-05,
                                   6.64786987e-06,
                                   1.28917317e-06};
  using models::RotaryScaling;
  const RotaryScaling scaling{RotaryScaling::Rule::Llama3, 8.0, 1.0, 4.0, 8192.0};
  for (std::size_t i = 0; i < plain.size(); ++i) {
    CHECK(scaling.apply(static_cast<float>(plain[i])) == Approx(llama3[i]).epsilon(1e-5));
    CHECK(RotaryScaling{.rule = RotaryScaling::Rule::Linear, .factor = 4.0}.apply(
              static_cast<float>(plain[i])) == Approx(plain[i] / 4.0).epsilon(1e-6));
  }
  // And the embedding turns by them: position 1 by the frequency itself.
  models::ThreadTeam team(1);
  models::RotaryEmbedding rotary(16, 500000.0, scaling);
  std::vector<float> x(16, 0.0F);
  x[4] = 1.0F;  // turns with dimension 12
  const std::vector<std::int32_t> positions{1};
  rotary.apply(positions, {x.data(), 1, 16, 16}, team);
  CHECK(x[12] == Approx(std::sin(0.000524846161)).epsilon(1e-4));
}

TEST_CASE("load_model: a scaling that is not computed is refused by its name", "[load_model]") {
  for (const Json& config : {small_llada(), small_dream()}) {
    const Checkpoint checkpoint(config);
    for (const char* key : {"rope_scaling", "rope_parameters"})
      for (const char* type : {"yarn", "dynamic", "longrope", "su", "mrope"}) {
        CAPTURE(key, type);
        CHECK_THAT(checkpoint.refusal_with(config, {{key, {{"rope_type", type}, {"factor", 4.0}}}}),
                   Contains(key) && Contains(type) && Contains("\"linear\" or \"llama3\""));
      }
    CHECK_THAT(checkpoint.refusal_with(config, {{"rope_scaling", {{"type", "linear"}}}}),
               Contains("\"rope_scaling\", \"factor\""));
    CHECK_THAT(checkpoint.refusal_with(config, {{"rope_scaling", "linear"}}),
               Contains("rope_scaling") && Contains("an object"));
    CHECK_THAT(checkpoint.refusal_with(
                   config, {{"rope_parameters", {{"rope_type", "default"}, {"surprise", 2}}}}),
               Contains("\"rope_parameters\", \"surprise\""));
    CHECK_THAT(checkpoint.refusal_with(
                   config, {{"rope_scaling", {{"type", "linear"}, {"rope_type", "llama3"}}}}),
               Contains("\"type\" \"linear\""));
  }
}

TEST_CASE("load_model: a key that would need another computation is refused by name and value",
          "[load_model]") {
  const Checkpoint llada(small_llada()), dream(small_dream());
  const auto refused = [](const Checkpoint& checkpoint, const Json& config, const char* key,
                          const Json& value) {
    CAPTURE(key, value.dump());
    CHECK_THAT(checkpoint.refusal_with(config, {{key, value}}),
               Contains(std::string("\"") + key + "\"") && Contains(value.dump()));
    CHECK_NOTHROW(checkpoint.load_with(config, {{key, nullptr}}));
  };
  for (const char* key : {"alibi", "attention_layer_norm", "scale_logits", "input_emb_norm"})
    refused(llada, small_llada(), key, true);
  refused(llada, small_llada(), "rope", false);
  refused(llada, small_llada(), "layer_norm_with_affine", false);
  refused(llada, small_llada(), "block_group_size", 2);
  refused(llada, small_llada(), "block_type", "sequential");
  refused(llada, small_llada(), "activation_type", "swiglu");
  for (const Json& config : {small_dream(), renamed_llada()}) {
    const Checkpoint checkpoint(config);
    refused(checkpoint, config, "use_sliding_window", true);
    refused(checkpoint, config, "use_mrope", true);
    refused(checkpoint, config, "hidden_act", "gelu");
    refused(checkpoint, config, "partial_rotary_factor", 0.5);
    refused(checkpoint, config, "num_experts", 8);
    refused(checkpoint, config, "qk_layernorm", true);
    refused(checkpoint, config, "final_logit_softcapping", 30.0);
    refused(checkpoint, config, "block_size", 32);
    CHECK_THAT(
        checkpoint.refusal_with(config, {{"layer_types", {"full_attention", "sliding_attention"}}}),
        Contains("layer_types") && Contains("sliding_attention"));
  }
}

TEST_CASE("load_model: keys without effect pass, unknown ones are warned of once, together",
          "[load_model]") {
  const Checkpoint checkpoint(small_dream());
  const auto quiet = checkpoint.load_with(
      small_dream(), {{"dtype", "bfloat16"},
                      {"transformers_version", "5.2.0"},
                      {"attention_dropout", 0.1},
                      {"use_cache", false},
                      {"max_window_layers", 28},
                      {"use_sliding_window", false},
                      {"sliding_window", 4096},
                      {"layer_types", Json::array({"full_attention", "full_attention"})},
                      {"_name_or_path", "here"},
                      {"partial_rotary_factor", 1.0},
                      {"hidden_act", "swish"}});
  CHECK(quiet->warnings.empty());
  CHECK(quiet->config.max_positions == 0);
  const auto odd = checkpoint.load_with(
      small_dream(), {{"surprise", 1}, {"max_position_embeddings", 512}, {"another", "x"}});
  REQUIRE(odd->warnings.size() == 1);
  CHECK_THAT(odd->warnings[0], Contains("config.json") && Contains("\"another\", \"surprise\""));
  CHECK(odd->config.max_positions == 512);
}

TEST_CASE("load_model: any of several end tokens ends a text, from both configuration files",
          "[load_model]") {
  const Checkpoint checkpoint(small_llada());
  const auto ends = [&](const Json& eos, const Json& generation) {
    if (generation.is_discarded())
      std::filesystem::remove(checkpoint.path() / "generation_config.json");
    else
      checkpoint.write("generation_config.json", {{"eos_token_id", generation}});
    const auto model = checkpoint.load_with(small_llada(), {{"eos_token_id", eos}});
    const auto all = model->config.special.end_of_text.all();
    return Tokens(all.begin(), all.end());
  };
  const Json absent = Json(Json::value_t::discarded);
  CHECK(ends(9, absent) == Tokens{9});
  CHECK(ends({38, 9}, absent) == Tokens{38, 9});
  CHECK(ends(-1, absent).empty());
  CHECK(ends(nullptr, absent).empty());
  CHECK(ends({-1, 7}, absent) == Tokens{7});
  CHECK(ends(9, {38, 9, 5}) == Tokens{38, 9, 5});  // those of the generation come first
  CHECK(ends(nullptr, 5) == Tokens{5});
  CHECK(ends(-1, -1).empty());
  // What the tokenizer calls its end counts where neither file speaks of ends.
  checkpoint.write(
      "tokenizer_config.json",
      {{"eos_token", "<|end|>"}, {"added_tokens_decoder", {{"33", {{"content", "<|end|>"}}}}}});
  CHECK(ends(nullptr, absent) == Tokens{33});
  CHECK(ends(9, absent) == Tokens{9});
  CHECK(ends(nullptr, 5) == Tokens{5});
  CHECK(ends(-1, absent).empty());
  checkpoint.write("tokenizer_config.json", {{"eos_token", {{"content", "<|end|>"}}}});
  CHECK(ends(nullptr, absent).empty());  // no file numbers it
  checkpoint.write("added_tokens.json", {{"<|end|>", 32}});
  CHECK(ends(nullptr, absent) == Tokens{32});
  checkpoint.write("added_tokens.json", {{"<|end|>", 40}});
  CHECK_THAT(checkpoint.refusal_with(small_llada(), {}),
             Contains("end token \"<|end|>\"") && Contains("got 40"));
  for (const Json& bad : {Json(40), Json(-2), Json(1.5), Json("9"), Json::array({9, 40}),
                          Json(std::uint64_t{1} << 63U)}) {
    CHECK_THAT(checkpoint.refusal_with(small_llada(), {{"eos_token_id", bad}}),
               Contains("eos_token_id") && Contains("39]"));
  }
  checkpoint.write("config.json", small_llada());
  checkpoint.write("generation_config.json", {{"eos_token_id", 40}});
  CHECK_THAT(refusal<std::runtime_error>([&] { static_cast<void>(checkpoint.load()); }),
             Contains("generation_config.json") && Contains("eos_token_id"));
}

TEST_CASE("load_model: the mask stands in config.json, in other files, or is said",
          "[load_model]") {
  const Checkpoint checkpoint(small_llada());
  Json config = small_llada();
  config.erase("mask_token_id");
  checkpoint.write("config.json", config);
  CHECK_THAT(refusal<std::runtime_error>([&] { static_cast<void>(checkpoint.load()); }),
             Contains("mask_token_id") && Contains("--mask-token"));
  CHECK(checkpoint.load({.mask = 38})->config.special.mask == 38);
  CHECK_THAT(
      refusal<std::invalid_argument>([&] { static_cast<void>(checkpoint.load({.mask = 40})); }),
      Contains("mask") && Contains("[0, 39], got 40"));
  checkpoint.write(
      "tokenizer_config.json",
      {{"mask_token", "<|mask|>"}, {"added_tokens_decoder", {{"37", {{"content", "<|mask|>"}}}}}});
  CHECK(checkpoint.load()->config.special.mask == 37);
  // Texts that are known where no file names the mask; the decoder comes before added_tokens.json.
  for (const char* text : {"<|mdm_mask|>", "<|mask|>", "|<MASK>|", "<MASK>", "<[MASK_TOKEN]>"}) {
    checkpoint.write("tokenizer_config.json",
                     {{"added_tokens_decoder", {{"37", {{"content", text}}}}}});
    checkpoint.write("added_tokens.json", {{"<|mdm_mask|>", 36}});
    CHECK(checkpoint.load()->config.special.mask == 37);
    checkpoint.write("tokenizer_config.json", Json::object());
    checkpoint.write("added_tokens.json", {{text, 36}});
    CHECK(checkpoint.load()->config.special.mask == 36);
  }
  checkpoint.write("tokenizer_config.json", {{"mask_token", {{"content", "<|mask|>"}}}});
  checkpoint.write("added_tokens.json", {{"<|mask|>", 36}});
  CHECK(checkpoint.load()->config.special.mask == 36);
  checkpoint.write("generation_config.json", {{"mask_token_id", 35}});
  CHECK(checkpoint.load()->config.special.mask == 35);
  // A choice beats the checkpoint; end tokens are added to its own.
  checkpoint.write("config.json", small_llada());
  const auto chosen = checkpoint.load({.mask = 34, .end = {6, 6, 3}});
  CHECK(chosen->config.special.mask == 34);
  CHECK(chosen->config.special.end_of_text == EndTokens{6, 3});
}

TEST_CASE("load_model: biases that are not there are zero", "[load_model]") {
  const Checkpoint zeros(small_dream(), 0.0F);
  Json without = small_dream();
  without["attention_bias"] = false;
  const Checkpoint absent(without);
  const Tokens expected = answer(zeros.load());
  CHECK(answer(absent.load()) == expected);
  CHECK(answer(absent.load_with(small_dream(), {})) == expected);  // the key may be absent too
  CHECK_THAT(absent.refusal_with(small_dream(), {{"attention_bias", true}}),
             Contains("q_proj.bias"));
  const Checkpoint there(small_dream());
  CHECK(answer(there.load()) != expected);
  CHECK_THAT(there.refusal_with(small_dream(), {{"attention_bias", false}}),
             Contains("attention_bias") && Contains("q_proj.bias"));
}

TEST_CASE("load_model: LLaDA under Llama's names and MMaDA are LLaDA", "[load_model]") {
  const Checkpoint classic(small_llada());
  const Tokens expected = answer(classic.load());
  const Checkpoint renamed(renamed_llada());
  CHECK(answer(renamed.load()) == expected);
  CHECK(answer(renamed.load_with(renamed_llada(), {{"architectures", {"LlavaLLaDAModelLM"}},
                                                   {"model_type", "llava_llada"},
                                                   {"mm_hidden_size", 1152}})) == expected);
  CHECK(answer(classic.load_with(small_llada(), {{"architectures", {"MMadaModelLM"}},
                                                 {"model_type", "mmada"},
                                                 {"llm_vocab_size", 30}})) == expected);
}

TEST_CASE("load_model: another model is refused by its name, with what is supported",
          "[load_model][refusal]") {
  const Checkpoint checkpoint(small_llada());
  for (const char* architecture :
       {"LLaDAMoEModelLM", "Qwen2ForCausalLM", "LlamaForCausalLM", "SDARMoeForCausalLM"}) {
    CHECK_THAT(
        checkpoint.refusal_with(small_llada(), {{"architectures", Json::array({architecture})}}),
        Contains(architecture) && Contains("DreamModel") && Contains("LLaDAModelLM"));
  }
  CHECK_THAT(checkpoint.refusal_with(small_llada(), {{"model_type", "gpt2"}}),
             Contains("gpt2") && Contains("Dream"));
  CHECK_THAT(checkpoint.refusal_with(small_llada(), {{"architectures", 7}}),
             Contains("architectures"));
}
