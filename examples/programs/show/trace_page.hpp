// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "programs/show/trace_file.hpp"
#include "programs/text/vocabulary.hpp"

namespace programs {

/// One HTML page that shows a trace and needs nothing else; `vocabulary` may be null: token ids.
///
/// The data is JSON in the element `trace`: per sequence its sizes, tokens and, of each forward,
/// `actions` (base64 of 2 bits a row, the first row in the lowest ones, each layer of each
/// forward in bytes of its own) and `similarities` (base64 of 16 bits a response row, low byte
/// first: 0 to 65534 stand for -1 to 1, 65535 for none, for each of `verified`).
[[nodiscard]] std::string make_trace_page(const std::vector<TraceSequence>& sequences,
                                          const Vocabulary* vocabulary, const std::string& title);

}  // namespace programs
