"""norma beside its peers, in one process: FAISS, OpenBLAS, oneDNN, ONNX Runtime, PyTorch, scikit-learn and scipy, whichever are installed.

    bash bench/peers/run.sh [TOPIC...] [--threads 1 2] [--rounds 9] [--weights resnet18.safetensors --images FOLDER]

Topics: backbones convolution product search pruned k_centre covariance factors distances metrics; all of them by default. `run.sh` installs the
peers, builds norma's side and starts this script. Results are compared before anything is timed. Then every round gives each side a few calls
in turn, and measures the machine's own limit (multiply-adds from registers, reading memory), so that a busy minute hits all of them. Printed are medians
over all calls, the best call, the ratio to norma's median (above 1: norma is faster), and the share of the limit measured in the same rounds.

--weights and --images: ResNet-18's weights (safetensors) and a category in MVTec AD's layout, whose patch features are then searched by `pruned`
instead of made-up ones.

Peers get their best: FAISS, ONNX Runtime and OpenBLAS come from the Python package index with their kernels for this processor; loops of BLAS or LAPACK
calls over positions run in C++ on as many threads as norma has; ONNX models have folded norms and no padding nodes; oneDNN's tensors lie in
the layouts that it asks for, the conversions are not timed.
"""
import argparse
import ctypes
import glob
import importlib.util
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "golden"))
warnings.filterwarnings("ignore")
POINTER, LONG = ctypes.c_void_p, ctypes.c_int64


