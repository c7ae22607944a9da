// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>
#include <vector>

#include "tests/support/plain_caches.hpp"

// Caches that came later, a second time from their definitions; see plain_caches.hpp.
namespace dllm_cache::testing {

/// Window-Diffusion: a full forward begins a cycle. After it a window is fixed, all decoded rows
/// and the first W masked ones, which is all that is seen until the cycle's end; in the pass are
/// the first A masked rows, and at first those that the full forward decoded, later those that the
/// cycle's other steps did. Rows that predict them are in the pass with them.
class PlainWindowDiffusion final : public PlainCache {
 public:
  PlainWindowDiffusion(Index cycle, Index window, Index active)
      : m_cycle(cycle), m_window_tokens(window), m_active_tokens(active) {}

 private:
  RowSet rows_in_pass(const PlainStep& at) override {
    const Index position = at.step % m_cycle;
    if (position == 0) {
      m_window = at.all();
      return m_window;
    }
    if (position == 1) {
      m_window = at.decoded(0);
      const RowSet masked = first_masked(at, m_window_tokens, at.all());
      m_window.insert(masked.begin(), masked.end());
    }
    RowSet active = first_masked(at, m_active_tokens, m_window);
    for (Index row = 0; row < at.rows; ++row)
      for (Index ago = 0; ago < std::max<Index>(position - 1, 1); ++ago)
        if (at.token(row, ago) != at.token(row, ago + 1)) active.insert(row);
    RowSet in_pass;
    for (const Index row : active)
      if (m_window.count(row) > 0) {
        in_pass.insert(row);
        const Index predictor = std::max<Index>(row - at.shift, 0);
        if (m_window.count(predictor) > 0) in_pass.insert(predictor);
      }
    return in_pass;
  }
  RowSet visible(const PlainStep&) override { return m_window; }
  RowSet keeps(const PlainStep& at, bool) override { return rows_in_pass(at); }

  static RowSet first_masked(const PlainStep& at, Index count, const RowSet& among) {
    RowSet rows;
    for (Index row = 0; row < at.rows; ++row)
      if (among.count(row) > 0 && at.token(row) == at.mask &&
          static_cast<Index>(rows.size()) < count)
        rows.insert(row);
    return rows;
  }

  Index m_cycle, m_window_tokens, m_active_tokens;
  RowSet m_window;
};

/// EntropyCache: everything after a token was committed whose prediction was too unsure; else the
/// rows that may be committed and the last ones decoded, of equals the lower.
class PlainEntropyCache final : public PlainCache {
 public:
  PlainEntropyCache(double threshold, Index recent) : m_threshold(threshold), m_recent(recent) {}

 private:
  RowSet rows_in_pass(const PlainStep& at) override {
    if (at.step != m_step) {  // asked once a step: what is committed is told before it alone
      m_step = at.step;
      m_unsure = at.step == 0;
      for (const auto& [row, entropy] : at.committed)
        if (entropy > m_threshold) m_unsure = true;
    }
    if (m_unsure) return at.all();
    RowSet rows;
    for (Index ago = 0; ago < at.step; ++ago)
      for (Index row = 0; row < at.rows; ++row)
        if (static_cast<Index>(rows.size()) < m_recent &&
            at.token(row, ago) != at.token(row, ago + 1))
          rows.insert(row);
    for (Index row = at.begin; row < at.end; ++row)
      if (at.token(row) == at.mask) {
        rows.insert(row);
        rows.insert(std::max<Index>(row - at.shift, 0));
      }
    return rows;
  }
  RowSet keeps(const PlainStep& at, bool) override { return rows_in_pass(at); }

  double m_threshold;
  Index m_recent;
  Index m_step = -1;
  bool m_unsure = true;
};

/// What one of the caches below does with the response in a step.
struct PlainSelection {
  bool prompt_due = false, response_due = false;
  RowSet always = {};  ///< Response rows that are recomputed in every layer.
  std::vector<Index> counts =
      {};  ///< Of the others, so many in each layer, the least similar first.
};

/// Caches that carry every row through every layer, where it adds the sum of attention and
/// feed-forward output that is kept of it, or a fresh one. Layer 0 is always recomputed. Values of
/// the response are rewritten in every step; with `projects` they are compared by the feature that
/// the layer has for it, and keys are rewritten too.
class PlainUpdates {
 public:
  PlainUpdates(const TinyModel<float>& model, const SequenceShape& shape, bool projects)
      : m_model(model), m_shape(shape), m_projects(projects) {
    const ModelShape widths = model.shape();
    const Index rows = shape.rows();
    for (Index i = 0; i < widths.layers; ++i)
      m_layers.push_back({Matrix<float>(rows, widths.kv_width),
                          Matrix<float>(rows, widths.kv_width), Matrix<float>(rows, widths.width),
                          Matrix<float>(rows, widths.verify_width)});
  }

