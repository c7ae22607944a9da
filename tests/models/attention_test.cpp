// SPDX-License-Identifier: Apache-2.0
// Attention of every backend and path against a plain one in double.
#include "dllm_cache/models/compute/attention.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dllm_cache/base/large_pages.hpp"
#include "dllm_cache/models/compute/row_operations.hpp"
#include "tests/models/all_options.hpp"
#include "tests/support/allocation_counter.hpp"
#include "tests/support/random_numbers.hpp"
#include "tests/support/refusal.hpp"

using namespace dllm_cache;
using namespace dllm_cache::testing;
using models::HeadShape;

namespace {

constexpr std::uint64_t seed = 1149;

template <class Stored>
struct Problem {
  Problem(Index query_rows, Index key_rows, const HeadShape& heads)
      : shape(heads), rows(query_rows), keys(key_rows) {
    RandomNumbers random(seed);
    q = random.vector<float>(rows * heads.heads * heads.head_dim, 3.0);
    for (const float x : random.vector<float>(keys * width(), 1.0)) k.push_back(Stored(x));
    for (const float x : random.vector<float>(keys * width(), 2.0)) v.push_back(Stored(x));
  }
  [[nodiscard]] Index width() const { return shape.kv_heads * shape.head_dim; }
  [[nodiscard]] Index width_out() const { return shape.heads * shape.head_dim; }
  [[nodiscard]] MatrixView<const float> queries() const {
    return dense_view(q.data(), rows, shape.heads * shape.head_dim);
  }
  [[nodiscard]] MatrixView<const Stored> keys_of(Index count) const {
    return {k.data(), count, width(), width()};
  }
  [[nodiscard]] MatrixView<const Stored> values_of(Index count) const {
    return {v.data(), count, width(), width()};
  }
  // Rows [0, rows / 2) see all keys but the last, the others all of them: two segments.
  [[nodiscard]] std::vector<Segment<Stored>> segments() const {
    const Index half = keys > 1 ? rows / 2 : 0;
    std::vector<Segment<Stored>> all;
    if (half > 0) all.push_back({0, half, keys_of(keys - 1), values_of(keys - 1)});
    all.push_back({half, rows, keys_of(keys), values_of(keys)});
    return all;
  }

  HeadShape shape;
  Index rows, keys;
  std::vector<float> q;
  std::vector<Stored> k, v;
};

// What computes attention reads: queries, and segments of keys and values that others own.
template <class Stored>
struct Task {
  HeadShape shape;
  MatrixView<const float> q;
  std::vector<Segment<Stored>> segments;
};

template <class Stored>
std::vector<double> plain_attention(const Task<Stored>& task) {
  const Index dim = task.shape.head_dim, group = task.shape.heads / task.shape.kv_heads;
  std::vector<double> out(static_cast<std::size_t>(task.q.rows * task.q.cols));
  for (const Segment<Stored>& segment : task.segments)
    for (Index row = segment.begin; row < segment.end; ++row)
      for (Index head = 0; head < task.shape.heads; ++head) {
        const float* query = task.q.row(row) + head * dim;
        const Index column = head / group * dim;
        std::vector<double> weights;
        double best = -std::numeric_limits<double>::infinity(), sum = 0.0;
        for (Index key = 0; key < segment.keys.rows; ++key) {
          double score = 0.0;
          for (Index i = 0; i < dim; ++i)
            score += static_cast<double>(query[i]) *
                     static_cast<double>(segment.keys.row(key)[column + i]);
          weights.push_back(score / std::sqrt(static_cast<double>(dim)));
          best = std::max(best, weights.back());
        }
        for (double& weight : weights) sum += weight = std::exp(weight - best);
        for (Index i = 0; i < dim; ++i) {
          double total = 0.0;
          for (Index key = 0; key < segment.keys.rows; ++key)
            total += weights[static_cast<std::size_t>(key)] *
                     static_cast<double>(segment.values.row(key)[column + i]);
          out[static_cast<std::size_t>((row * task.shape.heads + head) * dim + i)] = total / sum;
        }
      }
  return out;
}

double largest_difference(const std::vector<float>& found, const std::vector<double>& expected) {
  double largest = 0.0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const double difference = std::abs(static_cast<double>(found[i]) - expected[i]);
    if (!(difference <= largest)) largest = difference;  // NaN stays
  }
  return largest;
}

