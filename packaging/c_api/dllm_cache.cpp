// SPDX-License-Identifier: Apache-2.0
// The C interface (dllm_cache/c_api.h): compile this one file as C++20, without Eigen.
#include "dllm_cache/c_api.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dllm_cache/detail/planner_snapshot.hpp"
#include "dllm_cache/policies/policy_table.hpp"
#include "dllm_cache/selection.hpp"
#include "dllm_cache/step_lists.hpp"
#include "dllm_cache/version.hpp"

using namespace dllm_cache;

// NOLINTNEXTLINE(readability-identifier-naming): as the header has it.
struct dllm_planner {
  explicit dllm_planner(StepPlanner made)
      : planner(std::move(made)), policy(planner.traits().name) {}

  StepPlanner planner;
  std::string policy;  // its name, ended by a zero
  StepLists lists;
  RowCounts counts;
};

namespace {

// Of fixed size: keeping a message must not fail.
thread_local char last_error[1024] = "";

dllm_status fail(dllm_status status, const char* message) noexcept {
  std::strncpy(last_error, message, sizeof last_error - 1);
  return status;
}

// Does the work; what it throws becomes a status and a message.
template <class Work>
dllm_status guarded(Work&& work, dllm_status runtime_error = DLLM_UNKNOWN) noexcept {
  try {
    work();
    return DLLM_OK;
  } catch (const std::bad_alloc&) {
    return fail(DLLM_NO_MEMORY, "no memory");
  } catch (const std::length_error&) {
    return fail(DLLM_NO_MEMORY, "no memory");
  } catch (const std::invalid_argument& error) {
    return fail(DLLM_INVALID_ARGUMENT, error.what());
  } catch (const std::logic_error& error) {
    return fail(DLLM_INVALID_CALL, error.what());
  } catch (const std::runtime_error& error) {
    return fail(runtime_error, error.what());
  } catch (const std::exception& error) {
    return fail(DLLM_UNKNOWN, error.what());
  } catch (...) {
    return fail(DLLM_UNKNOWN, "unknown error");
  }
}

template <class T>
T& given(T* pointer, const char* name) {
  if (pointer == nullptr) base::refuse_argument(name, " must not be null");
  return *pointer;
}

Index as_flag(std::int64_t value, const char* name) {
  if (value != 0 && value != 1) base::refuse_argument(name, " must be 0 or 1, got ", value);
  return static_cast<Index>(value);
}

// Sizes of the structs' first versions, which later ones must go on to take.
template <class T>
inline constexpr std::size_t first_size = sizeof(T);

template <class T>
void check_size(const T* of, const char* name) {
  const std::size_t size = given(of, name).size;
  if (size < first_size<T> || size > sizeof(T))
    base::refuse_argument(name, ": size must be in [", first_size<T>, ", ", sizeof(T), "], got ",
                          size);
}

// A copy of what the caller filled; fields that it does not know are 0.
template <class T>
T read(const T* from, const char* name) {
  check_size(from, name);
  T known{};
  std::memcpy(&known, from, from->size);
  return known;
}

// Writes the fields that the caller knows.
template <class T>
void write(T* to, T known) noexcept {
  known.size = to->size;
  std::memcpy(to, &known, to->size);
}

template <class T>
std::span<const T> rows_of(const T* from, Index rows) {
  if (from == nullptr) return {};
  return {from, static_cast<std::size_t>(rows)};
}

SequenceShape shape_of(const dllm_shape* from) {
  const auto given = read(from, "dllm_shape");
  SequenceShape shape{.prompt = static_cast<Index>(given.prompt),
                      .response = static_cast<Index>(given.response),
                      .prediction_shift = static_cast<Index>(given.prediction_shift),
                      .attention_block = static_cast<Index>(given.attention_block),
                      .attention_phase = static_cast<Index>(given.attention_phase),
                      .causal_commit = as_flag(given.causal_commit, "causal_commit") != 0};
  check_shape(shape);  // before the number of rows is trusted
  // Lists are of 32-bit numbers.
  if (shape.rows() > std::numeric_limits<std::int32_t>::max())
    base::refuse_argument("dllm_shape: prompt + response must be below 2^31, got ", shape.rows());
  shape.positions = rows_of(given.positions, shape.rows());
  return shape;
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

OptionValues options_of(const char* text) {
  OptionValues values;
  std::string_view rest = trimmed(text == nullptr ? "" : text);
  while (!rest.empty()) {
    const std::size_t comma = rest.find(',');
    const std::string_view one = rest.substr(0, comma);
    const std::size_t equals = one.find('=');
    const std::string_view name = trimmed(one.substr(0, equals));
    if (equals == std::string_view::npos || name.empty() || comma + 1 == rest.size())
      base::refuse_argument("options must be \"name=value,name=value\", got \"", text, '"');
    const bool fresh = values.emplace(name, trimmed(one.substr(equals + 1))).second;
    if (!fresh) base::refuse_argument("options must name ", name, " once, got \"", text, '"');
    rest = comma == std::string_view::npos ? "" : trimmed(rest.substr(comma + 1));
  }
  return values;
}

const PolicyTable& table() {
  static const PolicyTable policies = bundled_policies();
  return policies;
}

const PolicyTable::Entry& entry_at(std::size_t index) {
  const std::size_t count = table().entries().size();
  if (index >= count)
    base::refuse_argument("policy must be in [0, ", count, "), got index ", index);
  return table().entries()[index];
}

dllm_counts counts_of(const RowCounts& counts) {
  return {counts.rows, counts.values, counts.recomputed};
}

dllm_rows rows_of(const ComputedRows& of) {
  return {of.places.data(), of.rows.data(), of.count(), of.verified};
}

dllm_step step_of(const StepLists& lists) {
  const StepSizes sizes = lists.sizes();
  dllm_step step{};
  step.rows = lists.rows.data();
  step.positions = lists.positions.data();
  step.key_ends = lists.key_ends.data();
  step.cached = rows_of(lists.cached);
  step.plain = rows_of(lists.plain);
  step.row_count = sizes.rows;
  step.layers = lists.layers;
  step.first_cached = sizes.first_cached;
  step.end_cached = sizes.end_cached;
  step.keys = sizes.keys;
  step.verify_count = lists.verify_count;
  step.similarity_threshold = lists.similarity_threshold;
  step.sizes = {sizes.rows,         sizes.verified,
                sizes.verify_count, sizes.recomputed,
                sizes.first_cached, sizes.end_cached,
                sizes.keys,         sizes.threshold ? 1 : 0,
                sizes.seen,         sizes.layer_counts ? 1 : 0};
  step.counts = counts_of(lists.counts());
  step.seen = lists.hides ? lists.seen.data() : nullptr;
  step.seen_count = static_cast<std::int32_t>(lists.seen.size());
  step.layer_counts = lists.layer_counts.empty() ? nullptr : lists.layer_counts.data();
  return step;
}

void refuse_open(const dllm_planner& planner, const char* call) {
  if (planner.planner.step_open()) base::refuse_call(call, " while a step is open");
}

struct SelectScratch {
  LeastSimilarRows rule;
  std::vector<SimilaritySums> sums;
  std::vector<Index> selected;
};

}  // namespace

const char* dllm_version(void) { return version.data(); }
const char* dllm_last_error(void) { return last_error; }

size_t dllm_policy_count(void) {
  std::size_t count = 0;
  guarded([&] { count = table().entries().size(); });
  return count;
}

dllm_status dllm_policy_at(size_t index, dllm_policy_info* info) {
  return guarded([&] {
    check_size(info, "dllm_policy_info");
    const PolicyTable::Entry& entry = entry_at(index);
    const AnyPolicy policy = entry.make({});
    const PolicyTraits traits = policy.traits({.prompt = 1, .response = 1});
    write(info, {0, entry.name.c_str(), entry.description.c_str(), entry.policy.c_str(),
                 entry.options.size(), beyond_lists(policy, traits, true) == nullptr ? 1 : 0,
                 traits.hides_rows ? 1 : 0});
  });
}

dllm_status dllm_option_at(size_t index, size_t option, dllm_option_info* info) {
  return guarded([&] {
    check_size(info, "dllm_option_info");
    const PolicyTable::Entry& entry = entry_at(index);
    if (option >= entry.options.size())
      base::refuse_argument("option of policy ", entry.name, " must be in [0, ",
                            entry.options.size(), "), got ", option);
    const OptionInfo& one = entry.options[option];
    const dllm_option_kind kind = one.kind == OptionKind::Flag     ? DLLM_FLAG
                                  : one.kind == OptionKind::Number ? DLLM_NUMBER
                                  : one.kind == OptionKind::Word   ? DLLM_WORD
                                  : one.kind == OptionKind::Rows   ? DLLM_ROWS
                                                                   : DLLM_INTEGER;
    write(info, {0, one.key.c_str(), one.help.c_str(), one.legal.c_str(),
                 one.value ? one.value->c_str() : nullptr, kind});
  });
}

dllm_status dllm_planner_create(const char* policy, const char* options, const dllm_shape* shape,
                                int64_t layers, dllm_planner** planner) {
  return guarded([&] {
    given(planner, "planner");
    const SequenceShape wanted = shape_of(shape);
    if (layers > std::numeric_limits<std::int32_t>::max())
      base::refuse_argument("layers must be below 2^31, got ", layers);
    const AnyPolicy chosen = table().make(&given(policy, "policy"), options_of(options));
    const bool hides = as_flag(read(shape, "dllm_shape").hides_rows, "hides_rows") != 0;
    check_listed(chosen, checked_traits(chosen, wanted), hides);
    *planner = new dllm_planner(StepPlanner(chosen, wanted, static_cast<Index>(layers)));
  });
}

void dllm_planner_destroy(dllm_planner* planner) { delete planner; }

dllm_status dllm_planner_clone(const dllm_planner* planner, dllm_planner** copy) {
  return guarded([&] {
    given(copy, "copy");
    refuse_open(given(planner, "planner"), "dllm_planner_clone()");
    *copy = new dllm_planner(*planner);
  });
}

dllm_status dllm_planner_get_info(const dllm_planner* planner, dllm_planner_info* info) {
  return guarded([&] {
    check_size(info, "dllm_planner_info");
    const StepPlanner& of = given(planner, "planner").planner;
    const PolicyTraits& traits = of.traits();
    dllm_planner_info known{};
    known.policy = planner->policy.c_str();
    known.rows = static_cast<std::int64_t>(of.positions().size());
    known.layers = of.layers();
    known.step = of.step();
    known.stale = of.stale() ? 1 : 0;
    known.step_open = of.step_open() ? 1 : 0;
    known.counts = counts_of(planner->counts);
    known.stored_deltas_begin = traits.stored_deltas.begin;
    known.stored_deltas_end = traits.stored_deltas.end;
    known.keeps_features = traits.keeps_features ? 1 : 0;
    known.needs_block = traits.needs_block ? 1 : 0;
    known.needs_masked = traits.needs_masked ? 1 : 0;
    known.needs_changed = traits.needs_changed ? 1 : 0;
    known.needs_confidence = traits.needs_confidence ? 1 : 0;
    known.needs_unchanged_steps = traits.needs_unchanged_steps ? 1 : 0;
    known.needs_candidates = traits.needs_candidates ? 1 : 0;
    known.needs_entropy = traits.needs_entropy ? 1 : 0;
    known.needs_gap = traits.needs_gap ? 1 : 0;
    known.needs_change = traits.needs_change ? 1 : 0;
    known.predicts_all = traits.predicts_all ? 1 : 0;
    known.hides_rows = traits.hides_rows ? 1 : 0;
    write(info, known);
  });
}

dllm_status dllm_planner_reset(dllm_planner* planner, const dllm_shape* shape) {
  return guarded([&] {
    given(planner, "planner").planner.reset(shape_of(shape));
    planner->counts = {};
  });
}

dllm_status dllm_planner_reshape(dllm_planner* planner, const dllm_shape* shape, int64_t keep) {
  return guarded([&] {
    given(planner, "planner").planner.reshape(shape_of(shape), static_cast<Index>(keep));
  });
}

dllm_status dllm_planner_mark_stale(dllm_planner* planner) {
  return guarded([&] { given(planner, "planner").planner.mark_stale(); });
}

dllm_status dllm_step_begin(dllm_planner* planner, const dllm_step_input* input, dllm_step* step) {
  return guarded([&] {
    StepPlanner& of = given(planner, "planner").planner;
    const auto known = read(input, "dllm_step_input");
    check_size(step, "dllm_step");
    const auto rows = static_cast<Index>(of.positions().size());
    of.begin_step(
        {.block = {static_cast<Index>(known.block_begin), static_cast<Index>(known.block_end)},
         .block_step = static_cast<Index>(known.block_step),
         .masked = rows_of(known.masked, rows),
         .changed = rows_of(known.changed, rows),
         .confidence = rows_of(known.confidence, rows),
         .unchanged_steps = rows_of(known.unchanged_steps, rows),
         .given = rows_of(known.given, rows),
         .block_done = as_flag(known.block_done, "block_done") != 0,
         .candidates = rows_of(known.candidates, rows),
         .entropy = rows_of(known.entropy, rows),
         .gap = rows_of(known.gap, rows),
         .change = rows_of(known.change, rows)});
    try {
      planner->lists.assign(of);
    } catch (...) {
      of.cancel_step();
      throw;
    }
    write(step, step_of(planner->lists));
  });
}

dllm_status dllm_step_commit(dllm_planner* planner) {
  return guarded([&] {
    given(planner, "planner").planner.commit_step();
    planner->counts += planner->lists.counts();
  });
}

dllm_status dllm_step_cancel(dllm_planner* planner) {
  return guarded([&] { given(planner, "planner").planner.cancel_step(); });
}

dllm_status dllm_step_drop(dllm_planner* planner) {
  return guarded([&] { given(planner, "planner").planner.drop_step(); });
}

dllm_status dllm_select(const dllm_sums* sums, size_t verified, size_t count, double threshold,
                        int32_t* selected, size_t* selected_count) {
  return guarded([&] {
    thread_local SelectScratch scratch;
    given(selected_count, "selected_count");
    if (verified > 0) given(sums, "sums");
    if (verified > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()))
      base::refuse_argument("verified must be below 2^31, got ", verified);
    if (count > verified)
      base::refuse_argument("count must be in [0, verified = ", verified, "], got ", count);
    if (count > 0) given(selected, "selected");
    scratch.sums.resize(verified);
    for (std::size_t row = 0; row < verified; ++row)
      scratch.sums[row] = {sums[row].dot, sums[row].fresh_square, sums[row].stored_square};
    scratch.rule.select(scratch.sums, static_cast<Index>(count), threshold, scratch.selected);
    std::transform(scratch.selected.begin(), scratch.selected.end(), selected,
                   [](Index place) { return static_cast<std::int32_t>(place); });
    *selected_count = scratch.selected.size();
  });
}