def module(name):
    """A peer, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed: its rows are left out", file=sys.stderr)
        return None


class Library:
    """norma_operations: every function that makes an operation gives an object that is called."""

    def __init__(self, path):
        self.c = ctypes.CDLL(path)
        for name in ("norma_error", "norma_instruction_set"):
            getattr(self.c, name).restype = ctypes.c_char_p
        for name in ("norma_peak", "norma_bandwidth", "norma_backbone_gflop"):
            getattr(self.c, name).restype = ctypes.c_double
            getattr(self.c, name).argtypes = [POINTER]
        self.c.norma_pool.restype = POINTER
        self.c.norma_run.argtypes = self.c.norma_destroy.argtypes = self.c.norma_destroy_pool.argtypes = [POINTER]
        self.c.norma_patch_rows.restype = LONG

    def operation(self, name, *arguments):
        function = getattr(self.c, name)
        function.restype = POINTER
        handle = function(*[convert(a) for a in arguments])
        if not handle:
            raise RuntimeError(self.c.norma_error().decode())
        return Operation(self, handle, arguments)

    def __contains__(self, name):
        return hasattr(self.c, name)


def convert(argument):
    if isinstance(argument, numpy.ndarray):
        assert argument.flags.c_contiguous
        return POINTER(argument.ctypes.data)
    if isinstance(argument, str):
        return ctypes.c_char_p(os.fsencode(argument))
    return LONG(argument) if isinstance(argument, int) else argument


class Operation:
    def __init__(self, library, handle, kept):
        self.library, self.handle, self.kept = library, handle, kept  # `kept` holds the arrays alive

    def __call__(self):
        if self.library.c.norma_run(self.handle) != 0:
            raise RuntimeError(self.library.c.norma_error().decode())

    def __del__(self):
        self.library.c.norma_destroy(self.handle)


class Pool:
    def __init__(self, library, threads):
        self.library, self.threads = library, threads
        self.handle = POINTER(library.c.norma_pool(threads))

    def operation(self, name, *arguments):
        operation = self.library.operation(name, self.handle, *arguments)
        operation.pool = self  # whose threads it runs on
        return operation

    def peak(self):
        return self.library.c.norma_peak(self.handle)

    def bandwidth(self):
        return self.library.c.norma_bandwidth(self.handle)

    def __del__(self):
        self.library.c.norma_destroy_pool(self.handle)


class Peers:
    """The peers and how many threads they use."""

    def __init__(self):
        self.torch, self.faiss, self.onnxruntime = module("torch"), module("faiss"), module("onnxruntime")
        self.openblas = None
        spec = importlib.util.find_spec("scipy_openblas32")
        if spec is not None:
            self.openblas = ctypes.CDLL(str(Path(spec.origin).parent / "lib" / "libscipy_openblas.so"))
            self.openblas.scipy_openblas_get_corename.restype = self.openblas.scipy_openblas_get_config.restype = ctypes.c_char_p
        else:
            print("scipy-openblas32 is not installed: OpenBLAS' rows are left out", file=sys.stderr)
        try:
            self.openmp = ctypes.CDLL("libgomp.so.1")  # oneDNN's threads
        except OSError:
            self.openmp = None
        try:
            self.onednn = ctypes.CDLL("libdnnl.so.2")
        except OSError:
            self.onednn = None

    def set_threads(self, threads):
        if self.torch is not None:
            self.torch.set_num_threads(threads)
        if self.faiss is not None:
            self.faiss.omp_set_num_threads(threads)
        if self.openmp is not None:
            self.openmp.omp_set_num_threads(threads)
        self.set_blas_threads(threads)

    def set_blas_threads(self, threads):
        """One where the loop around the calls has the threads."""
        if self.openblas is not None:
            self.openblas.scipy_openblas_set_num_threads(threads)

    def versions(self):
        found = [f"{m.__name__} {m.__version__}" for m in (numpy, self.torch, self.faiss, self.onnxruntime) if m is not None]
        if self.openblas is not None:
            found.append(self.openblas.scipy_openblas_get_config().decode().split(" USE64")[0].split(" DYNAMIC")[0] + " " +
                         self.openblas.scipy_openblas_get_corename().decode())
        return ", ".join(found)


class Bench:
    def __init__(self, library, rounds, threads, options):
        self.library, self.rounds, self.threads, self.options = library, rounds, threads, options
        self.peers = Peers()

    def table(self, title, per="ms"):
        print(f"\n{title}\n\n| operation | threads | who | median {per} | best | norma is faster by | of the limit |\n| --- | --- | --- | --- | --- | --- | --- |", flush=True)

    def compare(self, what, pool, ways, work=None, limit="peak", divide=1.0, own=None):
        """ways: name -> function, norma first. work: GFLOP (or GB for limit "bandwidth") of a call. divide: a call counts as so many. own: norma's median,
        where it was measured before. Gives the first way's median."""
        times, limits, counts = {name: [] for name in ways}, [], {}
        for name, way in ways.items():
            way()
            start = time.perf_counter()
            way()
            counts[name] = max(1, min(30, round(0.06 / max(time.perf_counter() - start, 1e-9))))
        for _ in range(self.rounds):
            if work is not None:
                limits.append(getattr(pool, limit)())
            for name, way in ways.items():
                time.sleep(0.004)  # threads of the one before, which may still spin, go to sleep
                way()
                for _ in range(counts[name]):
                    start = time.perf_counter()
                    way()
                    times[name].append(1e3 * (time.perf_counter() - start) / divide)
        for name, values in times.items():
            median = statistics.median(values)
            ratio = "" if own is None else f"{median / own:.2f}"
            own = own or median
            share = "" if work is None else f"{100 * work / (1e-3 * median * divide) / statistics.median(limits):.0f} %"
            print(f"| {what} | {pool.threads} | {name} | {median:.3g} | {min(values):.3g} | {ratio} | {share} |", flush=True)
        return own


def close(name, got, want, tolerance):
    error = float(numpy.max(numpy.abs(got - want)) / numpy.max(numpy.abs(want)))
    if not error <= tolerance:
        raise SystemExit(f"{name}: results differ by {error:.2g} of the largest, expected at most {tolerance:g}")


def normal(*shape, seed=1):
    return numpy.random.default_rng(seed).standard_normal(shape, dtype=numpy.float32)


