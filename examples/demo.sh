#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh clone on Debian 12: installs what is missing, builds, and answers a question about a
# small table with the bundled model, cache off and on side by side.
set -euo pipefail
cd "$(dirname "$0")/.."
. cmake/setup.sh
need_build_tools
install_needed

log=$(mktemp)
trap 'rm -f "$log"' EXIT
quietly() { "$@" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }; }
echo "building (about a minute the first time) ..."
quietly cmake --preset release -DDLLM_CACHE_BUILD_TESTS=OFF -DDLLM_CACHE_BUILD_BENCH=OFF
quietly cmake --build --preset release --target dllm-demo dllm-generate
echo
build/release/examples/dllm-demo --model examples/records/model \
  --prompt-file examples/records/prompt.txt --gen-length 192 --block-length 32 "$@"
