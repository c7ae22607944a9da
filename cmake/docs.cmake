# SPDX-License-Identifier: Apache-2.0
# Target `docs`: the headers and the pages of docs/ as HTML in build/docs, where doxygen is found.
find_package(Doxygen 1.9.4 QUIET)
if(NOT DOXYGEN_FOUND)
  message(STATUS "Target docs is left out: doxygen 1.9.4 or newer not found")
  return()
endif()
add_custom_target(docs
  COMMAND ${DOXYGEN_EXECUTABLE} docs/Doxyfile
  WORKING_DIRECTORY ${PROJECT_SOURCE_DIR} VERBATIM)
# One build says it for all: what doxygen reads is the same in each.
if(DLLM_CACHE_BUILD_TESTS AND CMAKE_BUILD_TYPE STREQUAL "Release")
  add_test(NAME "docs: reference pages build without warnings"
    COMMAND ${DOXYGEN_EXECUTABLE} docs/Doxyfile WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
endif()
