// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "programs/options/settings.hpp"

namespace programs {

/// Prompts as token ids, of any lengths, and what the request says about decoding and caching.
struct Request {
  std::vector<std::vector<std::int32_t>> prompts;
  Settings settings;
};

/// Reads a request file (JSON; docs/programs.md explains the keys).
///
/// Throws BadRequest naming the key, what is legal and what was found, and std::runtime_error when
/// the file cannot be read.
[[nodiscard]] Request read_request(const std::filesystem::path& path);

/// The same from text; `name` stands for the file in messages.
[[nodiscard]] Request parse_request(const std::string& text, const std::string& name);

/// Keys of requests that are no options of policies.
[[nodiscard]] std::vector<std::string> request_keys();

}  // namespace programs
