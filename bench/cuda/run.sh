#!/usr/bin/env bash
# Everything that needs a GPU, in one go: builds, runs the kernels' tests plainly and under compute-sanitizer, runs every bench_cuda_* program and the PyTorch
# peers, and leaves the raw output in one text file, from which a page under bench/results/ is written.
#   bash bench/cuda/run.sh [build folder, default build/cuda] [further arguments of cmake's configure step]
# PYTHON names the interpreter that has PyTorch (default python3). Exit code 0 means that everything ran and passed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

build=build/cuda
if [[ $# -gt 0 && $1 != -* ]]; then
  build=$1
  shift
fi
python=${PYTHON:-python3}

if ! nvidia-smi -L >/dev/null 2>&1; then
  echo "skipped: nvidia-smi finds no device"
  exit 77
fi
device=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr 'A-Z' 'a-z' | tr -cs 'a-z0-9\n' '_')
architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
output=bench/results/cuda_${device%_}.raw.txt

# This device's own code, with source lines for the sanitizer.
cmake --preset cuda -B "$build" -DCMAKE_CUDA_ARCHITECTURES="$architecture" -DNORMA_CUDA_LINEINFO=ON "$@"
cmake --build "$build"

failed=()
section() { # section <title> <command>...: runs it, keeps what it says, notes a failure and goes on
  local title=$1
  shift
  printf '\n## %s\n\n$ %s\n\n' "$title" "$*"
  "$@" || failed+=("$title")
}

everything() {
  echo "# Raw output of bench/cuda/run.sh, commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), $(date -u +%Y-%m-%d)"
  section "device" nvidia-smi
  section "compiler" nvcc --version
  section "clocks before" nvidia-smi -q -d CLOCK,POWER,TEMPERATURE
  section "tests of the kernels" ctest --test-dir "$build" -L cuda_device --output-on-failure
  local program name tool
  for program in "$build"/bin/tests/cuda_*_test; do
    name=$(basename "$program")
    if ! command -v compute-sanitizer >/dev/null; then
      echo "compute-sanitizer is not installed: memory and races are not checked"
      failed+=("compute-sanitizer")
      break
    fi
    [[ $name == cuda_no_device_test ]] && continue
    for tool in memcheck racecheck synccheck initcheck; do
      # Calls that are meant to fail are part of the tests: the sanitizer looks at the kernels alone.
      section "$tool: $name" compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 1 "$program"
    done
  done
  for program in "$build"/bin/bench_cuda_*; do
    if [[ -x $program ]]; then
      section "benchmark: $(basename "$program")" "$program" --benchmark_counters_tabular=true
    fi
  done
  section "PyTorch" "$python" bench/peers/cuda_torch.py
  section "clocks after" nvidia-smi -q -d CLOCK,POWER,TEMPERATURE
  echo
  if [[ ${#failed[@]} -gt 0 ]]; then
    printf 'FAILED: %s\n' "${failed[@]}"
  else
    echo "everything ran"
  fi
}

mkdir -p bench/results
: >"$output"
everything >"$output" 2>&1 &
writer=$!
tail -f --pid="$writer" "$output" &
wait "$writer"
wait || true
echo
echo "raw output: $output"
! grep -q '^FAILED: ' "$output"