  Matrix<float> step(Matrix<float> x, const PlainSelection& selection) {
    for (Index number = 0; number < m_model.shape().layers; ++number)
      run_layer(number, selection, x);
    return x;
  }

 private:
  struct Kept {
    Matrix<float> keys, values, updates, features;
  };

  void run_layer(Index number, const PlainSelection& selection, Matrix<float>& x) {
    Kept& kept = m_layers[static_cast<std::size_t>(number)];
    const ModelShape widths = m_model.shape();
    const TinyLayer<float> layer = m_model.layer(number);
    Matrix<float> v(x.rows, widths.kv_width), k = v, q(x.rows, widths.query_width),
                                              f(x.rows, widths.verify_width),
                                              u(x.rows, widths.width);
    std::vector<std::int32_t> positions;
    for (Index row = 0; row < x.rows; ++row) positions.push_back(static_cast<std::int32_t>(row));
    layer.value(x.view(), v.view());
    layer.query_key(x.view(), positions, q.view(), k.view());
    layer.verify_feature(x.view(), f.view());
    const RowSet prompt = row_range(0, m_shape.prompt),
                 response = row_range(m_shape.prompt, m_shape.rows());
    RowSet fresh, rewritten;
    if (selection.prompt_due || number == 0) fresh = prompt;
    rewritten = fresh;
    rewritten.insert(response.begin(), response.end());
    if (selection.response_due || number == 0)
      fresh.insert(response.begin(), response.end());
    else
      for (const Index row :
           choose(number, selection, m_projects ? f : v, m_projects ? kept.features : kept.values))
        fresh.insert(row);
    for (const Index row : rewritten) {
      std::copy_n(v.row(row), v.cols, kept.values.row(row));
      std::copy_n(f.row(row), f.cols, kept.features.row(row));
    }
    for (const Index row : m_projects ? rewritten : fresh)
      std::copy_n(k.row(row), k.cols, kept.keys.row(row));
    for (const Index row : fresh)
      layer.delta_row(x.row(row), q.row(row), kept.keys.view(), kept.values.view(), u.row(row));
    for (Index row = 0; row < x.rows; ++row) {
      if (fresh.count(row) > 0) std::copy_n(u.row(row), u.cols, kept.updates.row(row));
      tiny::add(x.row(row), kept.updates.row(row), x.cols);
    }
  }

  [[nodiscard]] RowSet choose(Index number, const PlainSelection& selection,
                              const Matrix<float>& now, const Matrix<float>& before) const {
    std::vector<std::pair<double, Index>> others;
    for (Index row = m_shape.prompt; row < m_shape.rows(); ++row) {
      if (selection.always.count(row) > 0) continue;
      double dot = 0.0, a = 0.0, b = 0.0;
      for (Index i = 0; i < now.cols; ++i) {
        const double x = now.row(row)[i], y = before.row(row)[i];
        dot += x * y;
        a += x * x;
        b += y * y;
      }
      others.emplace_back(dot * std::abs(dot) / (std::max(a, 1e-16) * std::max(b, 1e-16)), row);
    }
    std::sort(others.begin(), others.end());  // of equals the lower row
    RowSet rows = selection.always;
    const Index count = selection.counts[static_cast<std::size_t>(number)];
    for (std::size_t i = 0; i < others.size() && static_cast<Index>(i) < count; ++i)
      rows.insert(others[i].second);
    return rows;
  }

  const TinyModel<float>& m_model;
  SequenceShape m_shape;
  bool m_projects;
  std::vector<Kept> m_layers;
};

/// SPA-Cache's share of rows by depth, as two halves of normal curves.
struct PlainShares {
  double peak_depth, peak_share, first_share, last_share, least_share;

  [[nodiscard]] double at(double depth) const {
    const bool left = depth < peak_depth;
    const double end = left ? 0.0 : 1.0, end_share = left ? first_share : last_share;
    // The width with which the curve passes through the share at its end.
    const double variance = -(end - peak_depth) * (end - peak_depth) /
                            (2.0 * std::log(std::max(end_share, 1e-9) / peak_share));
    const double share =
        peak_share * std::exp(-(depth - peak_depth) * (depth - peak_depth) / (2.0 * variance));
    return left ? std::max(share, least_share) : share;
  }
};

/// Dynamic-dLLM's window: so many rows and one, around a row of the response, moved inside.
inline RowSet plain_window(Index center, Index rows, Index window_size) {
  if (window_size >= rows) return row_range(0, rows);
  Index start = center - window_size / 2, end = center + window_size / 2 + 1;
  while (start < 0) ++start, ++end;
  while (end > rows) --start, --end;
  return row_range(start, end);
}

}  // namespace dllm_cache::testing
