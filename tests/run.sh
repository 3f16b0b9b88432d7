#!/usr/bin/env bash
# Everything from a bare checkout to the last test: installs what is missing (Debian, Ubuntu), configures, builds, tests.
#   bash tests/run.sh [preset] [further arguments of cmake's configure step]
# The preset is `release` unless named. Exit code 0 means that every test passed or says why it was skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

preset=release
if [[ $# -gt 0 && $1 != -* ]]; then
  preset=$1
  shift
fi

# Package, and a file or command that shows it is there (so that other ways of installing count).
needed=(
  "cmake cmake" "ninja-build ninja" "g++ c++" "pkg-config pkg-config"
  "libeigen3-dev /usr/include/eigen3/Eigen/Core" "libxtensor-dev /usr/include/xtensor/xtensor.hpp" "libstb-dev /usr/include/stb/stb_image.h"
  "doctest-dev /usr/include/doctest/doctest.h" "libbenchmark-dev /usr/include/benchmark/benchmark.h"
)
missing=()
for pair in "${needed[@]}"; do
  read -r package sign <<<"$pair"
  case $sign in
    /*) [[ -e $sign ]] || missing+=("$package") ;;
    *) command -v "$sign" >/dev/null || missing+=("$package") ;;
  esac
done
if [[ ${#missing[@]} -gt 0 ]]; then
  if [[ $(id -u) -eq 0 ]] && command -v apt-get >/dev/null; then
    echo "installing: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >/dev/null
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    echo "not found in the usual place: ${missing[*]}" >&2
    echo "on Debian or Ubuntu: sudo apt-get install ${missing[*]}" >&2
    echo "going on; cmake says what it cannot find" >&2
  fi
fi

jobs=$(getconf _NPROCESSORS_ONLN)
started=$SECONDS
cmake --preset "$preset" "$@"
cmake --build --preset "$preset" --parallel "$jobs"
built=$SECONDS
failed=0
ctest --preset "$preset" --parallel "$jobs" || failed=$?
times="built in $((built - started)) s, tested in $((SECONDS - built)) s"
if [[ $failed -ne 0 ]]; then
  echo "FAILED (preset $preset; $times): the list above names the tests" >&2
  exit 1
fi
echo "all tests passed (preset $preset; $times)"
