// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "dllm_cache/base/buffer.hpp"
#include "dllm_cache/base/gather_rows.hpp"
#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/models/transformer_runner.hpp"

namespace programs {

using dllm_cache::Index;

/// How far the cached logits of one step of one sequence are from the uncached ones.
struct AuditStep {
  Index sequence = 0;
  Index step = 0;
  Index rows = 0;              ///< Rows that could be committed and whose logits were computed.
  double largest_error = 0.0;  ///< Absolute, over all logits of these rows.
  double mean_error = 0.0;
  Index rows_differing = 0;  ///< Rows for which another token is predicted (at temperature 0 the
                             ///< likeliest one; otherwise drawn with the same random numbers).
  Index committed = 0;
  Index committed_differing = 0;  ///< Committed tokens that the uncached logits do not predict.
};

/// Runs the uncached forward beside a DenoisingLoop, on the same tokens, and compares logits.
///
/// It owns caches of its own and runs on a runner of its own, so that it changes neither tokens nor
/// counts; its time is kept apart. Features are rounded to `Stored` as in the loop: what it
/// measures is the policy alone. Sequences must have no guidance.
template <class Stored>
class Audit {
 public:
  using Runner = dllm_cache::models::TransformerRunner;
  using Loop = dllm_cache::DenoisingLoop<Runner, Stored>;

  /// Watches the loop's logits from now on; all must outlive the audit, and the loop must not be
  /// stepped once the audit is gone.
  Audit(Runner& runner, Loop& loop) : m_runner(&runner), m_loop(&loop) {
    loop.observer.on_logits = [this](Index id, Index row, std::span<const float> logits) {
      const auto start = std::chrono::steady_clock::now();
      compare(id, row, logits);
      m_time += std::chrono::steady_clock::now() - start;
    };
  }
  Audit(const Audit&) = delete;
  Audit& operator=(const Audit&) = delete;

  /// Ends a step of one sequence: to be told of every report of the loop.
  void end_step(const dllm_cache::StepReport& report) {
    const auto start = std::chrono::steady_clock::now();
    AuditStep done{.sequence = report.id, .step = report.step, .committed = report.committed};
    double sum = 0.0;
    for (const Compared& one : m_compared) {
      if (one.id != report.id) continue;
      ++done.rows;
      done.largest_error = std::max(done.largest_error, one.largest_error);
      sum += one.error_sum;
      const auto begin = report.predictions.begin(), end = report.predictions.end();
      const auto prediction = std::find_if(
          begin, end, [&](const dllm_cache::Prediction& cached) { return cached.row == one.row; });
      if (prediction == end || prediction->token == one.token) continue;
      ++done.rows_differing;
      if (prediction - begin < report.committed) ++done.committed_differing;
    }
    std::erase_if(m_compared, [&](const Compared& one) { return one.id == report.id; });
    if (done.rows > 0) done.mean_error = sum / static_cast<double>(done.rows * vocabulary());
    m_steps.push_back(done);
    m_running = false;
    m_time += std::chrono::steady_clock::now() - start;
  }

  /// All steps so far, in the order in which they ended.
  [[nodiscard]] const std::vector<AuditStep>& steps() const { return m_steps; }
  /// Time spent in the audit.
  [[nodiscard]] double seconds() const { return std::chrono::duration<double>(m_time).count(); }

 private:
  using Cache = dllm_cache::FeatureCache<float, Stored>;

  struct Wanted {  // a row that can be committed, and where its hidden state lies
    Index id = 0;
    Index row = 0;
    Index place = 0;
  };
  struct Compared {  // a row whose logits have been compared in this step
    Index id = 0;
    Index row = 0;
    std::int32_t token = 0;  // what the uncached logits predict
    double largest_error = 0.0;
    double error_sum = 0.0;
  };

  // The chunks of the loop, so that equal hidden states give equal bits.
  static constexpr auto chunk_rows = static_cast<std::size_t>(Loop::chunk_rows);

  [[nodiscard]] Index vocabulary() const { return m_runner->vocabulary(); }

  void compare(Index id, Index row, std::span<const float> cached) {
    const dllm_cache::SequenceState& state = m_loop->sequence(id);
    if (!state.is_candidate(row)) return;
    if (!m_running) forward();
    const std::span<const float> logits = uncached_logits(id, row);
    Compared one{.id = id, .row = row};
    for (std::size_t i = 0; i < logits.size(); ++i) {
      if (cached[i] == logits[i]) continue;  // infinities too
      const double error = std::abs(static_cast<double>(cached[i]) - logits[i]);
      one.largest_error = std::max(one.largest_error, error);
      one.error_sum += error;
    }
    one.token = m_sampler.sample(row, logits, state.sampling_rule(), state.random_key(row)).token;
    m_compared.push_back(one);
  }

