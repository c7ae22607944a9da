// SPDX-License-Identifier: Apache-2.0
// JSON that the programs are given: what is refused before any value of it is read.
#include "programs/text/json_reader.hpp"

#include <catch2/catch.hpp>
#include <string>

#include "programs/options/request.hpp"
#include "tests/support/refusal.hpp"

using namespace programs;
using dllm_cache::testing::refusal;

namespace {

std::string refusal_of_request(const std::string& text) {
  return refusal<BadRequest>([&] { return parse_request(text, "request.json"); });
}

// A list in a list, `levels` in all, in an object.
std::string nested(int levels) {
  const auto count = static_cast<std::size_t>(levels - 1);
  return "{\"a\":" + std::string(count, '[') + std::string(count, ']') + "}";
}

}  // namespace

TEST_CASE("json: a key that stands twice in a request is refused", "[programs][json]") {
  const std::string text = R"({"prompt_ids":[[1,2]],"steps":8,"steps":16})";
  CHECK(refusal_of_request(text) ==
        "request.json: key \"steps\" stands twice in one JSON object, expected once");
}

TEST_CASE("json: a key that stands twice in a request's cache is refused", "[programs][json]") {
  const std::string text =
      R"({"prompt_ids":[[1,2]],"cache":{"transfer_ratio":0.25,"transfer_ratio":0.5}})";
  CHECK(refusal_of_request(text) ==
        "request.json: key \"transfer_ratio\" stands twice in one JSON object, expected once");
}

TEST_CASE("json: the same key in two objects is no key that stands twice", "[programs][json]") {
  const auto json = parse_object(R"({"a":{"n":1},"b":{"n":2}})", "x.json", "an answer");
  CHECK(json.at("b").at("n") == 2);
}

TEST_CASE("json: text behind a NUL byte is refused, not left out", "[programs][json]") {
  std::string text = R"({"prompt_ids":[[1,2]]} )";
  text.back() = '\0';
  CHECK_THAT(refusal_of_request(text), Catch::Contains("request.json: not JSON: NUL byte"));
}

TEST_CASE("json: a text that is no JSON is refused with the place", "[programs][json]") {
  CHECK_THAT(refusal_of_request(R"({"steps":)"),
             Catch::Contains("request.json: not JSON at byte 9,"));
}

TEST_CASE("json: another value than an object is refused by what it should be",
          "[programs][json]") {
  CHECK(refusal_of_request("[1]") == "request.json: a request must be a JSON object");
}

TEST_CASE("json: nesting is read to its limit and refused beyond it", "[programs][json]") {
  CHECK(parse_object(nested(8), "x.json", "an answer").size() == 1);
  CHECK(refusal<BadRequest>([] { return parse_object(nested(9), "x.json", "an answer"); }) ==
        "x.json: JSON nested deeper than 8 levels");
}
