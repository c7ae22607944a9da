# SPDX-License-Identifier: Apache-2.0
# ggml 0.15 or newer. It installs no version file by the name that find_package() looks for, so the
# version is compared here.
find_package(ggml CONFIG QUIET)
if(ggml_FOUND AND GGML_VERSION VERSION_LESS 0.15)
  message(STATUS "ggml ${GGML_VERSION} in ${ggml_DIR} is older than 0.15")
  set(ggml_FOUND FALSE)
endif()
