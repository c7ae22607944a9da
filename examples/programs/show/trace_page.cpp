// SPDX-License-Identifier: Apache-2.0
#include "programs/show/trace_page.hpp"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "programs/text/base64.hpp"
#include "trace_page_template.hpp"  // made of trace_page.html by CMake

namespace programs {
namespace {

using Json = nlohmann::ordered_json;

std::string pack_actions(const TraceSequence& sequence) {
  const auto rows = static_cast<std::size_t>(sequence.rows());
  const std::size_t bytes = (rows + 1) / 2;
  const std::size_t places = sequence.actions.size() / rows;
  std::vector<std::uint8_t> packed(places * bytes, 0);
  for (std::size_t place = 0; place < places; ++place)
    for (std::size_t row = 0; row < rows; ++row) {
      const unsigned action = sequence.actions[place * rows + row];
      std::uint8_t& byte = packed[place * bytes + row / 2];
      byte = static_cast<std::uint8_t>(byte | action << 4 * (row % 2));
    }
  return to_base64(packed);
}

std::string pack_similarities(const TraceSequence& sequence) {
  constexpr unsigned none = 65535;
  std::vector<std::uint8_t> packed;
  packed.reserve(2 * sequence.similarities.size());
  for (const float one : sequence.similarities) {
    const double place = (std::clamp(static_cast<double>(one), -1.0, 1.0) + 1.0) / 2.0;
    const unsigned code =
        std::isnan(one) ? none : static_cast<unsigned>(std::lround(place * 65534));
    packed.push_back(static_cast<std::uint8_t>(code & 255U));
    packed.push_back(static_cast<std::uint8_t>(code >> 8U));
  }
  return to_base64(packed);
}

/// Of each step the rows of the response whose tokens it changed and those tokens, alternating.
Json commits(const TraceSequence& sequence) {
  Json all = Json::array();
  const auto response = static_cast<std::size_t>(sequence.response);
  for (std::size_t step = 0; step < static_cast<std::size_t>(sequence.steps); ++step) {
    Json one = Json::array();
    for (std::size_t row = 0; row < response; ++row) {
      const std::int64_t before = sequence.tokens[step * response + row];
      const std::int64_t after = sequence.tokens[(step + 1) * response + row];
      if (before == after) continue;
      one.push_back(row);
      one.push_back(after);
    }
    all.push_back(std::move(one));
  }
  return all;
}

Json describe(const TraceSequence& sequence) {
  return {{"prompt", sequence.prompt},
          {"response", sequence.response},
          {"layers", sequence.layers},
          {"forwards", sequence.forwards},
          {"steps", sequence.steps},
          {"stepOfForward", sequence.step_of_forward},
          {"promptTokens", sequence.prompt_tokens},
          {"firstTokens", std::vector<std::int64_t>(sequence.tokens.begin(),
                                                    sequence.tokens.begin() + sequence.response)},
          {"commits", commits(sequence)},
          {"verified", sequence.verified_places},
          {"treatments", pack_actions(sequence)},
          {"similarities", pack_similarities(sequence)}};
}

/// Text of every token of the sequences.
Json texts(const std::vector<TraceSequence>& sequences, const Vocabulary& vocabulary) {
  Json all = Json::object();
  const auto add = [&](std::int64_t token) {
    all[std::to_string(token)] = vocabulary.symbol(static_cast<std::int32_t>(
        std::clamp<std::int64_t>(token, -1, std::numeric_limits<std::int32_t>::max())));
  };
  for (const TraceSequence& sequence : sequences) {
    std::for_each(sequence.prompt_tokens.begin(), sequence.prompt_tokens.end(), add);
    std::for_each(sequence.tokens.end() - sequence.response, sequence.tokens.end(), add);
    std::for_each(sequence.tokens.begin(), sequence.tokens.begin() + sequence.response, add);
  }
  return all;
}

/// JSON that may stand inside a script element: no "<".
std::string script_text(const Json& json) {
  const std::string text = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  std::string safe;
  safe.reserve(text.size());
  for (const char letter : text) {
    if (letter == '<')
      safe += "\\u003c";
    else
      safe += letter;
  }
  return safe;
}

}  // namespace

std::string make_trace_page(const std::vector<TraceSequence>& sequences,
                            const Vocabulary* vocabulary, const std::string& title) {
  Json data = {{"title", title},
               {"texts", vocabulary == nullptr ? Json::object() : texts(sequences, *vocabulary)},
               {"sequences", Json::array()}};
  for (const TraceSequence& sequence : sequences) data["sequences"].push_back(describe(sequence));
  constexpr std::string_view marker = "TRACE_DATA";
  std::string page(trace_page_template);
  return page.replace(page.find(marker), marker.size(), script_text(data));
}

}  // namespace programs
