// SPDX-License-Identifier: Apache-2.0
// First byte: 0 to 5, a valid snapshot, and what follows changes it: two bytes of place, one to
// xor it with, and so on. Another first byte: what follows is the snapshot. Checksums are put
// right, so that what they guard is reached.
#include <optional>
#include <stdexcept>
#include <vector>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/policies/changed_rows.hpp"
#include "dllm_cache/policies/dllm_cache.hpp"
#include "tests/fuzz/targets.hpp"
#include "tests/support/fake_model.hpp"

namespace dllm_cache::fuzz {
namespace {

using Bytes = std::vector<std::byte>;
using Model = testing::FakeModel<float>;
using Loop = DenoisingLoop<Model>;

// Reads bytes and remembers the pieces of the section at hand, to know its checksum.
class RepairingSource {
 public:
  explicit RepairingSource(Bytes& bytes) : m_bytes(bytes) {}

  void operator()(std::span<std::byte> into) {
    if (into.size() > m_bytes.size() - m_at) SnapshotReader::refuse("ends too early");
    m_last = m_at;
    m_before = m_sum;
    std::copy_n(m_bytes.begin() + static_cast<std::ptrdiff_t>(m_at), into.size(), into.begin());
    m_at += into.size();
    m_sum.add(into);
    std::uint64_t word = 0;
    if (into.size() == sizeof(word)) std::memcpy(&word, into.data(), sizeof(word));
    if (word == m_before.value()) m_sum = {};  // the end of a section
  }
  /// The last piece was a checksum: makes it the right one.
  void repair() {
    const std::uint64_t sum = m_before.value();
    std::memcpy(m_bytes.data() + m_last, &sum, sizeof(sum));
  }

 private:
  Bytes& m_bytes;
  std::size_t m_at = 0, m_last = 0;
  base::Checksum m_sum, m_before;
};

// Calls `restore(reader)` until no checksum is wrong any more.
template <class Restore>
void restore_repaired(Bytes& bytes, const Restore& restore) {
  for (;;) {
    RepairingSource source(bytes);
    try {
      return restore(SnapshotReader(std::ref(source)));
    } catch (const std::runtime_error& error) {
      if (std::string_view(error.what()).find("checksum is wrong") == std::string_view::npos) throw;
      source.repair();
    }
  }
}

struct Case {
  DecodingOptions options;
  AnyPolicy policy;
};
const Case& sequence_case(std::size_t number) {
  static const Case cases[] = {
      {{.response = 6, .block_length = 3}, DllmCachePolicy{4, 3, 0.5}},
      {{.response = 4, .commit = ThresholdCommit{0.4}}, ChangedRowsPolicy{.keep_active = 1}},
      {{.response = 4, .guidance_scale = 1.5, .guidance_interval = 2}, NoCache{}}};
  return cases[number % 3];
}

// Even numbers are saved sequences, odd ones saved features.
Bytes valid(std::size_t number) {
  Model model(5);
  Loop loop(model);
  const Case& one = sequence_case(number / 2);
  loop.add(std::vector<std::int32_t>{1, 2}, one.options, one.policy);
  loop.step();
  loop.step();
  Bytes bytes;
  if (number % 2 == 0)
    loop.save(0, bytes);
  else
    loop.cache(0).save(bytes);
  return bytes;
}

Bytes changed(std::size_t number, Input changes) {
  static const std::vector<Bytes> originals = [] {
    std::vector<Bytes> all;
    for (std::size_t i = 0; i < 6; ++i) all.push_back(valid(i));
    return all;
  }();
  Bytes bytes = originals[number];
  for (; changes.size() >= 3; changes = changes.subspan(3))
    bytes[static_cast<std::size_t>(changes[0] | changes[1] << 8) % bytes.size()] ^=
        std::byte{changes[2]};
  return bytes;
}

// A restored sequence takes steps and comes to its end.
void go_on(Loop& loop) {
  const SequenceState& state = loop.sequence(0);
  const DecodingOptions& options = state.options();
  if (options.steps > 64 || options.response > 64) return;
  const Index most = std::max(options.steps, options.response) + 2 * options.response + 2;
  for (Index step = 0; step < most && loop.step(); ++step) {
  }
  must(loop.finished(), "a restored sequence ends");
}

void restore_sequence(Bytes& bytes, const AnyPolicy& policy) {
  allow<std::runtime_error, std::invalid_argument>("", [&] {
    Model model(5);
    std::optional<Loop> loop;
    restore_repaired(bytes, [&](SnapshotReader in) {
      loop.emplace(model);
      loop->restore(in, policy);
    });
    if (!loop || loop->sequences() == 0) return;
    // Features may hold any bits: what comes of NaN is refused by the sampler, and a plan that
    // needs rows which the snapshot says were never computed by the planner.
    allow<std::runtime_error, std::logic_error>("", [&] { go_on(*loop); });
  });
}

void restore_features(Bytes& bytes, const Case& one) {
  Model model(5);
  FeatureCache<float> cache(model.shape(), {.prompt = 2, .response = one.options.response},
                            one.policy);
  allow<std::runtime_error>(
      "snapshot", [&] { restore_repaired(bytes, [&](SnapshotReader in) { cache.restore(in); }); });
  // As before or restored: it must plan a step, and a plain forward when stale.
  const std::vector<std::uint8_t> flags(static_cast<std::size_t>(cache.shape().rows()), 1);
  const std::vector<std::uint16_t> steps(flags.size(), 0);
  try {
    Workspace<float> workspace;
    auto pass =
        workspace.begin_step(cache, {.masked = flags, .changed = flags, .unchanged_steps = steps});
    std::vector<float> x(static_cast<std::size_t>(pass.row_count() * model.shape().width), 0.5F);
    for (Index layer = 0; layer < model.shape().layers; ++layer)
      pass.layer(model.layer(layer), dense_view(x.data(), pass.row_count(), model.shape().width));
  } catch (const std::logic_error&) {  // a snapshot may say that no row was computed
    must(!cache.stale(), "a stale cache takes a step");
  }
}

}  // namespace

void snapshot(Input input) {
  if (input.empty()) return;
  const std::size_t number = input[0] % 6;
  const Input rest = input.subspan(1);
  const Case& one = sequence_case(number / 2);
  Bytes bytes = input[0] < 6 ? changed(number, rest)
                             : Bytes(reinterpret_cast<const std::byte*>(rest.data()),
                                     reinterpret_cast<const std::byte*>(rest.data()) + rest.size());
  if (number % 2 == 0)
    restore_sequence(bytes, one.policy);
  else
    restore_features(bytes, one);
}

}  // namespace dllm_cache::fuzz
