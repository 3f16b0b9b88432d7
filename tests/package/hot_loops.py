"""Checks that the innermost loops of products, covariances, factors, the search and pooled features keep their accumulators in registers.

Compiles a file that uses them all, disassembles it and looks at the loop with the most multiply-adds of every register tile: a vector
instruction with a stack operand there means that the compiler spilled, which costs a third of the speed and no test of results sees it.

usage: hot_loops.py COMPILER INCLUDE_DIR [OBJDUMP]        exit 0: fine; 1: spilled; 77: cannot tell here (no objdump, other processor)
"""
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

SOURCE = """
#include <norma/features/grid.hpp>
#include <norma/linalg/covariance.hpp>
#include <norma/linalg/gemm.hpp>
#include <norma/nn/kernels/convolution.hpp>
#include <norma/search/exact.hpp>
void use(norma::MatrixView<const float> a, const norma::linalg::PackedMatrix& b, norma::MatrixView<float> c, norma::Arena& arena) {
  norma::linalg::gemm(a, b, c, {}, {}, arena);
}
norma::Result<norma::ExactSearch::Index> use(norma::MatrixView<const float> bank) { return norma::ExactSearch::prepare(bank, {}); }
auto covariance() { return norma::linalg::detail::covariance_kernels(); }
auto floats() { return norma::linalg::detail::lane_kernels<float>(); }
auto doubles() { return norma::linalg::detail::lane_kernels<double>(); }
const auto* kernels() { return &norma::nn::detail::convolution_kernels(norma::instruction_set()); }
const auto* use() { return &norma::features::detail::grid_kernels(norma::instruction_set()); }
"""
FUNCTION = re.compile(r"^[0-9a-f]+ <(norma|void norma)(::simd::\w+::(?:(?:tile_kernel|narrow_tile)<\d+ul?>|product_(?:half_)?tile_of<|outer_tile<|weighted_sum_of_rows|factor_lanes<|invert_lanes<)[^\n]*)>:\n(.*?)(?=\n\n|\Z)", re.S | re.M)
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(\S.*)$", re.M)


def innermost(body, densest):
    """Instructions of the loop with the most multiplications, or of the one with the most among its instructions."""
    code = [(int(address, 16), text) for address, text in INSTRUCTION.findall(body)]
    best, most = [], 0
    for address, text in code:
        jump = re.match(r"j\w+\s+([0-9a-f]+)", text)
        if jump and int(jump.group(1), 16) <= address:
            loop = [t for a, t in code if int(jump.group(1), 16) <= a <= address]
            count = sum(any(name in t for name in ("fmadd", "mulp", "vpdpbusd", "vpmaddubsw")) for t in loop)
            if densest:
                count = count / len(loop) if count >= 4 else 0
            if count > most:
                best, most = loop, count
    return best


def main():
    compiler, include = sys.argv[1:3]
    objdump = shutil.which(sys.argv[3] if len(sys.argv) > 3 else "objdump")
    if objdump is None:
        print("skipped: no objdump")
        return 77
    with tempfile.TemporaryDirectory() as folder:
        source, output = pathlib.Path(folder, "use.cpp"), pathlib.Path(folder, "use.o")
        source.write_text(SOURCE)
        subprocess.run([compiler, "-std=c++20", "-O2", "-I", include, "-c", str(source), "-o", str(output)], check=True)
        listing = subprocess.run([objdump, "-d", "-C", "--no-show-raw-insn", str(output)], check=True, capture_output=True, text=True).stdout
    tiles = FUNCTION.findall(listing)
    if "mm0" not in listing:
        print("skipped: not an x86 processor")
        return 77
    if not tiles:
        print("no register tiles found: were they renamed?")
        return 1
    spilled = 0
    for _, name, body in tiles:
        loop = innermost(body, "_lanes" in name)
        bad = [text for text in loop if "mm" in text and "(%rsp" in text]
        if not loop or bad:
            spilled += 1
            print(f"{name.split('(')[0]}: {'no loop found' if not loop else 'vectors on the stack: ' + '; '.join(bad)}")
    print(f"{len(tiles)} register tiles, {spilled} with spills")
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
