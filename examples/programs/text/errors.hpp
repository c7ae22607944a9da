// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

namespace programs {

/// A request or an option that makes no sense: the program ends with exit code 2.
struct BadRequest : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Runs a program's body and turns what it throws into one line on stderr and an exit code: 2 for a
/// bad request or option, 1 for files that cannot be used and everything else.
template <class Body>
int run_program(const char* name, Body&& body) {
  const auto fail = [&](const std::string& what, int code) {
    std::string line = what;
    for (char& letter : line)
      if (letter == '\n') letter = ' ';
    std::fprintf(stderr, "%s: %s\n", name, line.c_str());
    return code;
  };
  try {
    return body();
  } catch (const BadRequest& error) {
    return fail(error.what(), 2);
  } catch (const std::invalid_argument& error) {  // the library refuses a value that was asked for
    return fail(error.what(), 2);
  } catch (const std::bad_alloc&) {
    return fail("not enough memory for this model and request", 1);
  } catch (const std::exception& error) {
    return fail(error.what(), 1);
  }
}

}  // namespace programs