// Every way that computes attention of this stored type, with its tolerance: values are of size 2;
// bf16 weights have 8 bits, and rounding the rows once more costs 2^-8 of a value, less than 0.01.
template <class Stored, class Check>
void each_way(const Task<Stored>& task, int threads, const Check& check) {
  models::ThreadTeam team(threads);
  for (const models::ComputeOptions& options : all_options()) {
    models::Attention attention(options, team);
    models::ProductInput out;
    out.resize(task.q.rows, task.q.cols, task.q.rows, models::multiplies_bf16(options));
    std::vector<float> found;
    out.fill([&]<class Element>(MatrixView<Element> rows) {
      const auto count = static_cast<std::ptrdiff_t>(task.q.rows * task.q.cols);
      std::fill_n(rows.data, count, std::numeric_limits<Element>::quiet_NaN());
      attention.attend(task.q, std::span<const Segment<Stored>>(task.segments), task.shape, out);
      found.assign(rows.data, rows.data + count);
    });
    INFO("backend " << models::name_of(options.backend) << ", precision "
                    << static_cast<int>(options.precision) << ", " << task.q.rows << " rows, "
                    << task.segments.size() << " segments, " << task.segments.back().keys.rows
                    << " keys, " << task.shape.heads << " heads on " << task.shape.kv_heads
                    << ", head_dim " << task.shape.head_dim << ", " << threads << " threads");
    check(found, out.narrow() ? 0.06 : 2e-5);
  }
}

template <class Stored, class Check>
void each_way(const Problem<Stored>& problem, int threads, const Check& check) {
  each_way(Task<Stored>{problem.shape, problem.queries(), problem.segments()}, threads, check);
}

template <class Stored>
void check_against_plain(const Task<Stored>& task, int threads) {
  const std::vector<double> expected = plain_attention(task);
  each_way(task, threads, [&](const std::vector<float>& found, double tolerance) {
    CHECK(largest_difference(found, expected) <= tolerance);
  });
}

template <class Stored>
void check_all_shapes() {
  // Few and many rows, odd numbers of keys, grouped and single heads, widths off the lanes.
  for (const HeadShape& shape : {HeadShape{4, 4, 16}, HeadShape{6, 2, 32}, HeadShape{2, 1, 8},
                                 HeadShape{3, 3, 10}, HeadShape{7, 1, 128}})
    for (const Index rows : {1, 2, 5, 17, 40})
      for (const Index keys : {1, 2, 17, 64, 333}) {
        const Problem<Stored> problem(rows, keys, shape);
        check_against_plain(Task<Stored>{shape, problem.queries(), problem.segments()},
                            1 + static_cast<int>(rows % 2));
      }
}

// Keys and values of one sequence, with what is no number behind them.
template <class Stored>
struct Sequence {
  Sequence(Index rows, Index columns, std::uint64_t number) : keys(rows), width(columns) {
    RandomNumbers random(seed + number);
    for (const float x : random.vector<float>(rows * columns, 1.0)) k.push_back(Stored(x));
    for (const float x : random.vector<float>(rows * columns, 2.0)) v.push_back(Stored(x));
    for (std::vector<Stored>* const all : {&k, &v})
      all->insert(all->end(), static_cast<std::size_t>(70 * columns),
                  std::numeric_limits<Stored>::quiet_NaN());
  }
  [[nodiscard]] Segment<Stored> segment(Index begin, Index end, Index seen) const {
    return {begin, end, {k.data(), seen, width, width}, {v.data(), seen, width, width}};
  }
  Index keys, width;
  std::vector<Stored> k, v;
};

// Rows of one sequence that see one another block by block, and all keys that were there before.
// The first step ends after `first` rows, whatever the block.
template <class Stored>
void append_steps(std::vector<Segment<Stored>>& segments, const Sequence<Stored>& sequence,
                  Index rows, Index block, Index first) {
  const Index begin = segments.empty() ? 0 : segments.back().end;
  for (Index done = 0; done < rows;) {
    const Index end = std::min(rows, done == 0 ? first : done + block);
    segments.push_back(sequence.segment(begin + done, begin + end, sequence.keys - rows + end));
    done = end;
  }
}

std::vector<float> random_queries(Index rows, const HeadShape& shape) {
  return RandomNumbers(seed).vector<float>(rows * shape.heads * shape.head_dim, 3.0);
}

