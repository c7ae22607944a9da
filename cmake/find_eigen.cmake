# SPDX-License-Identifier: Apache-2.0
# Included by CMakeLists.txt and by the installed package: offers Eigen3::Eigen of the first Eigen 3.4
# or 5 in CMake's search order. Where there is none, dllm_cache_eigen_reason says so; else it is empty.
#
# One request cannot say it: Eigen's version files accept requests for their own major version alone,
# and no range that ends in another. So all are listed first, with a request that none can serve.
set(dllm_cache_eigen_reason "")
if(NOT TARGET Eigen3::Eigen)
  set(dllm_cache_eigen_dir "${Eigen3_DIR}")
  find_package(Eigen3 9999 QUIET NO_MODULE)  # found: a stand-in without a version, as of FetchContent
  if(NOT Eigen3_FOUND)
    set(dllm_cache_eigen_reason "dllm_cache needs Eigen 3.4 or 5, found")
    if(NOT Eigen3_CONSIDERED_CONFIGS)
      string(APPEND dllm_cache_eigen_reason " none (CMAKE_PREFIX_PATH or Eigen3_DIR says where it is)")
    endif()
    foreach(dllm_cache_eigen IN ZIP_LISTS Eigen3_CONSIDERED_VERSIONS Eigen3_CONSIDERED_CONFIGS)
      if(dllm_cache_eigen_0 VERSION_GREATER_EQUAL 3.4 AND dllm_cache_eigen_0 VERSION_LESS 6)
        cmake_path(GET dllm_cache_eigen_1 PARENT_PATH dllm_cache_eigen_dir)
        set(Eigen3_DIR "${dllm_cache_eigen_dir}" CACHE PATH "Folder of Eigen3Config.cmake" FORCE)
        find_package(Eigen3 QUIET NO_MODULE)
        if(Eigen3_FOUND)
          set(dllm_cache_eigen_reason "")
          break()
        endif()
      endif()
      string(APPEND dllm_cache_eigen_reason " ${dllm_cache_eigen_0} (${dllm_cache_eigen_1})")
    endforeach()
  endif()
  # The listing leaves a folder that the user gave as not found.
  if(NOT Eigen3_FOUND AND dllm_cache_eigen_dir)
    set(Eigen3_DIR "${dllm_cache_eigen_dir}" CACHE PATH "Folder of Eigen3Config.cmake" FORCE)
  endif()
endif()
