// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <span>
#include <utility>
#include <vector>

#include "dllm_cache/base/buffer.hpp"
#include "dllm_cache/base/frozen_pages.hpp"
#include "dllm_cache/plan.hpp"

namespace dllm_cache::inline v0_1::detail {

/// The memory of a cache's features, and which rows of it are shared with the one that it was
/// forked from. Move-only; not synchronised.
template <class Stored>
class FeatureMemory {
 public:
  explicit FeatureMemory(std::pmr::memory_resource* resource) : m_memory(resource) {}
  FeatureMemory(FeatureMemory&&) noexcept = default;
  FeatureMemory& operator=(FeatureMemory&& other) noexcept {
    // Swapped, since memory must go before the pages that it is a view of.
    std::swap(m_frozen, other.m_frozen);
    m_memory = std::move(other.m_memory);
    std::swap(m_shared, other.m_shared);
    std::swap(m_written, other.m_written);
    return *this;
  }
  FeatureMemory(const FeatureMemory&) = delete;
  FeatureMemory& operator=(const FeatureMemory&) = delete;
  ~FeatureMemory() = default;

  /// See base::Buffer.
  Stored* ensure(Index elements) { return m_memory.ensure(elements); }
  [[nodiscard]] Stored* data() { return m_memory.data(); }
  [[nodiscard]] const Stored* data() const { return m_memory.data(); }
  /// Where memory comes from that is not shared.
  [[nodiscard]] std::pmr::memory_resource* resource() const {
    return m_frozen ? m_frozen->upstream() : m_memory.resource();
  }

  /// Memory that begins with these elements, of so many rows, and shares them until either side
  /// writes; a copy where the system has none such. Throws std::bad_alloc.
  [[nodiscard]] FeatureMemory fork(Index elements, Index rows) {
    const auto count = static_cast<std::size_t>(elements);
    if (!m_frozen || m_written) {
      auto frozen = base::FrozenPages::freeze(std::as_bytes(std::span(data(), count)), resource());
      if (!frozen) {
        FeatureMemory copy(resource());
        std::copy_n(data(), elements, copy.ensure(elements));
        return copy;
      }
      base::Buffer<Stored> view(frozen.get());
      view.ensure(elements);
      std::swap(m_memory, view);
      std::swap(m_frozen, frozen);
      m_written = false;
      m_shared.clear();                         // what it had of another is its own from here on
      view = base::Buffer<Stored>(resource());  // before the pages that it may be a view of
    }
    FeatureMemory forked(m_frozen.get());
    forked.m_frozen = m_frozen;
    forked.m_written = false;
    forked.ensure(elements);
    forked.m_shared.assign(static_cast<std::size_t>(rows), 1);
    return forked;
  }

  /// A step may write from here on.
  void begin_step() { m_written = true; }
  /// A committed step wrote what this plan says, in so many layers.
  void end_step(const StepPlan& plan, Index layers) {
    // Outside the cached layers everything in the pass is recomputed.
    const auto least =
        plan.cached_layers == Range{0, layers} ? RowAction::Verify : RowAction::Reuse;
    for (std::size_t row = 0; row < m_shared.size(); ++row)
      if (plan.rows[row] >= least) m_shared[row] = 0;
  }
  /// Nothing of what was shared is read again.
  void own_all() {
    m_shared.clear();
    m_written = true;
  }
  /// How many of these rows are shared.
  [[nodiscard]] Index shared_rows(Range rows) const {
    return m_shared.empty() ? 0
                            : std::count(m_shared.begin() + rows.begin, m_shared.begin() + rows.end,
                                         std::uint8_t{1});
  }

 private:
  std::shared_ptr<base::FrozenPages> m_frozen;  // whose memory this is, since a fork
  base::Buffer<Stored> m_memory;
  std::vector<std::uint8_t> m_shared;  // of a fork: 1 where a row is as it was then
  bool m_written = true;               // since the last fork
};

}  // namespace dllm_cache::inline v0_1::detail
