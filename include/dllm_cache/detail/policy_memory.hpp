// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstdint>
#include <memory>
#include <string_view>
#include <type_traits>
#include <vector>

#include "dllm_cache/sequence_shape.hpp"

namespace dllm_cache::inline v0_1 {

namespace detail {

/// Takes the fields of a policy's memory one after the other, to write or to read them.
struct MemoryFields {
  MemoryFields() = default;
  MemoryFields(const MemoryFields&) = delete;
  MemoryFields& operator=(const MemoryFields&) = delete;
  virtual ~MemoryFields() = default;
  virtual void operator()(std::string_view name, Index& value) = 0;
  virtual void operator()(std::string_view name, std::vector<Index>& values) = 0;
  virtual void operator()(std::string_view name, std::vector<std::uint8_t>& flags) = 0;
  virtual void operator()(std::string_view name, std::vector<float>& values) = 0;
};

}  // namespace detail

/// Part of PolicyMemory: write `static void visit_fields(auto& self, auto&& visit)`, which calls
/// `visit("name", self.name)` for every field: Index, or a vector of Index, std::uint8_t or float.
template <class M>
concept VisitsFields = requires(M& self, detail::MemoryFields& visit) {
  M::visit_fields(self, visit);
};

/// Part of PolicyMemory: write `bool fits(const SequenceShape& shape, Index layers) const`: whether
/// plan() may be given this memory. It is asked of what a snapshot holds.
template <class M>
concept ChecksFields = requires(const M& memory, const SequenceShape& shape, Index layers) {
  { memory.fits(shape, layers) } -> std::same_as<bool>;
};

/// What a policy keeps from step to step: a copyable value that begins empty. One without members
/// needs no functions.
template <class M>
concept PolicyMemory = std::default_initializable<M> && std::copyable<M> &&
    (std::is_empty_v<M> || (VisitsFields<M> && ChecksFields<M>));

namespace detail {

/// Holds the memory of any policy, or none.
class AnyMemory {
 public:
  AnyMemory() = default;
  template <PolicyMemory M>
  explicit AnyMemory(std::type_identity<M>) : m_held(std::make_unique<Model<M>>()) {}
  AnyMemory(const AnyMemory& other) : m_held(other.m_held ? other.m_held->clone() : nullptr) {}
  AnyMemory(AnyMemory&&) noexcept = default;
  /// Keeps the memory of its lists where it holds the same type.
  AnyMemory& operator=(const AnyMemory& other) {
    if (this == &other) return *this;
    if (m_held && other.m_held)
      m_held->assign(*other.m_held);
    else
      m_held = other.m_held ? other.m_held->clone() : nullptr;
    return *this;
  }
  AnyMemory& operator=(AnyMemory&&) noexcept = default;
  ~AnyMemory() = default;

  [[nodiscard]] bool empty() const { return m_held == nullptr; }
  /// The memory itself, of the type it was made of (unchecked).
  template <PolicyMemory M>
  [[nodiscard]] M& as() {
    return static_cast<Model<M>&>(*m_held).memory;
  }
  /// See VisitsFields; nothing where there is no memory.
  void visit(MemoryFields& fields) {
    if (m_held) m_held->visit(fields);
  }
  /// See ChecksFields; true where there is no memory.
  [[nodiscard]] bool fits(const SequenceShape& shape, Index layers) const {
    return !m_held || m_held->fits(shape, layers);
  }

 private:
  struct Interface {
    Interface() = default;
    Interface(const Interface&) = default;
    Interface& operator=(const Interface&) = default;
    virtual ~Interface() = default;
    [[nodiscard]] virtual std::unique_ptr<Interface> clone() const = 0;
    virtual void assign(const Interface& other) = 0;
    virtual void visit(MemoryFields& fields) = 0;
    [[nodiscard]] virtual bool fits(const SequenceShape& shape, Index layers) const = 0;
  };
  template <class M>
  struct Model final : Interface {
    [[nodiscard]] std::unique_ptr<Interface> clone() const override {
      return std::make_unique<Model>(*this);
    }
    void assign(const Interface& other) override {
      memory = static_cast<const Model&>(other).memory;
    }
    void visit(MemoryFields& fields) override {
      if constexpr (!std::is_empty_v<M>) M::visit_fields(memory, fields);
    }
    [[nodiscard]] bool fits(const SequenceShape& shape, Index layers) const override {
      if constexpr (!std::is_empty_v<M>) return memory.fits(shape, layers);
      return true;
    }
    M memory;
  };
  std::unique_ptr<Interface> m_held;
};

}  // namespace detail
}  // namespace dllm_cache::inline v0_1
