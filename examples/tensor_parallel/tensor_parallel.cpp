// SPDX-License-Identifier: Apache-2.0
// One model over several processes, cached: each rank holds its heads' weights, keys and values.
//   mpirun -np 4 tensor_parallel --model FOLDER --request FILE
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "all_reduce_selector.hpp"
#include "dllm_cache/decoding/denoising_loop.hpp"
#include "programs/options/command_line.hpp"
#include "programs/options/policies.hpp"
#include "programs/options/request.hpp"
#include "programs/options/settings_json.hpp"
#include "programs/text/text_file.hpp"
#include "tensor_parallel_model.hpp"

namespace {

using namespace programs;
using namespace tensor_parallel;

struct Options {
  std::string model;
  std::string request;
  std::string json = "-";
  ComputeSettings compute;
  Settings settings;
};

void declare(CLI::App& app, Options& options) {
  app.add_option("--model", options.model, "Checkpoint folder of LLaDA or Dream")->required();
  app.add_option("--request", options.request, "JSON file as dllm-generate takes it")->required();
  app.add_option("--json", options.json, "Where tokens and cost go (default: standard output)");
  declare_compute(app, options.compute);
  declare_decoding(app, options.settings.decoding);
  declare_policy(app, options.settings.policy);
}

/// What is answered, and this rank's part of the model that answers it.
struct Job {
  Request request;
  std::shared_ptr<const SlicedModel> model;
};

Job prepare(const Options& options, const Ranks& ranks) {
  Job job;
  job.request = read_request(options.request);
  Settings& settings = job.request.settings;
  settings = merge(options.settings, settings);
  check_given(options.settings.policy.options, policy_name(settings.policy));
  job.model = load_slice(options.model, ranks, options.compute.model,
                         {.mask = settings.tokens.mask,
                          .end = settings.tokens.ends,
                          .end_alone = settings.tokens.ends_alone});
  return job;
}

/// Runs `body` on all ranks and waits for all; of those that fail the first says why. Returns 0, or
/// an exit code of a program.
template <class Body>
int together(const Ranks& ranks, Body&& body) {
  int code = 0;
  std::string reason;
  try {
    body();
  } catch (const BadRequest& error) {
    code = 2;
    reason = error.what();
  } catch (const std::invalid_argument& error) {
    code = 2;
    reason = error.what();
  } catch (const std::exception& error) {
    code = 1;
    reason = error.what();
  }
  if (ranks.smallest(code == 0 ? ranks.size() : ranks.rank()) == ranks.rank())
    std::fprintf(stderr, "tensor_parallel: %s\n", reason.c_str());
  return -ranks.smallest(-code);
}

template <class Stored>
int answer(const Job& job, const Options& options, const Ranks& ranks) {
  using Selector = AllReduceSelector<float, Stored>;
  TensorParallelModel model(job.model, ranks, options.compute.threads);
  dllm_cache::DenoisingLoop<TensorParallelModel, Stored, Selector> loop(
      model, dllm_cache::large_pages(), Selector(ranks));
  const int code = together(ranks, [&] {
    programs::Settings settings = job.request.settings;
    settings.model = {.decoder = job.model->model.config.decoder,
                      .attention_block = job.model->model.config.attention_block};
    programs::choose_policy(settings);
    dllm_cache::DecodingOptions decoding =
        dllm_cache::decoding_options(settings.decoding, settings.model);
    for (const auto& prompt : job.request.prompts) {
      model.check_tokens(prompt);
      loop.add(prompt, decoding, make_policy(settings.policy));
      ++decoding.sequence;
    }
  });
  if (code != 0) return code;

  const auto start = std::chrono::steady_clock::now();
  loop.run();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::vector<std::vector<std::int32_t>> tokens;
  dllm_cache::DecodingCounts rows;
  Index bytes = 0;
  for (Index id = 0; id < loop.sequences(); ++id) {
    // Where the prompt had gaps, all of it as it was filled.
    const dllm_cache::SequenceState& state = loop.sequence(id);
    const auto response = state.has_gaps() ? state.tokens() : state.response();
    tokens.push_back(ranks.of_first(response));
    if (!std::equal(response.begin(), response.end(), tokens.back().begin()))
      throw std::logic_error("decided otherwise than rank 0");
    rows += loop.counts(id);
    bytes += loop.cache_bytes(id);
  }
  const nlohmann::ordered_json result = {{"tokens", tokens},
                                         {"ranks", ranks.size()},
                                         {"rows", rows_json(rows)},
                                         {"cache_bytes_per_rank", bytes},
                                         {"seconds", seconds.count()}};
  return together(ranks, [&] {
    if (ranks.rank() == 0) write_text(options.json, result.dump() + "\n");
  });
}

int run(CLI::App& app, const Options& options, const Ranks& ranks, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {  // the same on all ranks
    const bool asked = dynamic_cast<const CLI::Success*>(&error) != nullptr;
    if (ranks.rank() > 0) return asked ? 0 : 2;
    if (asked) return app.exit(error);
    std::fprintf(stderr, "tensor_parallel: %s\n", error.what());
    return 2;
  }
  std::optional<Job> job;
  const int code = together(ranks, [&] { job = prepare(options, ranks); });
  if (code != 0) return code;
  try {
    return options.compute.features == FeatureType::Float32
               ? answer<float>(*job, options, ranks)
               : answer<Eigen::bfloat16>(*job, options, ranks);
  } catch (const std::exception& error) {  // the others wait for this rank: end them too
    std::fprintf(stderr, "tensor_parallel: rank %d: %s\n", ranks.rank(), error.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
    return 1;
  }
}

}  // namespace

int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  CLI::App app(
      "Answers a request with a model whose attention heads and feed-forward columns are split "
      "over MPI ranks.\n"
      "Exit codes: 0 done, 1 a file cannot be used, 2 a bad option or request.",
      "tensor_parallel");
  Options options;
  options.compute.threads = 1;  // processes are what is asked for
  declare(app, options);
  const int code = run(app, options, Ranks(MPI_COMM_WORLD), argc, argv);
  MPI_Finalize();
  return code;
}
