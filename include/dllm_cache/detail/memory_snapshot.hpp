// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "dllm_cache/snapshot.hpp"
#include "dllm_cache/step_planner.hpp"

// What a policy remembers, in snapshots: nothing where it remembers nothing.
namespace dllm_cache::inline v0_1::detail {

/// Writes the fields of a memory.
class MemoryWriter final : public MemoryFields {
 public:
  explicit MemoryWriter(SnapshotWriter& out) : m_out(out) {}
  void operator()(std::string_view, Index& value) override { m_out.number("memory", value); }
  void operator()(std::string_view, std::vector<Index>& values) override { write(values); }
  void operator()(std::string_view, std::vector<std::uint8_t>& flags) override { write(flags); }
  void operator()(std::string_view, std::vector<float>& values) override { write(values); }

 private:
  template <class T>
  void write(const std::vector<T>& values) {
    m_out.number("memory", static_cast<Index>(values.size()));
    m_out.array("memory", std::span<const T>(values));
  }
  SnapshotWriter& m_out;
};

/// Reads them; lists of at most `most` elements.
class MemoryReader final : public MemoryFields {
 public:
  MemoryReader(SnapshotReader& in, Index most) : m_in(in), m_most(most) {}
  void operator()(std::string_view, Index& value) override {
    value = m_in.number<Index>("memory", 0, most_counted);
  }
  void operator()(std::string_view, std::vector<Index>& values) override { read(values); }
  void operator()(std::string_view, std::vector<std::uint8_t>& flags) override { read(flags); }
  void operator()(std::string_view, std::vector<float>& values) override { read(values); }

 private:
  template <class T>
  void read(std::vector<T>& values) {
    const auto count = m_in.number<Index>("memory", 0, m_most);
    values = m_in.elements<T>(static_cast<std::size_t>(count));
  }
  SnapshotReader& m_in;
  Index m_most;
};

inline void write_memory(SnapshotWriter& out, const AnyMemory& memory) {
  AnyMemory copy = memory;  // fields are visited alike to be written and to be read: by reference
  MemoryWriter writer(out);
  copy.visit(writer);
}
/// Reads it for a planner of the same policy; throws std::runtime_error for one that does not fit.
[[nodiscard]] inline AnyMemory read_memory(SnapshotReader& in, const StepPlanner& planner) {
  const SequenceShape shape = planner.shape();
  AnyMemory memory = planner.fresh_memory();
  MemoryReader reader(in, shape.rows() * planner.layers());
  memory.visit(reader);
  if (!memory.fits(shape, planner.layers()))
    SnapshotReader::refuse("the policy's memory must be one of this sequence");
  return memory;
}

}  // namespace dllm_cache::inline v0_1::detail
