# SPDX-License-Identifier: Apache-2.0
# ggml 0.15 or newer. Its own installation has no version file by the name that find_package() looks
# for, so a version asked for refuses it; packages add one. What is found without is compared here.
set(ggml_given "${ggml_DIR}")
find_package(ggml 0.15 CONFIG QUIET)
if(NOT ggml_FOUND)
  if(ggml_given)  # which the first search has forgotten
    set(ggml_DIR "${ggml_given}" CACHE PATH "" FORCE)
  endif()
  find_package(ggml CONFIG QUIET)
  if(ggml_FOUND AND (NOT GGML_VERSION OR GGML_VERSION VERSION_LESS 0.15))
    message(STATUS "ggml \"${GGML_VERSION}\" in ${ggml_DIR} is older than 0.15")
    set(ggml_FOUND FALSE)
  endif()
endif()
