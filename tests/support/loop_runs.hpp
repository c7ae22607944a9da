// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <catch2/catch.hpp>
#include <map>
#include <utility>
#include <vector>

#include "dllm_cache/decoding/denoising_loop.hpp"
#include "dllm_cache/policies/block_cache.hpp"
#include "dllm_cache/policies/block_verify.hpp"
#include "dllm_cache/policies/changed_rows.hpp"
#include "dllm_cache/policies/dkv_decode.hpp"
#include "dllm_cache/policies/dllm_cache.hpp"
#include "dllm_cache/policies/dual_cache.hpp"
#include "dllm_cache/policies/free_cache.hpp"
#include "dllm_cache/policies/prefix_cache.hpp"
#include "dllm_cache/policies/vicinity.hpp"

// Whole runs of the denoising loop, to compare them bit by bit.
namespace dllm_cache::testing {

using Tokens = std::vector<std::int32_t>;

/// A sequence to run.
struct Job {
  Tokens prompt;
  DecodingOptions options;
  AnyPolicy policy = NoCache{};
};

/// All that happened to one sequence; equal only when every bit is.
struct Record {
  using Row = std::pair<Index, Index>;                // step and row
  std::vector<Tokens> tokens;                         // after each step
  std::vector<Index> committed;                       // in each step
  std::map<Row, std::pair<double, double>> sureness;  // confidence and entropy
  std::map<Row, std::vector<float>> logits;
  DecodingCounts counts;
  Index forwards = 0;
  friend bool operator==(const Record&, const Record&) = default;
};

/// Keeps a Record of every sequence of a loop.
template <class AnyLoop>
class Recorder {
 public:
  explicit Recorder(AnyLoop& loop) : m_loop(loop) {
    loop.observer.on_logits = [this](Index id, Index row, std::span<const float> logits) {
      m_records[id].logits[{m_loop.sequence(id).step(), row}].assign(logits.begin(), logits.end());
    };
  }
  void operator()(const StepReport& report) {
    Record& record = m_records[report.id];
    record.tokens.emplace_back(report.tokens.begin(), report.tokens.end());
    record.committed.push_back(report.committed);
    for (const Prediction& one : report.predictions)
      record.sureness[{report.step, one.row}] = {one.confidence, one.entropy};
  }
  [[nodiscard]] Record of(Index id) {
    Record record = m_records[id];
    record.counts = m_loop.counts(id);
    record.forwards = m_loop.forwards(id);
    return record;
  }

