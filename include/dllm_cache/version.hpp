// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

namespace dllm_cache::inline v0_1 {

/// Version of the library, the same as in CMakeLists.txt; no rules, no state.
inline constexpr std::string_view version = "0.1.0";

}  // namespace dllm_cache::inline v0_1
