// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>
#include <cstdio>
#include <iosfwd>
#include <string>

#include "dllm_cache/models/compute/backend.hpp"
#include "dllm_cache/models/compute/parallel.hpp"
#include "dllm_cache/version.hpp"
#include "programs/options/settings.hpp"
#include "programs/text/errors.hpp"

namespace programs {

/// What a model computes with, and what features are stored in.
struct ComputeSettings {
  int threads = dllm_cache::models::available_threads();
  dllm_cache::models::ComputeOptions model;
  FeatureType features = FeatureType::Float32;
};

/// Declares an option for every key of decoding; where `for_one_length` is false, not
/// `--gen-length`.
void declare_decoding(CLI::App& app, OptionValues& values, bool for_one_length = true);

/// Declares `--policy`, `--no-cache` and the options of all policies in policies().
void declare_policy(CLI::App& app, PolicyChoice& choice);

/// Declares `--mask-token` and `--end-token`.
void declare_tokens(CLI::App& app, TokenSettings& tokens);

/// Declares `--threads`.
void declare_threads(CLI::App& app, int& threads);

/// Declares `--threads`, `--backend`, `--precision` and `--features`. Without `--backend` the model
/// is computed with Eigen where the default backend cannot compute in the precision asked for.
void declare_compute(CLI::App& app, ComputeSettings& settings);

/// Writes every policy and preset with its description and options: what `--policy list` shows.
void list_policies(std::ostream& out);

/// Adds `--version`, parses the command line and runs the body: help and version end with 0, a bad
/// option with 2 and one line on stderr, what the body throws as run_program() says.
template <class Body>
int run_command_line(CLI::App& app, int argc, char** argv, Body&& body) {
  app.set_version_flag("--version", std::string(dllm_cache::version));
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help_or_version) {
    return app.exit(help_or_version);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "%s: %s\n", app.get_name().c_str(), error.what());
    return 2;
  }
  return run_program(app.get_name().c_str(), body);
}

}  // namespace programs
