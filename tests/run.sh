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

source .ci/install.sh
install_missing "${norma_build_packages[@]}"

jobs=$(build_jobs)
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