template <class Stored>
void check_all_stairs() {
  for (const HeadShape& shape :
       {HeadShape{4, 4, 16}, HeadShape{4, 2, 24}, HeadShape{7, 1, 32}, HeadShape{2, 2, 128}})
    for (const Index block : {1, 3, 4, 32})
      for (const Index rows : {1, 2, 37, 300}) {
        const Index width = shape.kv_heads * shape.head_dim, other = rows / 2 + 1;
        const Sequence<Stored> one(rows, width, 1), two(other + 45, width, 2);
        std::vector<Segment<Stored>> segments;
        append_steps(segments, one, rows, block, block);  // ends with a ragged step
        append_steps(segments, two, other, block, std::max<Index>(1, block / 2));
        const std::vector<float> q = random_queries(rows + other, shape);
        check_against_plain(
            Task<Stored>{shape, dense_view(q.data(), rows + other, shape.heads * shape.head_dim),
                         segments},
            1 + static_cast<int>(block % 2));
      }
}

}  // namespace

TEST_CASE("attention: every backend equals the plain one with float32 features", "[attention]") {
  check_all_shapes<float>();
}

TEST_CASE("attention: every backend equals the plain one with bf16 features", "[attention]") {
  check_all_shapes<Eigen::bfloat16>();
}

TEST_CASE("attention: the steps of a staircase equal the plain ones with float32 features",
          "[attention]") {
  check_all_stairs<float>();
}

TEST_CASE("attention: the steps of a staircase equal the plain ones with bf16 features",
          "[attention]") {
  check_all_stairs<Eigen::bfloat16>();
}

TEST_CASE("attention: the steps of a staircase equal the plain ones with half features",
          "[attention]") {
  const HeadShape shape{4, 2, 24};
  const Sequence<Eigen::half> sequence(200, 48, 1);
  std::vector<Segment<Eigen::half>> segments;
  append_steps(segments, sequence, 137, 4, 3);
  const std::vector<float> q = random_queries(137, shape);
  check_against_plain(Task<Eigen::half>{shape, dense_view(q.data(), 137, 96), segments}, 2);
}

TEST_CASE("attention: steps of any heights, and keys that become fewer, make no difference",
          "[attention]") {
  const HeadShape shape{4, 2, 16};
  const Sequence<float> sequence(1500, 32, 1);
  std::vector<Segment<float>> segments;
  Index begin = 0;
  for (const auto& [rows, seen] : std::vector<std::pair<Index, Index>>{
           {3, 1}, {100, 90}, {1, 1200}, {30, 1200}, {2, 1201}, {70, 1500}, {5, 3}, {40, 700}}) {
    segments.push_back(sequence.segment(begin, begin + rows, seen));
    begin += rows;
  }
  const std::vector<float> q = random_queries(begin, shape);
  for (const int threads : {1, 3})
    check_against_plain(Task<float>{shape, dense_view(q.data(), begin, 64), segments}, threads);
}

TEST_CASE("attention: rows with keys alike have the same bits in one segment and in several",
          "[attention]") {
  const HeadShape shape{4, 2, 32};
  const Sequence<float> sequence(190, 64, 1);
  const std::vector<float> q = random_queries(150, shape);
  const MatrixView<const float> queries = dense_view(q.data(), 150, 128);
  std::vector<std::vector<float>> expected;
  each_way(Task<float>{shape, queries, {sequence.segment(0, 150, 190)}}, 1,
           [&](const std::vector<float>& found, double) { expected.push_back(found); });
  std::size_t way = 0;
  each_way(Task<float>{shape,
                       queries,
                       {sequence.segment(0, 4, 190), sequence.segment(4, 100, 190),
                        sequence.segment(100, 150, 190)}},
           2, [&](const std::vector<float>& found, double) { CHECK(found == expected[way++]); });
}

