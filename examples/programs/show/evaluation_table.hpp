// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "programs/measure/evaluation.hpp"

namespace programs {

/// An evaluation as a table of at most 80 columns.
[[nodiscard]] std::string to_table(const Evaluation& evaluation);

}  // namespace programs
