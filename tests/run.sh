#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh clone on Debian 12: installs what is missing, builds everything, runs all tests.
set -euo pipefail
cd "$(dirname "$0")/.."
. cmake/setup.sh
need_build_tools
need /usr/include/catch2/catch.hpp catch2 "unit tests, 2.13"
need /usr/include/benchmark/benchmark.h libbenchmark-dev "measurements, 1.7 or newer"
need clang++ clang "second compiler, clang 14 or newer: users' programs are compiled with both"
need pkg-config pkgconf "finds an installation without CMake"
need /usr/include/torch/csrc/api/include/torch/torch.h libtorch-dev "example libtorch_llada, 1.13 or newer"
need mpicxx libopenmpi-dev "example tensor_parallel, MPI 3.0 or newer"
need mpirun openmpi-bin "the same"
need doxygen doxygen "reference pages, 1.9.4 or newer"
need_python
install_needed
mkdir -p build
install_python_packages examples/requirements.txt
install_python_packages packaging/requirements.txt
python=$PWD/build/venv/bin/python

jobs=$(nproc)
echo "== release: every program, benchmark and test"
cmake --preset release -DDLLM_CACHE_BUILD_TESTS=ON -DDLLM_CACHE_BUILD_BENCH=ON -DDLLM_CACHE_BUILD_EXAMPLES=ON \
  -DCMAKE_VERIFY_INTERFACE_HEADER_SETS=ON -DDLLM_CACHE_PYTHON="$python"
cmake --build --preset release -j "$jobs"
echo "== each public header compiles alone"
cmake --build --preset release -j "$jobs" --target all_verify_interface_header_sets
echo "== debug: the tests under the address and undefined behaviour sanitizers"
cmake --preset debug -DDLLM_CACHE_BUILD_BENCH=OFF
cmake --build --preset debug -j "$jobs"
ctest --preset debug -j "$jobs"
ctest --preset release -j "$jobs"
