// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

#include "dllm_cache/decoding/denoising_model.hpp"
#include "tests/support/tiny_model.hpp"

// The published caches a second time, each written from its definition: which rows are in the pass
// in a step, and which rows' keys and values are put away at its end. Nothing is shared with the
// library but the layers of the model. The shift is that of the head: row i - shift predicts token
// i.
namespace dllm_cache::testing {

using RowSet = std::set<Index>;

inline RowSet row_range(Index begin, Index end) {
  RowSet rows;
  for (Index row = std::max<Index>(begin, 0); row < end; ++row) rows.insert(row);
  return rows;
}

/// Where the generation stands before a step.
struct PlainStep {
  Index step = 0, block = 0, block_step = 0;  // from 0
  Index begin = 0, end = 0;                   // rows of the block
  Index prompt = 0, rows = 0, shift = 0;
  std::vector<std::vector<std::int32_t>> history;  // tokens before each step, this one last
  std::int32_t mask = 0;
  std::map<Index, double> committed = {};  // by the last step: row, entropy of its prediction

  [[nodiscard]] RowSet all() const { return row_range(0, rows); }
  [[nodiscard]] std::int32_t token(Index row, Index steps_ago = 0) const {
    return history[history.size() - 1 - static_cast<std::size_t>(steps_ago)]
                  [static_cast<std::size_t>(row)];
  }
  /// Rows that hold a token, `steps_ago` steps ago.
  [[nodiscard]] RowSet decoded(Index steps_ago) const {
    RowSet set;
    for (Index row = 0; row < rows; ++row)
      if (row < prompt || token(row, steps_ago) != mask) set.insert(row);
    return set;
  }
};

/// One published cache.
class PlainCache {
 public:
  virtual ~PlainCache() = default;
  /// True when everything put away is thrown away before this step.
  virtual bool forgets(const PlainStep&) { return false; }
  virtual RowSet rows_in_pass(const PlainStep&) = 0;
  /// Rows that exist in this step: the others are seen by nobody.
  virtual RowSet visible(const PlainStep& at) { return at.all(); }
  /// Rows whose keys and values are those of this step from now on.
  virtual RowSet keeps(const PlainStep&, bool block_ended) = 0;
};

/// Fast-dLLM, prefix: a full forward per block keeps what lies before it; after that the block and
/// all behind it are in the pass and nothing more is kept.
class PlainPrefixCache final : public PlainCache {
  bool forgets(const PlainStep& at) override { return at.block_step == 0; }
  RowSet rows_in_pass(const PlainStep& at) override {
    return at.block_step == 0 ? at.all() : row_range(at.begin - at.shift, at.rows);
  }
  RowSet keeps(const PlainStep& at, bool) override {
    return at.block_step == 0 ? row_range(0, at.begin - at.shift) : RowSet{};
  }
};

/// Fast-dLLM, dual: a full forward per block keeps everything; after that the block is in the pass
/// and takes the place of what was kept of it.
class PlainDualCache final : public PlainCache {
  bool forgets(const PlainStep& at) override { return at.block_step == 0; }
  RowSet rows_in_pass(const PlainStep& at) override {
    return at.block_step == 0 ? at.all() : row_range(at.begin - at.shift, at.end);
  }
  RowSet keeps(const PlainStep& at, bool) override { return rows_in_pass(at); }
};

/// dInfer, vicinity refresh: forwards without a cache first; then a full one when the cache is
/// empty, or outside the first block when the block is new or the period is over; else the block
/// with its neighbourhood.
class PlainVicinity final : public PlainCache {
 public:
  PlainVicinity(Index prefix_look, Index after_look, Index warm_up, Index frequency)
      : m_before(prefix_look), m_after(after_look), m_warm_up(warm_up), m_frequency(frequency) {}

