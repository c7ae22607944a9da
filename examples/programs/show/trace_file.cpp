// SPDX-License-Identifier: Apache-2.0
#include "programs/show/trace_file.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

#include "dllm_cache/models/checkpoint/safetensors_file.hpp"
#include "programs/text/safetensors_writer.hpp"

namespace programs {
namespace {

namespace models = dllm_cache::models;
using Shape = std::vector<std::int64_t>;

/// The tensors of one group of sequences: all of the file, or those named `sequenceI.`.
class Group {
 public:
  Group(const models::SafetensorsFile& file, std::string prefix)
      : m_file(file), m_prefix(std::move(prefix)) {}

  /// Every sequence of the group.
  [[nodiscard]] std::vector<TraceSequence> read() const {
    const models::Tensor& final_tokens = tensor("final_tokens", models::TensorType::I64, 2);
    const std::int64_t batch = final_tokens.shape[0], response = final_tokens.shape[1];
    if (batch < 1 || response < 1)
      refuse("final_tokens", "one sequence and one row or more", shape_text(final_tokens));
    const models::Tensor& before = tensor("tokens_before_step", models::TensorType::I64, 3);
    const std::int64_t steps = before.shape[0];
    check_shape(before, "tokens_before_step", {steps, batch, response});
    const auto [forwards, layers] = count_places();
    const models::Tensor& first = tensor(place_name(0, 0, "treatment"), models::TensorType::U8, 2);
    const std::int64_t rows = first.shape[1];
    if (rows < response)
      refuse(place_name(0, 0, "treatment"), std::to_string(response) + " rows or more",
             shape_text(first));

    std::vector<TraceSequence> all;
    for (std::int64_t i = 0; i < batch; ++i) {
      TraceSequence one;
      one.prompt = rows - response;
      one.response = response;
      one.layers = layers;
      one.forwards = forwards;
      one.steps = steps;
      for (std::int64_t step = 0; step < steps; ++step)
        append<std::int64_t>(one.tokens, before, step * batch + i, response);
      append<std::int64_t>(one.tokens, final_tokens, i, response);
      read_prompt(one, i, batch);
      read_steps(one, i, batch);
      for (Index forward = 0; forward < forwards; ++forward)
        for (Index layer = 0; layer < layers; ++layer) read_place(one, i, batch, forward, layer);
      all.push_back(std::move(one));
    }
    return all;
  }

 private:
  [[noreturn]] void refuse(const std::string& name, const std::string& expected,
                           const std::string& found) const {
    throw std::runtime_error("\"" + m_file.path().string() + "\": tensor \"" + m_prefix + name +
                             "\": expected " + expected + ", got " + found);
  }

  static std::string shape_text(const models::Tensor& tensor) {
    return std::string(models::name_of(tensor.type)) + " " + models::shape_text(tensor.shape);
  }

  static std::string place_name(Index forward, Index layer, const char* what) {
    return "step" + std::to_string(forward) + ".layer" + std::to_string(layer) + "." + what;
  }

  /// The tensor of that name; refuses one that is missing or of another type or rank.
  [[nodiscard]] const models::Tensor& tensor(const std::string& name, models::TensorType type,
                                             std::size_t rank) const {
    const models::Tensor& found = m_file.at(m_prefix + name);
    if (found.type != type || found.shape.size() != rank)
      refuse(name,
             std::string(models::name_of(type)) + " of " + std::to_string(rank) + " dimensions",
             shape_text(found));
    return found;
  }

  void check_shape(const models::Tensor& found, const std::string& name, const Shape& shape) const {
    if (found.shape != shape) refuse(name, models::shape_text(shape), shape_text(found));
  }

  /// Adds row `row` of a tensor of rows of `columns` elements.
  template <class T>
  static void append(std::vector<T>& to, const models::Tensor& from, std::int64_t row,
                     std::int64_t columns) {
    const auto count = static_cast<std::size_t>(columns);
    to.resize(to.size() + count);
    if (count == 0) return;
    std::memcpy(&to[to.size() - count],
                from.bytes.data() + static_cast<std::size_t>(row) * count * sizeof(T),
                count * sizeof(T));
  }

  /// Forwards and layers of the file, by the names of its tensors.
  [[nodiscard]] std::pair<Index, Index> count_places() const {
    Index forwards = 0, layers = 0, found = 0;
    for (const models::Tensor& one : m_file.tensors()) {
      const auto place = parse_place(one.name);
      if (!place) continue;
      forwards = std::max(forwards, place->first + 1);
      layers = std::max(layers, place->second + 1);
      ++found;
    }
    if (found == 0) static_cast<void>(m_file.at(m_prefix + place_name(0, 0, "treatment")));
    // Of forwards * layers names one is missing, and it is among the first found + 1.
    if (forwards > found / layers || forwards * layers != found)
      for (Index i = 0; i <= found; ++i)
        static_cast<void>(m_file.at(m_prefix + place_name(i / layers, i % layers, "treatment")));
    return {forwards, layers};
  }

