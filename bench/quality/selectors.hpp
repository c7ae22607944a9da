// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dllm_cache/decoding/random.hpp"
#include "dllm_cache/vverify_selector.hpp"

namespace study {

using dllm_cache::Index;
using dllm_cache::MatrixView;
using dllm_cache::SimilaritySums;

/// What decides which verified rows are recomputed.
enum class Criterion {
  Cosine,          ///< The method: least cosine of fresh and previous value.
  L2,              ///< Largest distance of fresh and previous value.
  Random,          ///< Any rows, seeded.
  Oracle,          ///< The rows whose true delta differs most from the cached one.
  LastRecomputed,  ///< Least cosine of the fresh value and that of the row's last recomputation.
};

/// What a verified layer of one sequence would become if all its rows were recomputed; filled by
/// the model before the selector is asked.
struct TrueChanges {
  std::vector<double> squares;  ///< Squared distance of true and cached delta, one a row.
};

/// A RowSelector of any criterion, for float32 features.
class Selector {
 public:
  Criterion criterion = Criterion::Cosine;
  /// Needed by the oracle alone.
  std::shared_ptr<const TrueChanges> changes;

  void accumulate(MatrixView<const float> fresh, MatrixView<float> cached,
                  std::span<SimilaritySums> sums) {
    if (criterion != Criterion::LastRecomputed) return m_vverify.accumulate(fresh, cached, sums);
    // Rows of a layer always lie at the same place, which therefore names the layer.
    m_layer = &m_layers[cached.data];
    const auto size = static_cast<std::size_t>(fresh.rows * fresh.cols);
    m_layer->width = fresh.cols;
    if (m_layer->last.size() != size) {
      m_layer->last.assign(size, std::nanf(""));
      m_layer->anchor.resize(size);
    }
    for (Index row = 0; row < fresh.rows; ++row) {
      float* const last = m_layer->last.data() + row * fresh.cols;
      float* const anchor = m_layer->anchor.data() + row * fresh.cols;
      // The cache holds something else than was left there: the row has been recomputed since.
      if (!std::equal(last, last + fresh.cols, cached.row(row)))
        std::copy_n(cached.row(row), fresh.cols, anchor);
      m_scratch.assign(anchor, anchor + fresh.cols);
      m_vverify.accumulate(fresh.middle_rows(row, 1),
                           dllm_cache::dense_view(m_scratch.data(), 1, fresh.cols),
                           sums.subspan(static_cast<std::size_t>(row), 1));
      std::copy_n(fresh.row(row), fresh.cols, cached.row(row));
      std::copy_n(fresh.row(row), fresh.cols, last);
    }
  }

  void select(std::span<const SimilaritySums> sums, Index count, std::vector<Index>& selected) {
    switch (criterion) {
      case Criterion::Cosine:
      case Criterion::LastRecomputed:
        m_vverify.select(sums, count, selected);
        break;
      case Criterion::L2:
        take_largest(sums.size(), count, selected, [&](std::size_t row) {
          return sums[row].fresh_square + sums[row].cached_square - 2.0 * sums[row].dot;
        });
        break;
      case Criterion::Random: {
        const dllm_cache::RowRandom random({.seed = 7, .step = m_calls++},
                                           dllm_cache::RandomUse::Confidence);
        take_largest(sums.size(), count, selected,
                     [&](std::size_t row) { return random.uniform(row); });
        break;
      }
      case Criterion::Oracle:
        take_largest(sums.size(), count, selected,
                     [&](std::size_t row) { return changes->squares.at(row); });
        break;
    }
    if (criterion != Criterion::LastRecomputed) return;
    for (const Index row : selected) {
      const auto begin = static_cast<std::ptrdiff_t>(row * m_layer->width);
      std::copy_n(m_layer->last.begin() + begin, m_layer->width, m_layer->anchor.begin() + begin);
    }
  }

 private:
  struct Layer {
    Index width = 0;
    std::vector<float> last;    // what was stored at the last verification
    std::vector<float> anchor;  // the value of each row when it was last recomputed
  };

  template <class Score>
  void take_largest(std::size_t rows, Index count, std::vector<Index>& selected,
                    const Score& score) {
    m_scores.clear();
    selected.clear();
    for (std::size_t row = 0; row < rows; ++row) {
      m_scores.push_back(score(row));
      selected.push_back(static_cast<Index>(row));
    }
    std::stable_sort(selected.begin(), selected.end(), [&](Index a, Index b) {
      return m_scores[static_cast<std::size_t>(a)] > m_scores[static_cast<std::size_t>(b)];
    });
    selected.resize(static_cast<std::size_t>(count));
    std::sort(selected.begin(), selected.end());
  }

  dllm_cache::VVerifySelector<float> m_vverify;
  std::map<const float*, Layer> m_layers;
  Layer* m_layer = nullptr;
  std::uint64_t m_calls = 0;
  std::vector<double> m_scores;
  std::vector<float> m_scratch;
};

}  // namespace study