dllm_status dllm_planner_save(const dllm_planner* planner, void* buffer, size_t capacity,
                              size_t* needed) {
  return guarded([&] {
    given(needed, "needed");
    refuse_open(given(planner, "planner"), "dllm_planner_save()");
    if (capacity > 0) given(static_cast<std::byte*>(buffer), "buffer");
    std::vector<std::byte> bytes;
    SnapshotWriter out(bytes);
    dllm_cache::detail::save_plans(out, planner->planner, planner->counts);
    *needed = bytes.size();
    if (buffer == nullptr) return;
    if (capacity < bytes.size())
      base::refuse_argument("capacity must be at least ", bytes.size(), " bytes, got ", capacity);
    std::memcpy(buffer, bytes.data(), bytes.size());
  });
}

dllm_status dllm_planner_restore(dllm_planner* planner, const void* bytes, size_t size) {
  const auto restore = [&] {
    refuse_open(given(planner, "planner"), "dllm_planner_restore()");
    const auto* begin = static_cast<const std::byte*>(bytes);
    SnapshotReader in(std::span<const std::byte>(&given(begin, "bytes"), size));
    dllm_cache::detail::restore_plans(in, planner->planner, planner->counts);
  };
  return guarded(restore, DLLM_BAD_SNAPSHOT);
}