 private:
  AnyLoop& m_loop;
  std::map<Index, Record> m_records;
};

/// The record of one job in a loop of its own.
template <class AnyModel, class Stored = float>
Record run_alone(AnyModel model, const Job& job) {
  DenoisingLoop<AnyModel, Stored> loop(model);
  Recorder recorder(loop);
  loop.add(job.prompt, job.options, job.policy);
  loop.run([&](const StepReport& report) { recorder(report); });
  REQUIRE(model.log.broken_rule.empty());
  return recorder.of(0);
}

/// Sequences with block-causal attention, as published loops and as nobody decodes.
inline std::vector<Job> block_causal_jobs(Index shift) {
  constexpr std::int32_t gap = 12;  // FakeModel's mask
  std::vector<Job> jobs{
      // SDAR: a tail of the prompt in the first block, surplus rows behind the response.
      {{1, 2, 3, 4, 5, 6},
       {.response = 9, .attention_block = 4, .commit = EvenCommit{0.5}, .early_stop = true},
       BlockCachePolicy{}},
      {{4, 4, 1},
       {.response = 10,
        .steps_per_block = 3,
        .attention_block = 8,
        .fuse_blocks = false,
        .confidence = Confidence::LeftToRight,
        .commit = EvenCommit{}},
       BlockCachePolicy{}},
      // BD3LM: blocks from the prompt's end, a short last one, guidance.
      {{9, 8, 7, 6, 5},
       {.response = 11,
        .steps = 7,
        .attention_block = 4,
        .prompt_end_grid = true,
        .commit = LinearCommit{},
        .guidance_scale = 0.7,
        .guidance_interval = 2},
       BlockCachePolicy{}},
      {{2, 3, 5, 7, 11, 0, 2, 4},
       {.response = 8,
        .block_length = 2,
        .attention_block = 4,
        .temperature = 0.9,
        .sampling = Sampling::Categorical,
        .commit = EvenCommit{},
        .seed = 3},
       BlockCachePolicy{true}},
      {{1, gap, gap, 4, 5, gap, 7},
       {.response = 4, .attention_block = 3, .commit = FixedCommit{2}},
       BlockCachePolicy{}},
      {{6, 1, 6},
       {.response = 9, .attention_block = 5, .commit = FixedCommit{2}},
       DualCachePolicy{}},
      {{3, 1, 4, 1, 5},
       {.response = 7, .attention_block = 4, .commit = FixedCommit{1}},
       ChangedRowsPolicy{.keep_active = 1}},
      {{2, 7, 1, 8, 2, 8},
       {.response = 8, .attention_block = 4, .causal_commit = true, .commit = EvenCommit{}},
       BlockCachePolicy{}},
  };
  if (shift == 1)  // Fast-dLLM v2: the prompt ends with a block
    jobs.push_back({{8, 6, 4, 2},
                    {.response = 10,
                     .block_length = 2,
                     .attention_block = 4,
                     .commit_next = true,
                     .sampling = Sampling::Categorical,
                     .commit = EvenCommit{0.6},
                     .early_stop = true,
                     .stop_within_block = true,
                     .trim_after_end = true},
                    BlockCachePolicy{true}});
  return jobs;
}

/// Sequences as unlike each other as can be: lengths, steps, rules, policies, guidance,
/// temperature.
inline std::vector<Job> motley(Index shift) {
  std::vector<Job> jobs{
      {{1, 2, 3, 4, 5}, {.response = 8, .block_length = 4}, DllmCachePolicy{4, 3, 0.5}},
      {{7}, {.response = 1}, NoCache{}},
      {{3, 9, 2},
       {.response = 40, .block_length = 20, .commit = ThresholdCommit{0.5}},
       PrefixCachePolicy{}},
      {{10, 1},
       {.response = 6, .steps = 3, .guidance_scale = 1.5, .guidance_interval = 2},
       DllmCachePolicy{3, 2, 0.25}},
      {{2, 2, 2, 2},
       {.response = 9, .block_length = 3, .commit = FixedCommit{2}},
       DualCachePolicy{}},
      {{5, 6},
       {.response = 12,
        .block_length = 4,
        .steps = 9,
        .temperature = 0.7,
        .sampling = Sampling::Categorical,
        .top_p = 0.9,
        .top_k = 7,
        .confidence = Confidence::NegativeEntropy,
        .commit = TimestepCommit{},
        .order_temperature = 0.3,
        .seed = 5},
       DkvDecodePolicy{3}},
      {{8, 0, 8},
       {.response = 12, .block_length = 4, .temperature = 1.0, .seed = 6, .sequence = 3},
       VicinityPolicy{1, 2, 2, 5}},
      {{4, 3, 2, 1},
       {.response = 10,
        .block_length = 5,
        .confidence = Confidence::Margin,
        .commit = FactorCommit{1.2}},
       FreeCachePolicy{}},
      {{6, 6, 1},
       {.response = 11, .commit = EntropyBoundCommit{1.0}},
       ChangedRowsPolicy{.keep_active = 1, .refresh_interval = 6}},
      {{0, 1, 0, 1},
       {.response = 8,
        .steps = 5,
        .confidence = Confidence::Random,
        .commit = BernoulliCommit{0.1},
        .guidance_scale = 0.5,
        .guidance_interval = 3,
        .seed = 9},
       ChangedRowsPolicy{}},
      // More masked rows than the loop reduces at once, twice over where the residual is refreshed.
      {{9, 8, 7},
       {.response = 36,
        .block_length = 18,
        .steps = 12,
        .guidance_scale = 0.8,
        .guidance_interval = 4},
       DkvDecodePolicy{2}},
  };
  // Gaps: alone, before a response, in the first row, in one block, in blocks that cut them.
  constexpr std::int32_t gap = 12;  // FakeModel's mask
  jobs.push_back({{1, gap, gap, 4, gap, 6}, {.response = 0}, DllmCachePolicy{3, 2, 0.5}});
  jobs.push_back({{gap, 3, gap, gap, 5},
                  {.response = 5,
                   .block_length = 4,
                   .steps = 5,
                   .guidance_scale = 1.2,
                   .guidance_interval = 2},
                  BlockVerifyPolicy{.prompt_interval = 4, .response_interval = 3, .ratio = 0.5}});
  jobs.push_back({{2, gap, gap, 7, gap, gap, gap, 1},
                  {.response = 3, .block_length = 3, .commit = ThresholdCommit{0.5}},
                  PrefixCachePolicy{}});
  jobs.push_back({{5, gap, gap, gap, gap, 8},
                  {.response = 4,
                   .block_length = 5,
                   .temperature = 0.8,
                   .suppress_tokens = {3},
                   .commit_last = {11, 2},
                   .seed = 4},
                  DkvDecodePolicy{3}});
  jobs.push_back({{9, 9, gap, 1, gap},
                  {.response = 6, .steps = 4, .commit = TimestepCommit{}},
                  ChangedRowsPolicy{.keep_active = 1}});
  for (Job& job : block_causal_jobs(shift)) jobs.push_back(std::move(job));
  if (shift == 0) jobs.push_back({{}, {.response = 5, .steps = 2}, DllmCachePolicy{2, 3, 0.4}});
  return jobs;
}

}  // namespace dllm_cache::testing
