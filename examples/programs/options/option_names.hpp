// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <string>

namespace programs {

/// An option's key as the command line spells it: "prompt_interval" as "--prompt-interval".
[[nodiscard]] inline std::string command_name(std::string key) {
  std::replace(key.begin(), key.end(), '_', '-');
  return "--" + key;
}

}  // namespace programs