 private:
  RowSet rows_in_pass(const PlainStep& at) override {
    const bool required = at.block_step == 0 || (m_frequency > 0 && at.step % m_frequency == 0);
    m_warming = at.step < m_warm_up;
    if (m_warming || m_empty || (required && at.block > 0)) return at.all();
    return row_range(at.begin - std::max(m_before, at.shift), std::min(at.rows, at.end + m_after));
  }
  RowSet keeps(const PlainStep& at, bool) override {
    if (m_warming) return {};
    const RowSet in_pass = rows_in_pass(at);
    m_empty = false;
    return in_pass;
  }
  Index m_before, m_after, m_warm_up, m_frequency;
  bool m_empty = true, m_warming = true;
};

/// FreeCache: everything before a pointer is frozen for ever; the pointer moves to the end of a
/// block with the block's last step.
class PlainFreeCache final : public PlainCache {
  RowSet rows_in_pass(const PlainStep& at) override { return row_range(m_clean, at.rows); }
  RowSet keeps(const PlainStep& at, bool block_ended) override {
    const Index from = m_clean;
    if (at.step == 0) m_clean = at.prompt - at.shift;
    if (block_ended) m_clean = at.end - at.shift;
    return row_range(from, m_clean);
  }
  Index m_clean = 0;
};

/// dKV-Cache-Decode for LLaDA: within a block, D_i are the decoded rows after step i. Steps 0, 1
/// and every R-th compute everything; the others all but D_{i-2}. From step 1 on D_{i-1} is kept.
class PlainDkvLlada final : public PlainCache {
 public:
  explicit PlainDkvLlada(Index reload) : m_reload(reload) {}

 private:
  // At step i, history has D_{i-1} now (0 steps ago) and D_{i-2} a step ago.
  bool forgets(const PlainStep& at) override { return full(at); }
  [[nodiscard]] bool full(const PlainStep& at) const {
    return at.block_step <= 1 || at.block_step % m_reload == 0;
  }
  RowSet rows_in_pass(const PlainStep& at) override {
    RowSet rows = at.all();
    if (!full(at))
      for (const Index row : at.decoded(1)) rows.erase(row);
    return rows;
  }
  RowSet keeps(const PlainStep& at, bool) override {
    return at.block_step == 0 ? RowSet{} : at.decoded(0);
  }
  Index m_reload;
};

/// The same for Dream (variant `un`): row i may rest once token i + 1 is decoded, the last row once
/// the first token is. One full forward, then every R-th, whatever the blocks.
class PlainDkvDream final : public PlainCache {
 public:
  explicit PlainDkvDream(Index reload) : m_reload(reload) {}

 private:
  [[nodiscard]] static RowSet cache_position(const PlainStep& at, Index steps_ago) {
    const RowSet decoded = at.decoded(steps_ago);
    RowSet set;
    for (Index row = 0; row < at.rows; ++row)
      if (decoded.count((row + 1) % at.rows) > 0) set.insert(row);
    return set;
  }
  bool forgets(const PlainStep& at) override { return at.step % m_reload == 0; }
  RowSet rows_in_pass(const PlainStep& at) override {
    RowSet rows = at.all();
    if (!forgets(at))
      for (const Index row : cache_position(at, 1)) rows.erase(row);
    return rows;
  }
  RowSet keeps(const PlainStep& at, bool) override { return cache_position(at, 0); }
  Index m_reload;
};

/// diffuse-cpp: masked rows are in the pass, rows whose token is another than a step ago, and those
/// for which it was so in one of the last steps; with a shifted head also what predicts a masked
/// row.
class PlainChangedRows final : public PlainCache {
 public:
  PlainChangedRows(Index keep_active, Index refresh) : m_active(keep_active), m_refresh(refresh) {}

