# SPDX-License-Identifier: Apache-2.0
# ggml 0.15 or newer. Its own installation has no version file by the name that find_package() looks
# for, so a version asked for refuses it; packages add one. What is found without is compared here.
find_package(ggml 0.15 CONFIG QUIET)
if(NOT ggml_FOUND)
  find_package(ggml CONFIG QUIET)
  if(ggml_FOUND AND (NOT GGML_VERSION OR GGML_VERSION VERSION_LESS 0.15))
    message(STATUS "ggml \"${GGML_VERSION}\" in ${ggml_DIR} is older than 0.15")
    set(ggml_FOUND FALSE)
  endif()
endif()
