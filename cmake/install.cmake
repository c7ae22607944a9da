# SPDX-License-Identifier: Apache-2.0
# Install rules: headers, the CMake package dllm_cache, dllm_cache.pc and the licence. Nothing that
# is installed depends on the machine, so everything but the headers goes below share/.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_DATADIR}/cmake/dllm_cache)
set(generated_dir ${PROJECT_BINARY_DIR}/package)

# What models need is looked for on the user's machine: see dllm_cache-config.cmake.in.
install(TARGETS dllm_cache EXPORT dllm_cache-targets FILE_SET HEADERS)
install(EXPORT dllm_cache-targets NAMESPACE dllm_cache:: DESTINATION ${package_dir})
if(DLLM_CACHE_BUILD_MODELS)
  set_target_properties(dllm_cache_models PROPERTIES EXPORT_NAME models)
  install(TARGETS dllm_cache_models EXPORT dllm_cache-models-targets
          FILE_SET HEADERS FILE_SET onednn_headers)
  install(EXPORT dllm_cache-models-targets NAMESPACE dllm_cache:: DESTINATION ${package_dir})
  install(FILES ${PROJECT_SOURCE_DIR}/cmake/FindOneDNN.cmake DESTINATION ${package_dir})
endif()

configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/dllm_cache-config.cmake.in
  ${generated_dir}/dllm_cache-config.cmake INSTALL_DESTINATION ${package_dir}
  NO_SET_AND_CHECK_MACRO)
# Before 1.0 a minor version may change anything; headers serve every architecture.
write_basic_package_version_file(${generated_dir}/dllm_cache-config-version.cmake
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES ${generated_dir}/dllm_cache-config.cmake ${PROJECT_SOURCE_DIR}/cmake/find_eigen.cmake
  ${generated_dir}/dllm_cache-config-version.cmake DESTINATION ${package_dir})

# The C interface is one source file that its users compile.
install(FILES ${PROJECT_SOURCE_DIR}/packaging/c_api/dllm_cache.cpp DESTINATION ${package_dir}/c_api)

# The pkg-config file finds the headers from where it lies, so that an installation can be moved;
# an include folder that is absolute stays so.
set(pkgconfig_dir ${CMAKE_INSTALL_DATADIR}/pkgconfig)
if(IS_ABSOLUTE "${CMAKE_INSTALL_INCLUDEDIR}" OR IS_ABSOLUTE "${pkgconfig_dir}")
  set(pkgconfig_includedir ${CMAKE_INSTALL_FULL_INCLUDEDIR})
else()
  file(RELATIVE_PATH pkgconfig_up /${pkgconfig_dir} /)
  set(pkgconfig_includedir "\${pcfiledir}/${pkgconfig_up}${CMAKE_INSTALL_INCLUDEDIR}")
endif()
configure_file(${PROJECT_SOURCE_DIR}/cmake/dllm_cache.pc.in ${generated_dir}/dllm_cache.pc @ONLY)
install(FILES ${generated_dir}/dllm_cache.pc DESTINATION ${pkgconfig_dir})
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/licenses/dllm_cache)