  /// Forward and layer of `stepN.layerL.action`, none for other names.
  [[nodiscard]] std::optional<std::pair<Index, Index>> parse_place(std::string_view name) const {
    if (!name.starts_with(m_prefix)) return std::nullopt;
    name.remove_prefix(m_prefix.size());
    const auto number = [&](std::string_view word) -> std::optional<Index> {
      if (!name.starts_with(word)) return std::nullopt;
      name.remove_prefix(word.size());
      std::int32_t value = 0;
      const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), value);
      const auto length = static_cast<std::size_t>(end - name.data());
      // "01" and "-1" are no numbers of ours.
      if (error != std::errc{} || name.substr(0, length) != std::to_string(value) || value < 0 ||
          value == std::numeric_limits<std::int32_t>::max())
        return std::nullopt;
      name.remove_prefix(length);
      return value;
    };
    const auto forward = number("step");
    const auto layer = forward ? number(".layer") : std::nullopt;
    if (!layer || name != ".treatment") return std::nullopt;
    return std::pair{*forward, *layer};
  }

  void read_prompt(TraceSequence& to, std::int64_t i, std::int64_t batch) const {
    if (m_file.find(m_prefix + "prompt_tokens") == nullptr) return;
    const models::Tensor& tokens = tensor("prompt_tokens", models::TensorType::I64, 2);
    check_shape(tokens, "prompt_tokens", {batch, to.prompt});
    append<std::int64_t>(to.prompt_tokens, tokens, i, to.prompt);
  }

  void read_steps(TraceSequence& to, std::int64_t i, std::int64_t batch) const {
    if (m_file.find(m_prefix + "step_of_forward") == nullptr) {
      if (to.forwards != to.steps)
        refuse("tokens_before_step", std::to_string(to.forwards) + " steps, one a forward",
               std::to_string(to.steps));
      for (Index step = 0; step < to.steps; ++step) to.step_of_forward.push_back(step);
      return;
    }
    const models::Tensor& steps = tensor("step_of_forward", models::TensorType::I64, 2);
    check_shape(steps, "step_of_forward", {batch, to.forwards});
    append<std::int64_t>(to.step_of_forward, steps, i, to.forwards);
    std::int64_t before = 0;
    for (const std::int64_t step : to.step_of_forward) {
      if (step < before || step >= to.steps)
        refuse("step_of_forward", "ascending steps in [0, " + std::to_string(to.steps) + ")",
               std::to_string(step));
      before = step;
    }
  }

  void read_place(TraceSequence& to, std::int64_t i, std::int64_t batch, Index forward,
                  Index layer) const {
    const std::string name = place_name(forward, layer, "treatment");
    const models::Tensor& action = tensor(name, models::TensorType::U8, 2);
    check_shape(action, name, {batch, to.rows()});
    append(to.actions, action, i, to.rows());
    for (const std::uint8_t one : to.layer(forward, layer))
      if (one > 5) refuse(name, "treatments 0 to 5", std::to_string(one));
    if (m_file.find(m_prefix + place_name(forward, layer, "similarity")) != nullptr)
      read_similarities(to, i, batch, forward, layer);
  }

  /// Spreads the similarities of a layer over the rows that it verified: those left as they were,
  /// and those it selected.
  void read_similarities(TraceSequence& to, std::int64_t i, std::int64_t batch, Index forward,
                         Index layer) const {
    const std::string name = place_name(forward, layer, "similarity");
    const models::Tensor& similarity = tensor(name, models::TensorType::F32, 2);
    const std::string selected_name = place_name(forward, layer, "selected");
    const models::Tensor& selected = tensor(selected_name, models::TensorType::I64, 2);
    const std::int64_t verified = similarity.shape[1];
    check_shape(similarity, name, {batch, verified});
    check_shape(selected, selected_name, {batch, selected.shape[1]});

    std::vector<std::uint8_t> is_verified(static_cast<std::size_t>(to.response), 0);
    for (Index row = 0; row < to.response; ++row)
      if (to.layer(forward, layer)[static_cast<std::size_t>(to.prompt + row)] == 2)
        is_verified[static_cast<std::size_t>(row)] = 1;
    std::vector<std::int64_t> chosen;
    append(chosen, selected, i, selected.shape[1]);
    for (const std::int64_t row : chosen) {
      if (row < 0 || row >= to.response)
        refuse(selected_name, "rows in [0, " + std::to_string(to.response) + ")",
               std::to_string(row));
      is_verified[static_cast<std::size_t>(row)] = 1;
    }
    if (std::count(is_verified.begin(), is_verified.end(), 1) != verified)
      refuse(name,
             std::to_string(std::count(is_verified.begin(), is_verified.end(), 1)) +
                 " similarities, one a verified row",
             std::to_string(verified));
    std::vector<float> values;
    append(values, similarity, i, verified);
    std::size_t next = 0;
    for (const std::uint8_t flag : is_verified)
      to.similarities.push_back(flag != 0 ? values[next++]
                                          : std::numeric_limits<float>::quiet_NaN());
    to.verified_places.push_back(forward * to.layers + layer);
  }

  const models::SafetensorsFile& m_file;
  std::string m_prefix;
};

}  // namespace

std::vector<TraceSequence> read_trace(const std::filesystem::path& path) {
  const models::SafetensorsFile file(path);
  const auto prefix = [](std::size_t number) { return "sequence" + std::to_string(number) + "."; };
  if (file.find(prefix(0) + "final_tokens") == nullptr) return Group(file, "").read();
  std::vector<TraceSequence> all;
  while (file.find(prefix(all.size()) + "final_tokens") != nullptr)
    for (TraceSequence& one : Group(file, prefix(all.size())).read()) all.push_back(std::move(one));
  return all;
}

}  // namespace programs
