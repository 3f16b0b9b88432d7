#!/usr/bin/env bash
# norma beside its peers in one process: installs them, builds norma's side, compares. Arguments: those of compare.py (none: everything).
#   bash bench/peers/run.sh search covariance --threads 1
#   bash bench/peers/run.sh --avx2 ...        as on a processor without AVX-512 (ONNX Runtime has no such switch and goes on using it)
set -euo pipefail
cd "$(dirname "$0")/../.."
target=norma_operations
if [[ ${1:-} == --avx2 ]]; then
  shift
  target=norma_operations_avx2
  export FAISS_OPT_LEVEL=avx2 OPENBLAS_CORETYPE=Haswell DNNL_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2
fi
bash bench/peers/install.sh
cmake --preset release -DNORMA_BUILD_BENCH=ON >/dev/null
cmake --build --preset release --target "$target"
exec build/peers/bin/python bench/peers/compare.py --library "build/release/lib/lib$target.so" "$@"