TEST_CASE("attention: values that are no numbers reach the steps that see them, no other",
          "[attention]") {
  const HeadShape shape{4, 2, 16};
  const std::vector<float> q = random_queries(300, shape);
  for (const Index block : {1, 4, 32})
    for (const float number :
         {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::quiet_NaN()}) {
      Sequence<float> sequence(310, 32, 1);
      const Index bad = 171;
      std::vector<Segment<float>> segments;
      append_steps(segments, sequence, 300, block, block);
      Task<float> task{shape, dense_view(q.data(), 300, 64), segments};
      const std::vector<double> expected = plain_attention(task);
      // One column of the second key head, which the third and the fourth head read.
      sequence.v[static_cast<std::size_t>(bad * 32 + 20)] = number;
      sequence.k[static_cast<std::size_t>((bad + 60) * 32)] = number;  // of the first
      each_way(task, 1, [&](const std::vector<float>& found, double tolerance) {
        for (const Segment<float>& step : segments)
          for (Index at = step.begin * 64; at < step.end * 64; ++at) {
            const bool value_seen = at % 64 >= 32 && at % 16 == 4 && step.keys.rows > bad;
            const bool key_seen = at % 64 < 32 && step.keys.rows > bad + 60;
            const auto i = static_cast<std::size_t>(at);
            if (value_seen || (key_seen && std::isnan(number)))
              REQUIRE_FALSE(std::isfinite(found[i]));
            else if (!key_seen)
              REQUIRE(std::abs(static_cast<double>(found[i]) - expected[i]) <= tolerance);
          }
      });
    }
}

TEST_CASE("attention: steps are counted as what their rows see", "[attention]") {
  models::ThreadTeam team(1);
  const HeadShape shape{4, 2, 24};
  const Sequence<float> sequence(60, 48, 1);
  std::vector<Segment<float>> segments;
  append_steps(segments, sequence, 50, 10, 10);
  const std::vector<float> q = random_queries(50, shape);
  for (const models::ComputeOptions& options : all_options()) {
    models::Attention attention(options, team);
    models::ProductInput out;
    out.resize(50, 96, 50, models::multiplies_bf16(options));
    attention.attend(dense_view(q.data(), 50, 96), std::span<const Segment<float>>(segments), shape,
                     out);
    CHECK(attention.operations() == 4.0 * 10 * (20 + 30 + 40 + 50 + 60) * 96);
  }
}

TEST_CASE("attention: a staircase allocates nothing when it comes again", "[attention]") {
  models::ThreadTeam team(1);
  const HeadShape shape{4, 2, 32};
  const Sequence<Eigen::bfloat16> sequence(300, 64, 1);
  std::vector<Segment<Eigen::bfloat16>> segments;
  append_steps(segments, sequence, 300, 4, 4);
  const std::vector<float> q = random_queries(300, shape);
  // oneDNN allocates objects of its own in every product.
  models::Attention attention({models::Backend::Eigen, models::Precision::Float32}, team);
  models::ProductInput out;
  out.resize(300, 128, 300, false);
  const auto attend = [&] {
    attention.attend(dense_view(q.data(), 300, 128),
                     std::span<const Segment<Eigen::bfloat16>>(segments), shape, out);
  };
  attend();
  CHECK(allocations(attend) == 0);
}

TEST_CASE("attention: scores too far apart for a float leave the nearest key", "[attention]") {
  for (const Index rows : {1, 40}) {
    Problem<float> problem(rows, 33, {1, 1, 16});
    std::fill(problem.q.begin(), problem.q.end(), 1e4F);
    std::fill(problem.k.begin(), problem.k.end(), -1e4F);
    std::fill_n(problem.k.begin() + 5 * 16, 16, 1e4F);
    each_way(problem, 1, [&](const std::vector<float>& out, double) {
      for (const float one : out) REQUIRE(std::isfinite(one));
      CHECK(out.front() == Approx(problem.v[5 * 16]).epsilon(0.01));
      CHECK(out.back() == Approx(problem.v[5 * 16 + 15]).epsilon(0.01));
    });
  }
}

TEST_CASE("attention: a key that is no number reaches every row that sees it, no other",
          "[attention]") {
  for (const Index rows : {2, 40}) {
    Problem<float> problem(rows, 20, {2, 2, 16});
    problem.k.back() = std::numeric_limits<float>::quiet_NaN();  // the last key, the second head
    each_way(problem, 1, [&](const std::vector<float>& out, double) {
      const Index half = rows / 2;  // the first half does not see the last key
      for (Index row = 0; row < rows; ++row) {
        CHECK(std::isfinite(out[static_cast<std::size_t>(row * 32)]));
        CHECK(std::isnan(out[static_cast<std::size_t>(row * 32 + 16)]) == (row >= half));
      }
    });
  }
}

