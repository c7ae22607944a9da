# SPDX-License-Identifier: Apache-2.0
# An overlay port that packages the checkout it lies in:
# vcpkg install dllm-cache --overlay-ports=packaging/vcpkg
get_filename_component(SOURCE_PATH "${CMAKE_CURRENT_LIST_DIR}/../.." ABSOLUTE)
set(VCPKG_BUILD_TYPE release)  # headers alone: nothing differs in a debug build

vcpkg_check_features(OUT_FEATURE_OPTIONS feature_options
  FEATURES models DLLM_CACHE_BUILD_MODELS)
vcpkg_cmake_configure(SOURCE_PATH "${SOURCE_PATH}" OPTIONS ${feature_options}
  -DDLLM_CACHE_INSTALL=ON -DDLLM_CACHE_BUILD_TESTS=OFF -DDLLM_CACHE_BUILD_BENCH=OFF
  -DDLLM_CACHE_BUILD_EXAMPLES=OFF)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(PACKAGE_NAME dllm_cache CONFIG_PATH share/cmake/dllm_cache)
vcpkg_fixup_pkgconfig()

file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/share/licenses")
file(INSTALL "${CMAKE_CURRENT_LIST_DIR}/usage" DESTINATION "${CURRENT_PACKAGES_DIR}/share/${PORT}")
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
