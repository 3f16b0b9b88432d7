"""Checks what every kernel of norma::cuda takes of a multiprocessor, without one.

Compiles each kernels/norma/cuda/*.cu for sm_80 and sm_90 (*_sm90a.cu for sm_90a) up to the assembler (nothing is linked or run), reads its report, and fails where a kernel keeps
values in memory that it should keep in registers (spills, a stack frame), or where docs/kernels/resources.md says something else.

usage: kernel_resources.py NVCC SOURCE_DIR [--update] [FILE.cu ...]      exit 0: fine; 1: not; 77: cannot tell here
       --update writes docs/kernels/resources.md; files named are looked at alone, without the page
"""
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

def architectures(stem):
    return ["sm_90a"] if stem.endswith("_sm90a") else ["sm_80", "sm_90"]


PROCESSES = 2

# Kernels that run seldom or briefly may use memory: {part of the short name: why it does not matter}.
COLD = {}

PAGE = "docs/kernels/resources.md"
HEAD = """# What the kernels take of a multiprocessor

The assembler's report for every kernel in `norma::cuda`: registers of a thread, static shared memory of a block in bytes (all of norma's shared memory is dynamic, so 0 is expected), and bytes on the
stack, which hold what did not fit into registers. Written by

    python3 tests/package/kernel_resources.py $(command -v nvcc) . --update

and compared by the test `package.kernel_resources`, which also fails on any stack or spill in a kernel that the script does not list as cold. This says what fits, not how fast it is.
Dynamic shared memory and block sizes are on each kernel's page.

"""
ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


def demangle(names):
    filter_program = shutil.which("c++filt") or shutil.which("cu++filt")
    if filter_program is None or not names:
        return {name: name for name in names}
    text = subprocess.run([filter_program], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return dict(zip(names, text.splitlines()))


def short(name):
    """void norma::cuda::detail::f_kernel<float, norma::cuda::FTuning>(float const*, ...) -> f_kernel<float, FTuning>"""
    if name.endswith(")"):
        depth = 0
        for at in range(len(name) - 1, -1, -1):  # drops the parameters: back to the bracket that opens the last one
            depth += (name[at] == ")") - (name[at] == "(")
            if depth == 0:
                name = name[:at]
                break
    name = re.sub(r"^void ", "", name)
    name = re.sub(r"\b(norma|cuda|detail)::", "", name)
    return name.replace("__nv_bool", "bool").replace("(bool)1", "true").replace("(bool)0", "false").replace("|", "\\|")


def compile_one(nvcc, source, file, architecture):
    """[(mangled name, registers, static shared, stack, spilled)] or the compiler's complaint."""
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-std=c++20", "-gencode", f"arch=compute_{architecture[3:]},code={architecture}", "-I", f"{source}/include", "-I", f"{source}/kernels", "-Xptxas", "-v",
                   "-cubin", str(file), "-o", str(pathlib.Path(folder, "kernels.cubin"))]
        run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0 or "Potential Performance Loss" in run.stderr + run.stdout:
        return run.stdout + run.stderr
    kernels, name = [], None
    for line in run.stderr.splitlines() + run.stdout.splitlines():
        if found := ENTRY.search(line):
            name, stack, spilled = found.group(1), 0, 0
        elif name and (found := STACK.search(line)):
            stack, spilled = int(found.group(1)), int(found.group(2)) + int(found.group(3))
        elif name and (found := USED.search(line)):
            smem = SHARED.search(line)
            kernels.append((name, int(found.group(1)), int(smem.group(1)) if smem else 0, stack, spilled))
            name = None
    return kernels


def version_of(nvcc):
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V(\d+\.\d+\.\d+)", text).group(1)


def measure(nvcc, source, files):
    """{file: {short name: {architecture: (registers, shared, stack, spilled)}}} and complaints."""
    result, complaints = {}, []
    jobs = [(file, architecture) for file in files for architecture in architectures(file.stem)]
    with concurrent.futures.ThreadPoolExecutor(PROCESSES) as pool:
        reports = list(pool.map(lambda job: compile_one(nvcc, source, *job), jobs))
    for (file, architecture), report in zip(jobs, reports):
        if isinstance(report, str):
            complaints.append(f"{file.name} for {architecture}:\n{report}")
            continue
        names = demangle([kernel[0] for kernel in report])
        for mangled, *numbers in report:
            result.setdefault(file.stem, {}).setdefault(short(names[mangled]), {})[architecture] = tuple(numbers)
    return result, complaints


def table(measured, nvcc_version):
    lines = [f"nvcc {nvcc_version}.", ""]
    for file in sorted(measured):
        columns = [f"{what}, {architecture}" for architecture in architectures(file) for what in ("registers", "shared", "stack")]
        lines += [f"## {file}.cu", "", "| kernel | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
        for kernel in sorted(measured[file]):
            cells = [str(n) for architecture in architectures(file) for n in measured[file][kernel].get(architecture, ("-",) * 4)[:3]]
            lines.append(f"| `{kernel}` | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def spills(measured):
    for file, kernels in measured.items():
        for kernel, by_architecture in kernels.items():
            if any(part in kernel for part in COLD):
                continue
            for architecture, (registers, _, stack, spilled) in by_architecture.items():
                if stack or spilled:
                    yield f"{file}.cu: {kernel} for {architecture}: {registers} registers, {stack} bytes of stack, {spilled} bytes spilled, expected none"


def main():
    arguments = [a for a in sys.argv[1:] if a != "--update"]
    update = "--update" in sys.argv
    if len(arguments) < 2:
        print(__doc__)
        return 1
    nvcc, source = shutil.which(arguments[0]), os.path.abspath(arguments[1])
    if nvcc is None:
        print(f"skipped: no nvcc ({arguments[0]})")
        return 77
    chosen = [pathlib.Path(a) for a in arguments[2:]]
    files = chosen or sorted(pathlib.Path(source, "kernels/norma/cuda").glob("*.cu"))
    measured, complaints = measure(nvcc, source, files)
    complaints += spills(measured)
    version = version_of(nvcc)
    text = table(measured, version)
    count = sum(len(kernels) for kernels in measured.values())
    if chosen:
        print(text)
    elif not count:
        complaints.append("no kernel found: was the assembler's report worded differently?")
    elif update:
        page = pathlib.Path(source, PAGE)
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(HEAD + text)
        print(f"wrote {PAGE}")
    else:
        page = pathlib.Path(source, PAGE)
        recorded = page.read_text() if page.exists() else ""
        if recorded.startswith(HEAD) and not recorded.startswith(f"{HEAD}nvcc {version}."):
            print(f"{PAGE} was recorded with another nvcc than {version}: only stack and spills are looked at")
        elif recorded != HEAD + text:
            old, new = recorded.splitlines(), (HEAD + text).splitlines()
            complaints += ["page says: " + line for line in old if line not in new] + ["found:     " + line for line in new if line not in old]
            complaints.append(f"{PAGE} does not say what was found: run this script with --update and look at the difference")
    for complaint in complaints:
        print(complaint)
    print(f"{count} kernels in {len(measured)} files, {len(complaints)} complaints")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
