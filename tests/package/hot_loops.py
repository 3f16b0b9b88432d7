"""Checks that the innermost loops of the matrix product keep their accumulators in registers.

Compiles a file that uses gemm, disassembles it and looks at the loop with the most multiply-adds of every register tile: a vector
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
#include <norma/linalg/gemm.hpp>
void use(norma::MatrixView<const float> a, const norma::linalg::PackedMatrix& b, norma::MatrixView<float> c, norma::Arena& arena) {
  norma::linalg::gemm(a, b, c, {}, {}, arena);
}
"""
FUNCTION = re.compile(r"^[0-9a-f]+ <(norma|void norma)(::simd::\w+::tile_kernel<\d+ul?>[^\n]*)>:\n(.*?)(?=\n\n|\Z)", re.S | re.M)
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(\S.*)$", re.M)


def innermost(body):
    """Instructions of the loop with the most multiplications."""
    code = [(int(address, 16), text) for address, text in INSTRUCTION.findall(body)]
    best, most = [], 0
    for address, text in code:
        jump = re.match(r"j\w+\s+([0-9a-f]+)", text)
        if jump and int(jump.group(1), 16) <= address:
            loop = [t for a, t in code if int(jump.group(1), 16) <= a <= address]
            count = sum("fmadd" in t or "mulps" in t for t in loop)
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
        loop = innermost(body)
        bad = [text for text in loop if "mm" in text and "(%rsp" in text]
        if not loop or bad:
            spilled += 1
            print(f"{name.split('(')[0]}: {'no loop found' if not loop else 'vectors on the stack: ' + '; '.join(bad)}")
    print(f"{len(tiles)} register tiles, {spilled} with spills")
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