# ------------------------------------------------------------------------------------------------------------------------ networks

def without_padding_nodes(network):
    """Explicit padding before a convolution becomes the convolution's own where it is the same on both sides, and a node of that convolution's
    model otherwise: what an exporter that knows the network would write."""
    import backbones_reference as reference
    torch = sys.modules["torch"]

    def replace(parent, side):
        for name, child in parent.named_children():
            if isinstance(child, reference.SameConv):
                kernel, stride = child.kernel_size[0], child.stride[0]
                size = child.norma_input
                total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
                if total % 2 == 0:
                    plain = torch.nn.Conv2d(child.in_channels, child.out_channels, kernel, stride, total // 2, child.dilation, child.groups, child.bias is not None)
                    plain.load_state_dict(child.state_dict())
                    setattr(parent, name, plain)
            else:
                replace(child, side)

    def remember(layer, inputs):
        layer.norma_input = inputs[0].shape[-1]

    hooks = [m.register_forward_pre_hook(remember) for m in network.modules() if isinstance(m, reference.SameConv)]
    return hooks, replace


def backbones(bench):
    torch, ort = bench.peers.torch, bench.peers.onnxruntime
    if torch is None:
        return
    import backbones_reference as reference
    import backbones_formula as formula
    from backbones_levels import levels
    bench.table("Backbones to PatchCore's two outputs, batch 1, made-up weights; the limit is direct arithmetic's, which Winograd's goes beyond")
    for name in ("resnet18", "wide_resnet50_2", "resnet50", "mobilenet_v2", "efficientnet_lite0", "squeezenet1_1"):
        with torch.no_grad():
            network = reference.build(name)
            formula.load_formula(name, network)
            side = reference.input_side(name)
            x = numpy.ascontiguousarray(formula.numbers(side, side).transpose(2, 0, 1)[None])
            cut = levels(name, network).eval()
            hooks, replace = without_padding_nodes(cut)
            expected = [t.numpy() for t in cut(torch.from_numpy(x))]
            for hook in hooks:
                hook.remove()
            replace(cut, side)
            frozen = torch.jit.optimize_for_inference(torch.jit.trace(cut, torch.from_numpy(x)))
            model = None
            if ort is not None:
                model = os.path.join(tempfile.gettempdir(), f"norma_{os.getpid()}.onnx")
                torch.onnx.export(cut, torch.from_numpy(x), model, opset_version=13, input_names=["x"])
            for threads in bench.threads:
                pool = Pool(bench.library, threads)
                bench.peers.set_threads(threads)
                own = pool.operation("norma_backbone", name)
                own()
                bench.library.c.norma_backbone_output.restype = POINTER
                for i, want in enumerate(expected):
                    shape = (LONG * 3)()
                    data = bench.library.c.norma_backbone_output(POINTER(own.handle), i, shape)
                    got = numpy.ctypeslib.as_array(ctypes.cast(data, ctypes.POINTER(ctypes.c_float)), tuple(shape))
                    close(f"{name}, output {i}", got.transpose(2, 0, 1), want[0], 1e-4)
                ways = {"norma": own}
                if ort is not None:
                    options = ort.SessionOptions()
                    options.intra_op_num_threads = threads
                    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
                    close(f"{name}, ONNX Runtime", session.run(None, {"x": x})[1], expected[1], 1e-4)
                    ways["ONNX Runtime"] = lambda session=session: session.run(None, {"x": x})
                tensor = torch.from_numpy(x)
                ways["PyTorch, frozen"] = lambda: frozen(tensor)
                bench.compare(name, pool, ways, bench.library.c.norma_backbone_gflop(POINTER(own.handle)))
            if model is not None:
                os.remove(model)


# (name, side, in, out, kernel, stride, groups); how often ResNet-18, wide ResNet-50-2 have it up to their third stage
LAYERS = [("7x7/2 3-64", 224, 3, 64, 7, 2, 1, 1, 1), ("3x3 64 @56", 56, 64, 64, 3, 1, 1, 4, 0), ("3x3/2 64-128 @56", 56, 64, 128, 3, 2, 1, 1, 0),
          ("3x3 128 @28", 28, 128, 128, 3, 1, 1, 3, 0), ("1x1/2 64-128 @56", 56, 64, 128, 1, 2, 1, 1, 0), ("3x3/2 128-256 @28", 28, 128, 256, 3, 2, 1, 1, 0),
          ("3x3 256 @14", 14, 256, 256, 3, 1, 1, 3, 0), ("1x1/2 128-256 @28", 28, 128, 256, 1, 2, 1, 1, 0), ("1x1 64-128 @56", 56, 64, 128, 1, 1, 1, 0, 1),
          ("1x1 64-256 @56", 56, 64, 256, 1, 1, 1, 0, 1), ("3x3 128 @56", 56, 128, 128, 3, 1, 1, 0, 3), ("1x1 128-256 @56", 56, 128, 256, 1, 1, 1, 0, 3),
          ("1x1 256-128 @56", 56, 256, 128, 1, 1, 1, 0, 2), ("1x1 256-256 @56", 56, 256, 256, 1, 1, 1, 0, 1), ("3x3/2 256 @56", 56, 256, 256, 3, 2, 1, 0, 1),
          ("1x1 256-512 @28", 28, 256, 512, 1, 1, 1, 0, 4), ("1x1/2 256-512 @56", 56, 256, 512, 1, 2, 1, 0, 1), ("1x1 512-256 @28", 28, 512, 256, 1, 1, 1, 0, 3),
          ("3x3 256 @28", 28, 256, 256, 3, 1, 1, 0, 3), ("1x1 512-512 @28", 28, 512, 512, 1, 1, 1, 0, 1), ("3x3/2 512 @28", 28, 512, 512, 3, 2, 1, 0, 1),
          ("1x1 512-1024 @14", 14, 512, 1024, 1, 1, 1, 0, 6), ("1x1/2 512-1024 @28", 28, 512, 1024, 1, 2, 1, 0, 1),
          ("1x1 1024-512 @14", 14, 1024, 512, 1, 1, 1, 0, 5), ("3x3 512 @14", 14, 512, 512, 3, 1, 1, 0, 5),
          ("depthwise 3x3 144 @56", 56, 144, 144, 3, 1, 144, 0, 0), ("depthwise 5x5 240 @28", 28, 240, 240, 5, 1, 240, 0, 0)]


def convolution(bench):
    bench.table("Convolutions with bias and ReLU, batch 1; the limit is direct arithmetic's")
    for name, side, inputs, outputs, kernel, stride, groups, _, _ in LAYERS:
        out_side = (side + 2 * (kernel // 2) - kernel) // stride + 1
        x, bias = normal(side, side, inputs), normal(outputs, seed=2)
        w = normal(outputs, inputs // groups, kernel, kernel, seed=3) / numpy.float32((inputs // groups * kernel * kernel) ** 0.5)
        y, theirs = numpy.empty((out_side, out_side, outputs), numpy.float32), numpy.empty((out_side, out_side, outputs), numpy.float32)
        size = (ctypes.c_int(kernel), ctypes.c_int(stride), ctypes.c_int(groups))
        for threads in bench.threads:
            pool = Pool(bench.library, threads)
            bench.peers.set_threads(threads)
            ways = {"norma": pool.operation("norma_convolution", x, side, inputs, outputs, *size, w, bias, y)}
            if "onednn_convolution" in bench.library:
                fetch = POINTER()
                theirs_run = bench.library.operation("onednn_convolution", x, side, inputs, outputs, *size, w, bias, theirs, ctypes.byref(fetch))
                fetched = Operation(bench.library, fetch, ())
                ways["norma"](), theirs_run(), fetched()
                close(name, y, theirs, 1e-4)
                ways["oneDNN"] = theirs_run
            bench.compare(name, pool, ways, 2e-9 * out_side * out_side * outputs * (inputs // groups) * kernel * kernel)


# ------------------------------------------------------------------------------------------------------------------------ products

def product(bench):
    bench.table("Matrix products a b^T; norma's b is packed beforehand")
    for m, n, k in [(1024, 1024, 1024), (784, 1640, 1024), (3136, 256, 64), (784, 512, 256), (196, 1024, 512), (197, 1152, 384)]:
        a, b, c, want = normal(m, k), normal(n, k, seed=2), numpy.empty((m, n), numpy.float32), numpy.empty((m, n), numpy.float32)
        for threads in bench.threads:
            pool = Pool(bench.library, threads)
            bench.peers.set_threads(threads)
            ways = {"norma": pool.operation("norma_gemm", a, b, c, m, n, k)}
            if bench.peers.openblas is not None:
                def by_openblas():
                    i, f = ctypes.c_int, ctypes.c_float
                    bench.peers.openblas.scipy_cblas_sgemm(i(101), i(111), i(112), i(m), i(n), i(k), f(1), convert(a), i(k), convert(b), i(k), f(0), convert(want), i(n))

                ways["OpenBLAS"] = by_openblas
            if bench.peers.onednn is not None:
                def by_onednn():
                    f = ctypes.c_float
                    bench.peers.onednn.dnnl_sgemm(ctypes.c_char(b"N"), ctypes.c_char(b"T"), LONG(m), LONG(n), LONG(k), f(1), convert(a), LONG(k), convert(b), LONG(k),
                                                  f(0), convert(want), LONG(n))

                ways["oneDNN"] = by_onednn
            for name, way in list(ways.items()):
                way()
                if name != "norma":
                    close(f"{name} {m} x {n} x {k}", c, want, 1e-4)
            bench.compare(f"{m} x {n} x {k}", pool, ways, 2e-9 * m * n * k)


# ------------------------------------------------------------------------------------------------------------------------- search

def search_ways(bench, pool, bank, queries, k, pruned):
    m, d = queries.shape
    distance, row = numpy.empty((m, k), numpy.float32), numpy.empty((m, k), numpy.int64)
    ways = {"norma" if p == 0 else "norma, pruned": pool.operation("norma_search", ctypes.c_int(p), bank, len(bank), queries, m, d, ctypes.c_int(k), distance, row)
            for p in ((1, 0) if pruned else (0,))}
    if bench.peers.faiss is not None:
        index = bench.peers.faiss.IndexFlatL2(d)
        index.add(bank)
        theirs, _ = index.search(queries, k)
        scale = float((queries.astype(numpy.float64) ** 2).sum(1).max())  # FAISS subtracts norms: its error is of their size
        for name, way in ways.items():
            way()
            if not numpy.max(numpy.abs(distance - theirs)) <= 1e-5 * scale:
                raise SystemExit(f"{name}: not FAISS' distances")
        ways["FAISS flat"] = lambda: index.search(queries, k)
    return ways


def search(bench):
    bench.table("Exact nearest rows, random normal; the limit is all products'")
    for m, n, d in [(784, 1640, 1024), (784, 16400, 1024), (3136, 16400, 1024), (784, 16400, 384)]:
        bank, queries = normal(n, d), normal(m, d, seed=2)
        for threads in bench.threads:
            pool = Pool(bench.library, threads)
            for k in (1, 9):
                bench.peers.set_threads(threads)
                bench.compare(f"{m} x {n} x {d}, k = {k}", pool, search_ways(bench, pool, bank, queries, k, False), 2e-9 * m * n * d)


def patch_rows(bench, folder, most):
    dims = LONG()
    pool = Pool(bench.library, max(bench.threads))
    arguments = [pool.handle, convert(bench.options.weights), convert(folder), LONG(most)]
    rows = bench.library.c.norma_patch_rows(*arguments, None, ctypes.byref(dims))
    out = numpy.empty((max(rows, 0), dims.value), numpy.float32)
    if rows <= 0 or bench.library.c.norma_patch_rows(*arguments, convert(out), ctypes.byref(dims)) != rows:
        raise SystemExit(bench.library.c.norma_error().decode() or f"no images in {folder}")
    return out


def pruned(bench):
    if bench.options.weights and bench.options.images:
        points = patch_rows(bench, os.path.join(bench.options.images, "train", "good"), 1 << 30)
        folders = sorted(glob.glob(os.path.join(bench.options.images, "test", "*")))
        queries = numpy.concatenate([patch_rows(bench, folder, 1) for folder in folders])
        chosen = numpy.empty(len(points) // 10, numpy.int64)
        Pool(bench.library, max(bench.threads)).operation("norma_k_centre", points, *points.shape, len(chosen), chosen)()
        bank, kind = numpy.ascontiguousarray(points[chosen]), "ResNet-18 patches, greedy coreset of a tenth"
    else:
        bank, queries = numpy.empty((16400, 384), numpy.float32), numpy.empty((3136, 384), numpy.float32)
        for seed, rows in ((1, bank), (2, queries)):
            bench.library.c.norma_feature_like_rows(LONG(rows.shape[0]), LONG(rows.shape[1]), ctypes.c_uint64(seed), convert(rows))
        kind = "made-up features"
    bench.table(f"Exact nearest rows, {kind}; the limit is all products'")
    for threads in bench.threads:
        pool = Pool(bench.library, threads)
        for k in (1, 9):
            bench.peers.set_threads(threads)
            bench.compare(f"{len(queries)} x {len(bank)} x {bank.shape[1]}, k = {k}", pool, search_ways(bench, pool, bank, queries, k, True),
                          2e-9 * len(queries) * len(bank) * bank.shape[1])


def k_centre(bench):
    torch = bench.peers.torch
    n, d, picks, their_picks = 163856, 296, 1638, 12
    points = numpy.empty((n, d), numpy.float32)
    bench.library.c.norma_feature_like_rows(LONG(n), LONG(d), ctypes.c_uint64(1), convert(points))
    bench.table(f"Greedy k-centre, {n} x {d}, made-up features, {picks} picks (the peers: {their_picks}); the limit counts 2 n d a pick", per="ms a pick")
    for threads in bench.threads:
        pool = Pool(bench.library, threads)
        bench.peers.set_threads(threads)
        chosen = numpy.empty(picks, numpy.int64)
        own = pool.operation("norma_k_centre", points, n, d, picks, chosen)
        rounds, bench.rounds = bench.rounds, min(bench.rounds, 3)
        median = bench.compare(f"{picks} picks", pool, {"norma": own}, 2e-9 * n * d * picks, divide=picks)
        if torch is not None:
            x = torch.from_numpy(points)
            squares = (x * x).sum(1)

            def differences():
                """Subtraction, norm, minimum, argmax: the operations of the published loops."""
                rows = [0]
                nearest = torch.linalg.norm(x - x[0], dim=1)
                while len(rows) < their_picks:
                    rows.append(int(torch.argmax(nearest)))
                    nearest = torch.minimum(nearest, torch.linalg.norm(x - x[rows[-1]], dim=1))
                return rows

            def products():
                rows = [0]
                nearest = squares - 2 * (x @ x[0]) + squares[0]
                while len(rows) < their_picks:
                    rows.append(int(torch.argmax(nearest)))
                    nearest = torch.minimum(nearest, squares - 2 * (x @ x[rows[-1]]) + squares[rows[-1]])
                return rows

            if differences() != chosen[:their_picks].tolist():
                raise SystemExit("k-centre: not the picks of the plain loop")
            bench.compare(f"{their_picks} picks", pool, {"PyTorch, differences (published loops)": differences, "PyTorch, products": products}, 2e-9 * n * d * their_picks,
                          divide=their_picks, own=median)
        bench.rounds = rounds


# ---------------------------------------------------------------------------------------------------------------------- Gaussians

def covariance(bench):
    torch, blas = bench.peers.torch, bench.peers.openblas
    bench.table("Covariances of every position, centring included; the limit counts the triangle")
    for positions, d, images in [(3136, 100, 209), (64, 550, 209)]:
        by_position = normal(positions, images, d) + numpy.float32(1)
        by_image = numpy.ascontiguousarray(by_position.transpose(1, 0, 2))
        last = numpy.empty((d, d))
        want = numpy.cov(by_position[-1].astype(numpy.float64), rowvar=False)
        for threads in bench.threads:
            pool = Pool(bench.library, threads)
            bench.peers.set_threads(threads)
            ways = {}
            for name, together in (("norma, all images at once", 1), ("norma, image by image", 0)):
                ways[name] = pool.operation("norma_covariance", ctypes.c_int(together), by_image, images, positions, d, last)
                last[:] = 0
                ways[name]()
                close("covariance", last, want, 1e-5)
            if blas is not None:
                out = numpy.empty((positions, d, d), numpy.float32)
                bench.peers.set_blas_threads(1)
                ways["OpenBLAS ssyrk a position"] = pool.operation("peer_ssyrk", ctypes.cast(blas.scipy_cblas_ssyrk, POINTER), by_position, positions, images, d, out)
                ways["OpenBLAS ssyrk a position"]()
                close("ssyrk", numpy.tril(out[-1]), numpy.tril(want), 1e-4)
            if torch is not None:
                tensor = torch.from_numpy(by_position)

                def by_torch():
                    centred = tensor - tensor.mean(1, keepdim=True)
                    return torch.bmm(centred.transpose(1, 2), centred) / (images - 1)

                ways["PyTorch bmm"] = by_torch
            bench.compare(f"{images} images, {positions} x {d}", pool, ways, 1e-9 * positions * d * (d + 1) * images)


def factors(bench):
    torch, blas = bench.peers.torch, bench.peers.openblas
    bench.table("Cholesky factors of every position, copying the matrices included; the limit counts d^3 / 3 (in double it is half as much)")
    for positions, d in [(3136, 100), (64, 550)]:
        for kind, letter, name in ((numpy.float32, "s", "float"), (numpy.float64, "d", "double")):
            x = normal(positions, 2 * d, d)
            a = numpy.ascontiguousarray(numpy.matmul(x.transpose(0, 2, 1), x) / numpy.float32(2 * d), kind)
            del x
            out, theirs = numpy.empty_like(a), numpy.empty_like(a)
            want = numpy.linalg.cholesky(a[-1].astype(numpy.float64))
            for threads in bench.threads:
                pool = Pool(bench.library, threads)
                bench.peers.set_threads(threads)
                ways = {"norma": pool.operation(f"norma_cholesky_{name}", a, positions, d, out)}
                ways["norma"]()
                close("factors", numpy.triu(out[-1]), want.T, 1e-4)
                if blas is not None:
                    bench.peers.set_blas_threads(1)
                    ways[f"OpenBLAS {letter}potrf a position"] = pool.operation(f"peer_{letter}potrf", ctypes.cast(getattr(blas, f"scipy_{letter}potrf_"), POINTER), a,
                                                                                positions, d, theirs)
                    list(ways.values())[-1]()
                    close("potrf", numpy.triu(theirs[-1]), want.T, 1e-4)  # column by column: the transpose of a lower triangle
                if torch is not None:
                    tensor = torch.from_numpy(a)
                    ways["PyTorch"] = lambda tensor=tensor: torch.linalg.cholesky(tensor)
                bench.compare(f"{name}, {positions} x {d}", pool, ways, 1e-9 * positions * d**3 / 3)


def distances(bench):
    torch = bench.peers.torch
    positions, d = 3136, 100
    by_image = normal(4 * d, positions, d)
    x, out = normal(positions, d, seed=2), numpy.empty(positions, numpy.float32)
    bench.table("Mahalanobis distances of one image; the limit is reading the triangles", per="ms")
    centred = by_image - by_image.mean(0)
    sigma = numpy.einsum("npd,npe->pde", centred, centred, optimize=True) / (len(by_image) - 1) + 0.01 * numpy.eye(d, dtype=numpy.float32)
    inverse = numpy.ascontiguousarray(numpy.linalg.inv(sigma))
    shifted = x - by_image.mean(0)
    for threads in bench.threads:
        pool = Pool(bench.library, threads)
        bench.peers.set_threads(threads)
        ways = {"norma": pool.operation("norma_mahalanobis", by_image, len(by_image), positions, d, x, out)}
        ways["norma"]()
        close("distances", out, numpy.sqrt(numpy.einsum("pd,pde,pe->p", shifted, inverse, shifted)), 1e-4)
        if torch is not None:
            one, matrices = torch.from_numpy(shifted), torch.from_numpy(inverse)
            ways["PyTorch einsum"] = lambda: torch.einsum("pd,pde,pe->p", one, matrices, one).sqrt()
        bench.compare(f"{positions} x {d}", pool, ways, 4e-9 * positions * (d * (d + 1) / 2 + 2 * d), limit="bandwidth")


# ------------------------------------------------------------------------------------------------------------------------ metrics

def metrics(bench):
    sklearn, scipy = module("sklearn.metrics"), module("scipy.ndimage")
    bench.table("Metrics and maps, one thread for the peers (they have no more)")
    n = 4_164_608
    generator = numpy.random.default_rng(1)
    labels = (generator.integers(0, 100, n) < 3).astype(numpy.uint8)
    scores = (generator.random(n) + generator.random(n) + 0.5 * labels).astype(numpy.float32)
    out = ctypes.c_double()
    for threads in bench.threads:
        pool = Pool(bench.library, threads)
        ways = {"norma": pool.operation("norma_auroc", scores, labels, n, ctypes.byref(out))}
        ways["norma"]()
        if sklearn is not None:
            if not abs(out.value - sklearn.roc_auc_score(labels, scores)) <= 1e-9:
                raise SystemExit("AUROC: not scikit-learn's")
            ways["scikit-learn"] = lambda: sklearn.roc_auc_score(labels, scores)
        rounds, bench.rounds = bench.rounds, min(bench.rounds, 3)
        bench.compare(f"AUROC, {n} scores", pool, ways)
        bench.rounds = rounds
    for side in (224, 900):
        pool = Pool(bench.library, 1)
        scores, smooth = generator.random((side, side), numpy.float32), numpy.empty((side, side), numpy.float32)
        ways = {"norma": bench.library.operation("norma_gaussian", scores, side, smooth)}
        ways["norma"]()
        if scipy is not None:
            close("Gaussian filter", smooth, scipy.gaussian_filter(scores, 4), 1e-5)
            ways["scipy"] = lambda: scipy.gaussian_filter(scores, 4)
        bench.compare(f"Gaussian filter {side} x {side}, sigma 4", pool, ways)


TOPICS = {f.__name__: f for f in (backbones, convolution, product, search, pruned, k_centre, covariance, factors, distances, metrics)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topics", nargs="*", choices=[[], *TOPICS], metavar="TOPIC")
    parser.add_argument("--library", required=True)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--weights")
    parser.add_argument("--images")
    options = parser.parse_args()
    bench = Bench(Library(options.library), options.rounds, options.threads, options)
    print(f"norma with {bench.library.c.norma_instruction_set().decode()}; {bench.peers.versions()}")
    for topic in options.topics or TOPICS:
        TOPICS[topic](bench)


if __name__ == "__main__":
    main()
