# SPDX-License-Identifier: Apache-2.0
# Sourced by examples/demo.sh, tests/run.sh and bench/run.sh: installs what is missing on Debian 12.

# need COMMAND-OR-FILE PACKAGE REASON
needed_packages=()
need() {
  if [ "${1#/}" != "$1" ]; then [ -e "$1" ] && return 0; else command -v "$1" >/dev/null 2>&1 && return 0; fi
  printf 'missing: %-22s (%s)\n' "$2" "$3"
  needed_packages+=("$2")
}

install_needed() {
  [ ${#needed_packages[@]} -eq 0 ] && return 0
  local root=()
  [ "$(id -u)" -eq 0 ] || root=(sudo)
  echo "installing with apt-get: ${needed_packages[*]}"
  "${root[@]}" apt-get update -qq
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${needed_packages[@]}" >/dev/null
}

need_build_tools() {
  need c++ g++ "C++20 compiler, g++ 12 or newer"
  need cmake cmake "build system, 3.24 or newer"
  need ninja ninja-build "runs the build"
  need /usr/include/eigen3/Eigen/Core libeigen3-dev "matrices, 3.4 or 5: all that the core needs"
  need /usr/include/nlohmann/json.hpp nlohmann-json3-dev "JSON, 3.11 or newer: model configurations"
  need /usr/include/oneapi/dnnl/dnnl.hpp libdnnl-dev "fast matrix products, 2.6 or newer (optional for users)"
  need /usr/include/CLI/CLI.hpp libcli11-dev "command lines of the programs, 2.1 or newer"
}

# A Python of the project's own in build/venv with the packages of a requirements file.
need_python() {
  need python3 python3 "text programs"
  python3 -c 'import ensurepip, venv' 2>/dev/null || need /nonexistent python3-venv "Python packages from PyPI"
}
install_python_packages() {
  [ -x build/venv/bin/python ] || python3 -m venv build/venv
  build/venv/bin/python -m pip install -q --disable-pip-version-check -r "$1"
}

# A build of ggml for any x86-64 processor in build/ggml, from a wheel on PyPI, and its CMake files in
# `ggml_options`, which has another ggml's where there is one and stays empty where none can be had.
ggml_options=()
find_ggml() {
  local package=libggml-python version=0.20.2.post1 folder=build/ggml prefix found
  local config=cmake/ggml/ggml-config.cmake
  [ -z "${ggml_DIR-}" ] || { ggml_options=(-Dggml_DIR="$ggml_DIR"); return 0; }
  # CMake itself would not look into lib64 on Debian.
  for prefix in ${CMAKE_PREFIX_PATH+${CMAKE_PREFIX_PATH//:/ }} /usr/local /usr; do
    for found in "$prefix"/lib*/$config "$prefix"/lib/*/$config; do
      [ ! -e "$found" ] || { ggml_options=(-Dggml_DIR="${found%/*}"); return 0; }
    done
  done
  if [ ! -e $folder/libggml/lib64/$config ]; then
    # Nothing of it runs in Python: that of this machine need not be the wheel's.
    build/venv/bin/python -m pip download -q --disable-pip-version-check --no-deps \
      --only-binary :all: --python-version 3.11 -d $folder "$package==$version" &&
      build/venv/bin/python -m zipfile -e $folder/libggml_python-"$version"-*.whl $folder ||
      { echo "no ggml: the examples in examples/ggml and their tests are left out"; return 0; }
  fi
  ggml_options=(-Dggml_DIR="$PWD/$folder/libggml/lib64/${config%/*}")
}
