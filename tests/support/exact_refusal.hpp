// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>
#include <string>
#include <typeinfo>

namespace dllm_cache::testing {

/// The message of the `Error` that `action` throws. A derived type does not count:
/// std::invalid_argument is a std::logic_error too, and the two mean different mistakes here.
template <class Error, class Action>
std::string exact_refusal(Action&& action) {
  try {
    action();
  } catch (const std::exception& error) {
    if (typeid(error) == typeid(Error)) return error.what();
    return std::string("another exception: ") + error.what();
  }
  return "nothing was thrown";
}

/// The message with which a bad option or shape is refused.
template <class Action>
std::string refused_argument(Action&& action) {
  return exact_refusal<std::invalid_argument>(action);
}

/// The message with which a call out of order or an impossible plan is refused.
template <class Action>
std::string refused_call(Action&& action) {
  return exact_refusal<std::logic_error>(action);
}

}  // namespace dllm_cache::testing