  // One uncached forward of the sequences in the loop's step, packed as the loop packs them.
  void forward() {
    std::vector<Cache*> caches;
    std::vector<dllm_cache::StepInput> inputs;
    std::vector<std::int32_t> tokens;
    m_wanted.clear();
    m_compared.clear();
    m_chunk = {};
    const Index shift = m_runner->prediction_shift();
    for (const auto& entry : m_loop->batch()) {
      const dllm_cache::SequenceState& state = m_loop->sequence(entry.id);
      caches.push_back(&cache_of(entry.id));
      inputs.push_back({.block = state.block(), .block_done = state.storing()});
    }
    auto pass = m_workspace.begin_step(std::span<Cache* const>(caches),
                                       std::span<const dllm_cache::StepInput>(inputs));
    for (Index i = 0; i < pass.sequences(); ++i) {
      const Index id = m_loop->batch()[static_cast<std::size_t>(i)].id;
      const dllm_cache::SequenceState& state = m_loop->sequence(id);
      for (const Index row : pass.rows(i))
        tokens.push_back(state.tokens()[static_cast<std::size_t>(row)]);
      for (Index row = state.first_to_fill(); row < static_cast<Index>(state.tokens().size());
           ++row)
        if (state.is_candidate(row))
          m_wanted.push_back({.id = id,
                              .row = row,
                              .place = pass.find(std::max<Index>(row - shift, 0), i).value()});
    }
    const Index width = m_runner->shape().width;
    m_x =
        dllm_cache::dense_view(m_hidden.ensure(pass.row_count() * width), pass.row_count(), width);
    m_runner->embed(tokens, m_x);
    for (Index layer = 0; layer < m_runner->shape().layers; ++layer)
      pass.layer(m_runner->layer(layer), m_x);
    m_running = true;
  }

  Cache& cache_of(Index id) {
    const auto found = m_caches.find(id);
    if (found != m_caches.end()) return *found->second;
    return *m_caches
                .emplace(id, std::make_unique<Cache>(m_runner->shape(), m_loop->cache(id).shape(),
                                                     dllm_cache::NoCache()))
                .first->second;
  }

  std::span<const float> uncached_logits(Index id, Index row) {
    const auto place = static_cast<std::size_t>(
        std::find_if(m_wanted.begin(), m_wanted.end(),
                     [&](const Wanted& one) { return one.id == id && one.row == row; }) -
        m_wanted.begin());
    if (place < m_chunk.begin || place >= m_chunk.end) compute_chunk(place / chunk_rows);
    return {m_logits.row(static_cast<Index>(place - m_chunk.begin)),
            static_cast<std::size_t>(m_logits.cols)};
  }

  void compute_chunk(std::size_t number) {
    m_chunk = {number * chunk_rows, std::min((number + 1) * chunk_rows, m_wanted.size())};
    const auto rows = static_cast<Index>(m_chunk.end - m_chunk.begin);
    const auto gathered = dllm_cache::dense_view(
        m_gathered.ensure(static_cast<Index>(chunk_rows) * m_x.cols), rows, m_x.cols);
    m_places.clear();
    for (std::size_t i = m_chunk.begin; i < m_chunk.end; ++i) m_places.push_back(m_wanted[i].place);
    dllm_cache::base::gather_rows(m_x, m_places, gathered);
    m_logits = dllm_cache::dense_view(
        m_logits_memory.ensure(static_cast<Index>(chunk_rows) * vocabulary()), rows, vocabulary());
    m_runner->logits(gathered, m_logits);
  }

  struct Chunk {
    std::size_t begin = 0;
    std::size_t end = 0;
  };

  Runner* m_runner;
  Loop* m_loop;
  std::map<Index, std::unique_ptr<Cache>> m_caches;
  dllm_cache::Workspace<float, Stored> m_workspace;
  std::vector<Wanted> m_wanted;      // of the step in progress, in the order of the loop
  std::vector<Compared> m_compared;  // the same
  std::vector<Index> m_places;       // of a chunk of them in m_x
  Chunk m_chunk;                     // of m_wanted whose logits are in m_logits
  bool m_running = false;            // the forward of the step in progress has run
  dllm_cache::MatrixView<float> m_x;
  dllm_cache::MatrixView<float> m_logits;
  dllm_cache::base::Buffer<float> m_hidden;
  dllm_cache::base::Buffer<float> m_gathered;
  dllm_cache::base::Buffer<float> m_logits_memory;
  dllm_cache::Sampler m_sampler;
  std::vector<AuditStep> m_steps;
  std::chrono::steady_clock::duration m_time{};
};

/// An audit as a table of at most 80 columns, one line a step of all sequences together.
[[nodiscard]] std::string audit_table(const std::vector<AuditStep>& steps);

/// The same as JSON: one object a step of one sequence.
[[nodiscard]] nlohmann::ordered_json audit_json(const std::vector<AuditStep>& steps);

}  // namespace programs
