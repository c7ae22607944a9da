// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace dllm_cache::testing {

/// The message of the `Error` that `action` throws, or "" when it does not throw. Any other
/// exception passes through, so a test also fails when the type is wrong.
template <class Error, class Action>
std::string refusal(Action&& action) {
  try {
    static_cast<void>(action());
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

}  // namespace dllm_cache::testing
