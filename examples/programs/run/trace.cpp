// SPDX-License-Identifier: Apache-2.0
#include "programs/run/trace.hpp"

#include <algorithm>

#include "dllm_cache/models/checkpoint/safetensors_file.hpp"
#include "programs/text/safetensors_writer.hpp"

namespace programs {
namespace {

namespace models = dllm_cache::models;

/// Adds one tensor made of one equally long part a sequence, with the sizes in front.
template <class T>
void add(SafetensorsWriter& writer, const std::string& name, models::TensorType type,
         std::vector<std::int64_t> leading, const std::vector<const std::vector<T>*>& parts) {
  std::vector<T> all;
  for (const std::vector<T>* part : parts) all.insert(all.end(), part->begin(), part->end());
  leading.push_back(static_cast<std::int64_t>(parts.front()->size()));
  writer.add(name, type, std::move(leading), std::as_bytes(std::span<const T>(all)));
}

}  // namespace

void Trace::forward(Index sequence, Index forward, const dllm_cache::SequenceState& state) {
  Sequence& record = m_sequences[sequence];
  const auto first = state.tokens().begin() + state.first_to_fill();
  record.prompt.assign(state.tokens().begin(), first);
  // A forward that only stores has no step of its own.
  if (!state.storing()) record.before[state.step()].assign(first, state.tokens().end());
  record.step_of_forward.resize(static_cast<std::size_t>(forward) + 1);
  record.step_of_forward.back() = state.step();
}

void Trace::finish(Index sequence, const dllm_cache::SequenceState& state) {
  m_sequences[sequence].final_tokens.assign(state.tokens().begin() + state.first_to_fill(),
                                            state.tokens().end());
}

bool Trace::uniform() const {
  const Sequence& first = m_sequences.begin()->second;
  return std::all_of(m_sequences.begin(), m_sequences.end(), [&](const auto& entry) {
    const Sequence& other = entry.second;
    if (other.final_tokens.size() != first.final_tokens.size() ||
        other.prompt.size() != first.prompt.size() ||
        other.step_of_forward != first.step_of_forward ||
        other.before.size() != first.before.size() || other.layers.size() != first.layers.size())
      return false;
    return std::equal(other.layers.begin(), other.layers.end(), first.layers.begin(),
                      [](const auto& a, const auto& b) {
                        return a.second.action.size() == b.second.action.size() &&
                               a.second.selected.size() == b.second.selected.size() &&
                               a.second.similarity.size() == b.second.similarity.size();
                      });
  });
}

void Trace::write(const std::filesystem::path& path) const {
  SafetensorsWriter writer;
  const auto write_group = [&](const std::string& prefix,
                               const std::vector<const Sequence*>& group) {
    const auto batch = static_cast<std::int64_t>(group.size());
    const auto gather = [&](auto field) {
      std::vector<decltype(field(*group.front()))> parts;
      parts.reserve(group.size());
      for (const Sequence* sequence : group) parts.push_back(field(*sequence));
      return parts;
    };
    add<std::int64_t>(writer, prefix + "final_tokens", models::TensorType::I64, {batch},
                      gather([](const Sequence& s) { return &s.final_tokens; }));
    add<std::int64_t>(writer, prefix + "prompt_tokens", models::TensorType::I64, {batch},
                      gather([](const Sequence& s) { return &s.prompt; }));
    add<std::int64_t>(writer, prefix + "step_of_forward", models::TensorType::I64, {batch},
                      gather([](const Sequence& s) { return &s.step_of_forward; }));
    std::vector<const std::vector<std::int64_t>*> before;
    for (const auto& [step, tokens] : group.front()->before)
      for (const Sequence* sequence : group) before.push_back(&sequence->before.at(step));
    if (!before.empty())
      add<std::int64_t>(writer, prefix + "tokens_before_step", models::TensorType::I64,
                        {static_cast<std::int64_t>(group.front()->before.size()), batch}, before);
    for (const auto& [place, layer] : group.front()->layers) {
      const std::string name = prefix + "step" + std::to_string(place.first) + ".layer" +
                               std::to_string(place.second) + ".";
      const auto at = [&where = place](const Sequence& s) -> const Layer& {
        return s.layers.at(where);
      };
      add<std::uint8_t>(writer, name + "treatment", models::TensorType::U8, {batch},
                        gather([&](const Sequence& s) { return &at(s).action; }));
      if (layer.similarity.empty()) continue;
      add<float>(writer, name + "similarity", models::TensorType::F32, {batch},
                 gather([&](const Sequence& s) { return &at(s).similarity; }));
      add<std::int64_t>(writer, name + "selected", models::TensorType::I64, {batch},
                        gather([&](const Sequence& s) { return &at(s).selected; }));
    }
  };
  if (m_sequences.empty()) {
    // Nothing ran: an empty file is still a file.
  } else if (uniform()) {
    std::vector<const Sequence*> all;
    for (const auto& [number, sequence] : m_sequences) all.push_back(&sequence);
    write_group("", all);
  } else {
    for (const auto& [number, sequence] : m_sequences)
      write_group("sequence" + std::to_string(number) + ".", {&sequence});
  }
  writer.write(path);
}

}  // namespace programs
