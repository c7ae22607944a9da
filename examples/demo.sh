#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh clone on Debian 12: installs what is missing, builds, and answers a question about a
# small table with the bundled model, cache off and on side by side, live where the output is a
# terminal. Options go to dllm-demo (paths from the repository root), for example:
# bash examples/demo.sh --speed 0.5 --policy dual
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
quietly cmake --build --preset release --target dllm-demo dllm-generate dllm-trace
echo
# What is given behind the script beats what is given here.
case " $*" in
  *" --prompt"*) ;;
  *)
    echo " A table, and the question '>from NAME': the row of that name and all below it."
    set -- --prompt-file examples/records/prompt.txt "$@"
    ;;
esac
build/release/examples/dllm-demo --model examples/records/model --gen-length 192 --block-length 32 "$@"
