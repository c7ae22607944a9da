#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh clone on Debian 12: installs what is missing, builds the benchmarks, runs them (about
# half an hour on two quiet cores) and writes bench/results and the tables of bench/RESULTS.md.
set -euo pipefail
cd "$(dirname "$0")/.."
. cmake/setup.sh
need_build_tools
need /usr/include/benchmark/benchmark.h libbenchmark-dev "measurements, 1.7 or newer"
need_python
install_needed
mkdir -p build bench/results
install_python_packages bench/requirements.txt

cmake --preset release -DDLLM_CACHE_BUILD_TESTS=OFF -DDLLM_CACHE_BUILD_EXAMPLES=OFF -DDLLM_CACHE_BUILD_BENCH=ON >/dev/null
cmake --build --preset release --target bench_core bench_layer bench_generate
measure() {  # PROGRAM REPETITIONS SECONDS-EACH OPTION...
  build/release/bench/bench_"$1" --benchmark_repetitions="$2" --benchmark_min_time="$3" \
    --benchmark_out="bench/results/$1.json" --benchmark_out_format=json "${@:4}"
}
measure core 7 0.1
measure layer 5 0.1
measure generate 5 0 --benchmark_filter=-qwen3  # which has a section of its own
build/venv/bin/python bench/report.py bench/results/{generate,layer,core}.json \
  --svg bench/results/steps.svg --readme bench/RESULTS.md
