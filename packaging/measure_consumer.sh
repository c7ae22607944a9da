#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What the smallest user of the core pays: user time of g++ -O2 (median of three, so that other
# programs hardly matter) and size of the stripped program, beside Eigen/Core alone and an empty main.
set -euo pipefail
cd "$(dirname "$0")/.."
cxx=${CXX:-g++}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo 'int main() {}' >"$work/empty.cpp"
printf '#include <Eigen/Core>\nint main() {}\n' >"$work/eigen.cpp"

measure() {  # measure NAME FILE
  local command=("$cxx" -std=c++20 -O2 -Iinclude -isystem "${EIGEN:-/usr/include/eigen3}" "$2" -o "$work/program")
  local median
  median=$(for _ in 1 2 3; do
    TIMEFORMAT=%U
    { time "${command[@]}"; } 2>&1
  done | sort -n | sed -n 2p)
  strip "$work/program"
  printf '%-28s %6s s %9s bytes\n' "$1" "$median" "$(stat -c %s "$work/program")"
}
echo "$("$cxx" --version | head -1), -std=c++20 -O2"
measure "int main() {}" "$work/empty.cpp"
measure "Eigen/Core and int main() {}" "$work/eigen.cpp"
measure "tests/install/consumer/core" tests/install/consumer/core.cpp
