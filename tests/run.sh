#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh clone on Debian 12: installs what is missing, builds everything, runs all tests.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'TEXT'
bash tests/run.sh [--full | --compiler CXX | --legs | --help]
  (none)          Release build of everything, each public header alone; all tests in the release
                  build and under the address and undefined behaviour sanitizers; the tests with
                  threads under the thread sanitizer. What CI runs.
  --compiler CXX  The tests with another compiler alone, for example clang++-16.
  --full          Both, and an hour or two more: 10000 random sequences of operations in place of
                  300; every compiler of Debian 12; C++23; two minutes of each fuzzer
                  (FUZZ_SECONDS); clang-tidy.
  --legs          Lists the compilers, as .github/workflows/tests.yml has them.
TEXT
}
debian_compilers="g++-12 clang++-14 clang++-16 clang++-19"
other_compilers="g++-13 g++-14"  # Debian 12 does not have them: they run where a fork's CI runs
full= compiler=
case "${1-}" in
  "") ;;
  --full) full=1 ;;
  --compiler) compiler=${2:?tests/run.sh: --compiler needs a compiler}; shift ;;
  --legs) printf '%s\n' $debian_compilers $other_compilers; exit 0 ;;
  --help) usage; exit 0 ;;
  *) echo "tests/run.sh: unknown option: $1" >&2; usage >&2; exit 2 ;;
esac
[ $# -le 1 ] || { echo "tests/run.sh: takes one option, got $#" >&2; exit 2; }

. cmake/setup.sh
jobs=$(nproc)

# The tests with one compiler, in a folder of its own.
test_with() {
  local build=build/compiler-${1//+/p}
  echo "== the tests with $1"
  cmake --preset compiler -B "$build" -DCMAKE_CXX_COMPILER="$1"
  cmake --build "$build" -j "$jobs"
  ctest --test-dir "$build" -j "$jobs" --output-on-failure --no-tests=error
}
need_compiler() {
  local package=${1/clang++/clang}
  need "$1" "$package" "compiler that was asked for"
}
if [ "$compiler" ]; then
  need_build_tools
  need /usr/include/catch2/catch.hpp catch2 "unit tests, 2.13"
  need python3 python3 "text programs"
  need_compiler "$compiler"
  install_needed
  test_with "$compiler"
  exit
fi

need_build_tools
need /usr/include/catch2/catch.hpp catch2 "unit tests, 2.13"
need /usr/include/benchmark/benchmark.h libbenchmark-dev "measurements, 1.7 or newer"
need clang++ clang "second compiler, clang 14 or newer: users' programs are compiled with both"
need pkg-config pkgconf "finds an installation without CMake"
need /usr/include/torch/csrc/api/include/torch/torch.h libtorch-dev "examples of libtorch, 1.13 or newer"
need mpicxx libopenmpi-dev "example tensor_parallel, MPI 3.0 or newer"
need mpirun openmpi-bin "the same"
need doxygen doxygen "reference pages, 1.9.4 or newer"
need_python
if [ "$full" ]; then
  for compiler in $debian_compilers; do need_compiler "$compiler"; done
  need clang-tidy clang-tidy "lint"
  compgen -G '/usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a' >/dev/null ||
    need /nonexistent libclang-rt-14-dev "libFuzzer"
fi
install_needed
mkdir -p build
install_python_packages examples/requirements.txt
install_python_packages packaging/requirements.txt
python=$PWD/build/venv/bin/python
find_ggml

echo "== release: every program, benchmark and test"
cmake --preset release -DDLLM_CACHE_BUILD_TESTS=ON -DDLLM_CACHE_BUILD_BENCH=ON -DDLLM_CACHE_BUILD_EXAMPLES=ON \
  -DCMAKE_VERIFY_INTERFACE_HEADER_SETS=ON -DDLLM_CACHE_PYTHON="$python" \
  "${ggml_options[@]}"
cmake --build --preset release -j "$jobs"
echo "== each public header compiles alone"
cmake --build --preset release -j "$jobs" --target all_verify_interface_header_sets
echo "== debug: the tests under the address and undefined behaviour sanitizers"
cmake --preset debug -DDLLM_CACHE_BUILD_BENCH=OFF
cmake --build --preset debug -j "$jobs"
ctest --preset debug -j "$jobs"
ctest --preset release -j "$jobs"
echo "== tsan: the tests with threads under the thread sanitizer"
cmake --preset tsan
cmake --build --preset tsan -j "$jobs"
ctest --preset tsan
[ "$full" ] || exit 0

echo "== full: 10000 random sequences of operations"
DLLM_CACHE_RANDOM_RUNS=10000 build/release/tests/core_tests "[random]"
for compiler in $debian_compilers; do test_with "$compiler"; done
echo "== full: the tests in C++23"
cmake --preset cxx23
cmake --build --preset cxx23 -j "$jobs"
ctest --preset cxx23 -j "$jobs"
echo "== full: fuzzers"
cmake --preset fuzz
cmake --build --preset fuzz -j "$jobs"
for corpus in tests/fuzz/corpus/*; do
  target=$(basename "$corpus")
  mkdir -p "build/fuzz/found/$target"  # new inputs land here, one that fails beside it
  build/fuzz/tests/fuzz/fuzz_"$target" -max_total_time="${FUZZ_SECONDS:-120}" -timeout=20 -verbosity=0 \
    -artifact_prefix="build/fuzz/found/$target-" "build/fuzz/found/$target" "$corpus"
done
echo "== full: clang-tidy"
cmake --preset tidy
cmake --build --preset tidy -j "$jobs"