 private:
  RowSet rows_in_pass(const PlainStep& at) override {
    if (at.step == 0 || (m_refresh > 0 && at.step % m_refresh == 0)) return at.all();
    RowSet rows;
    for (Index row = 0; row < at.rows; ++row) {
      if (at.decoded(0).count(row) == 0) {
        rows.insert(row);
        rows.insert(row - at.shift);
      }
      for (Index ago = 0; ago <= m_active && ago < at.step; ++ago)
        if (at.token(row, ago) != at.token(row, ago + 1)) rows.insert(row);
    }
    return rows;
  }
  RowSet keeps(const PlainStep& at, bool) override { return rows_in_pass(at); }
  Index m_active, m_refresh;
};

/// What is decoded and how: the likeliest tokens, a fixed number a step or those above a threshold.
struct PlainTask {
  std::vector<std::int32_t> prompt;
  Index response = 1, block_length = 1;
  Index steps_per_block = 1;  ///< Read when there is no threshold.
  double threshold = -1.0;    ///< Below 0: none.
};

/// All that happens in a generation.
struct PlainRun {
  std::vector<std::vector<std::int32_t>> tokens;                 ///< After each step.
  std::vector<RowSet> in_pass;                                   ///< In each step.
  std::map<std::pair<Index, Index>, std::vector<float>> logits;  ///< By step and row.
  double margin = 1.0;  ///< Smallest gap of probabilities behind any decision; run_plainly's.
};

/// Decodes `task` with a cache, step after step, in loops over whole matrices.
template <class Model>
PlainRun run_plainly(Model& model, PlainCache& cache, const PlainTask& task) {
  const ModelShape shape = model.shape();
  PlainStep at;
  at.prompt = static_cast<Index>(task.prompt.size());
  at.rows = at.prompt + task.response;
  at.shift = model.prediction_shift();
  at.mask = model.special_tokens().mask;
  std::vector<std::int32_t> tokens = task.prompt;
  tokens.resize(static_cast<std::size_t>(at.rows), at.mask);
  const auto layers = static_cast<std::size_t>(shape.layers);
  std::vector<Matrix<float>> kept_keys(layers, Matrix<float>(at.rows, shape.kv_width)),
      kept_values = kept_keys, fresh_keys = kept_keys, fresh_values = kept_keys;
  RowSet kept;
  bool excludes_mask = false;  // the last step of an open-ended block found nothing but masks
  PlainRun run;
  for (at.block = 0; at.block * task.block_length < task.response; ++at.block) {
    at.begin = at.prompt + at.block * task.block_length;
    at.end = at.begin + task.block_length;
    bool block_ended = false;
    for (at.block_step = 0; !block_ended; ++at.block_step, ++at.step) {
      at.history.push_back(tokens);
      if (cache.forgets(at)) kept.clear();
      const RowSet in_pass = cache.rows_in_pass(at), visible = cache.visible(at);
      at.committed.clear();
      for (const Index row : visible)
        if (in_pass.count(row) == 0 && kept.count(row) == 0)
          throw std::logic_error("plain cache: a row rests whose keys nobody has");

      const auto count = static_cast<Index>(in_pass.size());
      std::vector<std::int32_t> ids, positions;
      for (const Index row : in_pass) {
        ids.push_back(tokens[static_cast<std::size_t>(row)]);
        positions.push_back(static_cast<std::int32_t>(row));
      }
      Matrix<float> x(count, shape.width), v(count, shape.kv_width), k(count, shape.kv_width),
          q(count, shape.query_width), u(count, shape.width);
      if (count > 0) model.embed(ids, x.view());
      for (std::size_t number = 0; count > 0 && number < layers; ++number) {
        auto&& layer = model.layer(static_cast<Index>(number));
        layer.value(x.view(), v.view());
        layer.query_key(x.view(), positions, q.view(), k.view());
        Matrix<float> keys = kept_keys[number], values = kept_values[number];
        Index place = 0;
        for (const Index row : in_pass) {
          std::copy_n(k.row(place), k.cols, keys.row(row));
          std::copy_n(v.row(place++), v.cols, values.row(row));
        }
        const auto seen = static_cast<Index>(visible.size());
        Matrix<float> seen_keys(seen, shape.kv_width), seen_values = seen_keys;
        place = 0;
        for (const Index row : visible) {
          std::copy_n(keys.row(row), k.cols, seen_keys.row(place));
          std::copy_n(values.row(row), v.cols, seen_values.row(place++));
        }
        const Segment<float> segment{0, count, seen_keys.view(), seen_values.view()};
        layer.delta(x.view(), q.view(), std::span<const Segment<float>>(&segment, 1), u.view());
        for (std::size_t i = 0; i < x.data.size(); ++i) x.data[i] += u.data[i];
        fresh_keys[number] = keys;
        fresh_values[number] = values;
      }

      struct Best {
        Index row;
        std::int32_t token;
        double confidence;
        double next;  // probability of the second likeliest token
        double entropy;
      };
      std::vector<Best> found;
      Index place = 0;
      for (const Index from : in_pass) {
        const Index row = from + at.shift;
        const Index here = place++;
        if (row < at.prompt || row >= at.end || tokens[static_cast<std::size_t>(row)] != at.mask)
          continue;
        Matrix<float> logits(1, model.vocabulary());
        model.logits({x.row(here), 1, x.cols, x.cols}, logits.view());
        run.logits[{at.step, row}] = logits.data;
        if (excludes_mask)
          logits.data[static_cast<std::size_t>(at.mask)] = -std::numeric_limits<float>::infinity();
        const auto most = std::max_element(logits.data.begin(), logits.data.end());
        double sum = 0.0, second = 0.0, weighted = 0.0;
        for (auto logit = logits.data.begin(); logit != logits.data.end(); ++logit) {
          const double weight = std::exp(static_cast<double>(*logit) - static_cast<double>(*most));
          sum += weight;
          if (weight > 0.0) weighted += weight * std::log(weight);
          if (logit != most) second = std::max(second, weight);
        }
        found.push_back({row, static_cast<std::int32_t>(most - logits.data.begin()), 1.0 / sum,
                         second / sum, std::log(sum) - weighted / sum});
      }
      std::stable_sort(found.begin(), found.end(),
                       [](const Best& a, const Best& b) { return a.confidence > b.confidence; });
      Index wanted = task.block_length / task.steps_per_block +
                     (at.block_step < task.block_length % task.steps_per_block ? 1 : 0);
      if (task.threshold >= 0.0) {
        wanted = 0;
        for (const Best& one : found) {
          if (wanted == 0 || one.confidence >= task.threshold) ++wanted;
          run.margin = std::min(run.margin, std::abs(one.confidence - task.threshold));
        }
      } else if (wanted > 0 && wanted < static_cast<Index>(found.size())) {
        const auto last = static_cast<std::size_t>(wanted - 1);
        run.margin = std::min(run.margin, found[last].confidence - found[last + 1].confidence);
      }
      excludes_mask = task.threshold >= 0.0;
      for (Index i = 0; i < std::min(wanted, static_cast<Index>(found.size())); ++i) {
        const Best& one = found[static_cast<std::size_t>(i)];
        tokens[static_cast<std::size_t>(one.row)] = one.token;
        at.committed[one.row] = one.entropy;
        run.margin = std::min(run.margin, one.confidence - one.next);
        if (one.token != at.mask) excludes_mask = false;
      }

      block_ended =
          task.threshold >= 0.0
              ? std::count(tokens.begin() + at.begin, tokens.begin() + at.end, at.mask) == 0
              : at.block_step + 1 == std::min(task.steps_per_block, task.block_length);
      for (const Index row : cache.keeps(at, block_ended)) {
        if (in_pass.count(row) == 0) {
          if (kept.count(row) == 0) throw std::logic_error("plain cache: keeps what nobody has");
          continue;  // carried over
        }
        kept.insert(row);
        for (std::size_t number = 0; number < layers; ++number) {
          std::copy_n(fresh_keys[number].row(row), shape.kv_width, kept_keys[number].row(row));
          std::copy_n(fresh_values[number].row(row), shape.kv_width, kept_values[number].row(row));
        }
      }
      run.tokens.push_back(tokens);
      run.in_pass.push_back(in_pass);
    }
  }
  return run;
}

/// A cache of the library and the same written plainly.
struct CachePair {
  const char* what;
  AnyPolicy policy;
  std::unique_ptr<PlainCache> plain;
};

}  // namespace dllm_cache::testing
