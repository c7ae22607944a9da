// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <span>
#include <string>
#include <string_view>

// What is fed with arbitrary bytes. Each function takes any input and returns; an exception that is
// not documented leaves it, and what must not be aborts.
namespace dllm_cache::fuzz {

using Input = std::span<const std::uint8_t>;

void safetensors(Input input);  ///< A safetensors file: header, layout, every tensor's bytes.
void config(Input input);       ///< config.json of a LLaDA or Dream checkpoint, down to the model.
void index(Input input);        ///< model.safetensors.index.json of a sharded checkpoint.
void request(Input input);      ///< A request of dllm-generate, down to options and policy.
void trace(Input input);        ///< A trace file.
void snapshot(Input input);     ///< A saved sequence or cache; see snapshot.cpp for the bytes.

/// Every target by the name of its folder in corpus/.
struct Target {
  std::string_view name;
  void (*run)(Input);
};
inline constexpr Target targets[] = {
    {"safetensors", safetensors}, {"config", config}, {"index", index},
    {"request", request},         {"trace", trace},   {"snapshot", snapshot}};

/// Aborts unless what must hold holds.
inline void must(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "fuzz: does not hold: %s\n", what);
  std::abort();
}

/// Lets the documented exceptions of `action` pass; their messages must hold `name`.
template <class... Documented, class Action>
void allow(std::string_view name, const Action& action) {
  try {
    action();
  } catch (const std::exception& error) {
    if (!(... || (dynamic_cast<const Documented*>(&error) != nullptr))) throw;
    must(std::string_view(error.what()).find(name) != std::string_view::npos,
         "a refusal names the file");
  }
}

}  // namespace dllm_cache::fuzz
