// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>

#include "programs/run/answering.hpp"

namespace programs {

/// What answers must have in common with a run to serve as its reference.
struct AnswerOrigin {
  Index count = 0;                  ///< Questions.
  std::string data;                 ///< fingerprint() of the questions.
  std::string model;                ///< model_fingerprint().
  nlohmann::ordered_json decoding;  ///< decoding_json().
  nlohmann::ordered_json policy;    ///< policy_json().
  nlohmann::ordered_json compute;   ///< compute_json(); a reference may have another one.
};

/// Describes a run of the model in `model_folder`.
/// Throws std::runtime_error naming a file of the folder that cannot be read.
[[nodiscard]] AnswerOrigin make_origin(const std::filesystem::path& model_folder,
                                       const std::vector<Question>& questions,
                                       const Settings& settings,
                                       const dllm_cache::models::ComputeOptions& compute,
                                       FeatureType features);

/// Answers read from a file.
struct SavedAnswers {
  AnswerOrigin origin;
  Answers answers;
};

/// Writes one line about the run, then one line an answer with tokens, steps, forwards, rows and
/// cache_bytes; throws std::runtime_error naming the file.
void write_answers(const std::filesystem::path& path, const Answers& answers,
                   const AnswerOrigin& origin);

/// Reads such a file; throws BadRequest naming file, line and key, and std::runtime_error when it
/// cannot be read.
[[nodiscard]] SavedAnswers read_answers(const std::filesystem::path& path);

/// Refuses answers that are not those of an uncached run over the same questions with the same
/// model and decoding: throws BadRequest naming the file and what differs.
void check_reference(const std::filesystem::path& path, const SavedAnswers& reference,
                     const AnswerOrigin& origin, const std::vector<Question>& questions,
                     std::int32_t mask);

}  // namespace programs