TEST_CASE("attention: operations of few and many rows are counted alike", "[attention]") {
  models::ThreadTeam team(1);
  for (const models::ComputeOptions& options : all_options()) {
    models::Attention attention(options, team);
    models::ProductInput out;
    double expected = 0.0;
    for (const Index rows : {2, 40}) {
      const Problem<float> problem(rows, 33, {6, 2, 16});
      const auto segments = problem.segments();
      out.resize(rows, problem.width_out(), rows, models::multiplies_bf16(options));
      attention.attend(problem.queries(), std::span<const Segment<float>>(segments), problem.shape,
                       out);
      // Half of the rows see one key less.
      expected += 4.0 * static_cast<double>(rows) * 32.5 * 6 * 16;
      CHECK(attention.operations() == expected);
    }
  }
}

TEST_CASE("attention: rows of another type than the options multiply are refused",
          "[attention][refusal]") {
  models::ThreadTeam team(1);
  const Problem<float> problem(2, 5, {1, 1, 16});
  const auto segments = problem.segments();
  for (const models::ComputeOptions& options : all_options()) {
    models::Attention attention(options, team);
    models::ProductInput out;
    out.resize(2, problem.width_out(), 2, !models::multiplies_bf16(options));
    const std::string message = refusal<std::invalid_argument>([&] {
      attention.attend(problem.queries(), std::span<const Segment<float>>(segments), problem.shape,
                       out);
      return 0;
    });
    CHECK_THAT(message, Catch::Contains("Attention") && Catch::Contains("narrow"));
  }
}

TEST_CASE("attention: a backend that is not built in is refused", "[attention][refusal]") {
  models::ThreadTeam team(1);
  const std::string message = refusal<std::invalid_argument>([&] {
    const models::Attention attention({.backend = static_cast<models::Backend>(77)}, team);
    return attention.operations();
  });
  CHECK_THAT(message, Catch::Contains("ComputeOptions: backend"));
}

TEST_CASE("attention: bf16 is refused where oneDNN has no products of it", "[attention][refusal]") {
  const models::ComputeOptions options{models::Backend::OneDnn, models::Precision::Bfloat16};
  if (!models::has_onednn || models::can_compute(options)) {
    WARN("not tested: oneDNN has bf16 products on this processor, or is not built in");
    return;
  }
  models::ThreadTeam team(1);
  const std::string message = refusal<std::invalid_argument>([&] {
    const models::Attention attention(options, team);
    return attention.operations();
  });
  CHECK_THAT(message, Catch::Contains("oneDNN has no bf16 products on this processor"));
}

TEST_CASE("exponentiate: as near to exp as floats are, at both ends and for NaN", "[attention]") {
  using models::detail::FloatLanes;
  double worst = 0.0;
  for (int i = 0; i < 12774; ++i) {
    const float x = -87.0F + 0.0137F * static_cast<float>(i);
    FloatLanes lanes = FloatLanes{} + x;
    models::detail::exponentiate(lanes);
    worst = std::max(
        worst, std::abs(static_cast<double>(lanes[7]) / std::exp(static_cast<double>(x)) - 1.0));
  }
  CHECK(worst < 2e-7);
  FloatLanes ends{};
  ends[1] = -std::numeric_limits<float>::infinity();
  ends[2] = std::numeric_limits<float>::infinity();
  ends[3] = std::numeric_limits<float>::quiet_NaN();
  models::detail::exponentiate(ends);
  CHECK(ends[0] == 1.0F);
  CHECK(ends[1] < 1e-37F);
  CHECK(ends[2] > 1e38F);
  CHECK(std::isnan(ends[3]));
}

TEST_CASE("large_pages: memory of any size is aligned as asked and given back", "[large_pages]") {
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{5} << 20}) {
    void* const memory = large_pages()->allocate(bytes, 64);
    CHECK(reinterpret_cast<std::uintptr_t>(memory) % 64 == 0);
    if (bytes > 0) static_cast<char*>(memory)[bytes - 1] = 1;
    large_pages()->deallocate(memory, bytes, 64);
  }
  CHECK(large_pages()->is_equal(LargePages(std::pmr::new_delete_resource())));
  CHECK_FALSE(large_pages()->is_equal(*std::pmr::new_delete_resource()));
}
