"""PyTorch on a GPU, on the shapes of bench/cuda: what norma's kernels are compared with.

    python3 cuda_torch.py [--only ceilings,search,covariance,flow,coreset,backbones] [--json FILE] [--repeats 50]
    python3 cuda_torch.py --device cpu --tiny        proves that the script works, with shapes that mean nothing

Every time is the median of at least `--repeats` runs between two events, after a warm-up, the caches overwritten before each. `graph` rows replay a CUDA graph, so
they hold no launch cost of the host; `eager` rows hold it where it does not hide under the overwriting. Results are compared with float64 once before timing. The
coupling blocks are written here after the published equations (all-in-one block: permutation as a 1 x 1 convolution, as the libraries do it), the coreset loop does anomalib's
operations. Needs PyTorch; the backbones need torchvision. Without a GPU it says so and exits with 0.
"""
import argparse
import contextlib
import json
import math
import statistics
import sys
import time

try:
    import torch
except ImportError:
    print("skipped: PyTorch is not installed")
    sys.exit(0)

SEARCH = [(784, 1640), (784, 16400), (784, 41000), (3136, 16400), (3136, 41000)]
SEARCH_DIMS = 1024
FLOW_MAPS = [(64, 64), (128, 32), (256, 16)]  # channels, side: ResNet-18 at 256 pixels
FLOW_BLOCKS = 8


class Bench:
    def __init__(self, options):
        self.device, self.tiny, self.repeats = torch.device(options.device), options.tiny, options.repeats
        self.rows = []
        self.flush = None
        if self.cuda:
            cache = getattr(torch.cuda.get_device_properties(self.device), "L2_cache_size", 0) or 64 << 20
            self.flush = torch.empty(2 * cache, dtype=torch.uint8, device=self.device)

    @property
    def cuda(self):
        return self.device.type == "cuda"

    def times(self, call):
        """Milliseconds of each run."""
        if not self.cuda:
            call()
            return [self.host_ms(call) for _ in range(2 if self.tiny else self.repeats)]
        start = time.perf_counter()
        while time.perf_counter() - start < 0.2:
            call()
            torch.cuda.synchronize()
        result, spent = [], 0.0
        while (len(result) < self.repeats or (spent < 500.0 and len(result) < 2000)) and not (len(result) >= 5 and spent > 60e3):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self.flush.fill_(len(result) & 255)
            begin.record()
            call()
            end.record()
            end.synchronize()
            result.append(begin.elapsed_time(end))
            spent += result[-1]
        return result

    @staticmethod
    def host_ms(call):
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)

    def row(self, what, way, call, flop=0.0, moved=0.0, note=""):
        try:
            times = self.times(call)
        except RuntimeError as error:  # out of memory, an operation that this version cannot capture: a line, not the end
            print(f"{what:44} {way:32} failed: {str(error).splitlines()[0]}")
            self.rows.append({"what": what, "way": way, "failed": str(error)})
            return
        ms = statistics.median(times)
        entry = {"what": what, "way": way, "us": 1e3 * ms, "fastest_us": 1e3 * min(times), "repeats": len(times), "note": note}
        text = f"{what:44} {way:32} {1e3 * ms:12.1f} us"
        if flop:
            entry["tflops"] = flop / ms * 1e-9
            text += f" {entry['tflops']:9.2f} TFLOP/s"
        if moved:
            entry["gbytes"] = moved / ms * 1e-6
            text += f" {entry['gbytes']:9.1f} GB/s"
        self.rows.append(entry)
        print(text, note, flush=True)

    def graphed(self, call):
        """A function that replays what `call` does; None where there are no graphs."""
        if not self.cuda:
            return None
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def eager_and_graph(self, what, way, call, **counts):
        self.row(what, way + ", eager", call, **counts)
        with self.allowed_to_fail(what, way + ", graph"):
            if replay := self.graphed(call):
                self.row(what, way + ", graph", replay, **counts)

    @contextlib.contextmanager
    def allowed_to_fail(self, what, way):
        try:
            yield
        except Exception as error:  # noqa: BLE001: compilers and captures fail in many ways; each is a line of the table
            print(f"{what:44} {way:32} failed: {str(error).splitlines()[0]}")
            self.rows.append({"what": what, "way": way, "failed": str(error)})

    def randn(self, *shape, dtype=torch.float32):
        return torch.randn(*shape, device=self.device, dtype=dtype)


@contextlib.contextmanager
def tf32(on):
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


# --------------------------------------------------------------------------------------------------------------- 1. the device's limits
def ceilings(b):
    n = 1 << (16 if b.tiny else 28)
    source, target = b.randn(n), torch.empty(n, device=b.device)
    b.row(f"copy {4 * n >> 20} MiB", "copy_", lambda: target.copy_(source), moved=8.0 * n)
    side = 128 if b.tiny else 8192
    for name, dtype, fast in (("fp32", torch.float32, False), ("tf32", torch.float32, True), ("bf16", torch.bfloat16, False)):
        x, y = b.randn(side, side, dtype=dtype), b.randn(side, side, dtype=dtype)
        with tf32(fast):
            b.row(f"product {side}^3", name, lambda: torch.mm(x, y), flop=2.0 * side**3)
    one = torch.zeros(1, device=b.device)

    def hundred():
        for _ in range(100):
            one.add_(1.0)

    b.eager_and_graph("100 one-element additions", "add_", hundred)


# ------------------------------------------------------------------------------------------------------------------- 2. nearest rows
def search(b):
    dims = 64 if b.tiny else SEARCH_DIMS
    for queries, bank in [(20, 50)] if b.tiny else SEARCH:
        q, x = b.randn(queries, dims), b.randn(bank, dims)
        norms = (x * x).sum(1)
        low_q, low_x = q.bfloat16(), x.bfloat16()
        exact = torch.cat([torch.cdist(part.double(), x.double()).square() for part in q.split(256)])
        for k in (1, 9):
            def by_cdist():
                return torch.cdist(q, x).topk(k, largest=False)

            def by_product():
                return (norms - 2.0 * (q @ x.T)).topk(k, largest=False)

            def by_low_product():
                return (norms - 2.0 * (low_q @ low_x.T)).topk(k, largest=False)

            want = exact.topk(k, largest=False).values
            shape = f"search {queries} x {bank} x {dims}, k={k}"
            ways = [("cdist + topk, fp32", by_cdist, False), ("product + topk, fp32", by_product, False), ("product + topk, tf32", by_product, True),
                    ("product + topk, bf16", by_low_product, False)]
            for way, call, fast in ways:
                with tf32(fast):
                    found = exact.gather(1, call().indices)  # a tie is as good as the row itself
                    right = float((found.sort(1).values <= want * (1 + 1e-6)).all(1).double().mean())
                    b.eager_and_graph(shape, way, call, flop=2.0 * queries * bank * dims, note=f"{100 * right:.2f} % of rows as float64")


# ------------------------------------------------------------------------------------------------------ 3. covariance and Mahalanobis
def covariance(b):
    positions, images = (6, 20) if b.tiny else (3136, 209)
    for dims in ((8,) if b.tiny else (100, 550)):
        x = b.randn(positions, images, dims)
        eye = 0.01 * torch.eye(dims, device=b.device)

        def covariances():
            centred = x - x.mean(1, keepdim=True)
            return torch.bmm(centred.mT, centred) / (images - 1) + eye

        cov = covariances()
        centred = (x[:2] - x[:2].mean(1, keepdim=True)).double()
        reference = centred.mT @ centred / (images - 1) + eye.double()
        note = f"largest error {float((cov[:2].double() - reference).abs().max()):.1e}"
        shape = f"covariance {positions} x {images} x {dims}"
        counts = {"flop": positions * images * dims * (dims + 1.0), "moved": 4.0 * positions * (images * dims + dims * (dims + 1) / 2)}
        for way, fast in (("bmm, fp32", False), ("bmm, tf32", True)):
            with tf32(fast):
                b.eager_and_graph(shape, way, covariances, note=note, **counts)
        factor = torch.linalg.cholesky_ex(cov).L
        flop = positions * dims**3 / 3.0
        b.row(f"factor {positions} x {dims}", "cholesky_ex", lambda: torch.linalg.cholesky_ex(cov), flop=flop)
        many_eyes = torch.eye(dims, device=b.device).expand(positions, dims, dims).contiguous()
        b.row(f"inverse factor {positions} x {dims}", "solve_triangular", lambda: torch.linalg.solve_triangular(factor, many_eyes, upper=False), flop=flop)
        inverse = torch.linalg.solve_triangular(factor, many_eyes, upper=False)
        mean = x.mean(1)
        for batch in (1, 32):
            frame = b.randn(batch, positions, dims)

            def by_solve():
                return torch.linalg.solve_triangular(factor, (frame - mean).permute(1, 2, 0), upper=False).square().sum(1)

            def by_inverse():
                return torch.bmm(inverse, (frame - mean).permute(1, 2, 0)).square().sum(1)

            what = f"Mahalanobis {batch} x {positions} x {dims}"
            b.eager_and_graph(what, "solve_triangular", by_solve)
            b.eager_and_graph(what, "inverse factor, bmm", by_inverse, moved=4.0 * positions * dims * (dims + 1) / 2)


# ----------------------------------------------------------------------------------------------------------------- 4. coupling layers
class AllInOneBlock(torch.nn.Module):
    """u = [x1, x2 exp(s) + t], (s, t) from 0.1 N(x1), s = 2 tanh; then scale and offset per channel, then a fixed permutation of the channels."""

    def __init__(self, channels, generator):
        super().__init__()
        self.keep, self.change = channels - channels // 2, channels // 2
        self.subnet = torch.nn.Sequential(torch.nn.Conv2d(self.keep, self.keep, 3, padding=1), torch.nn.ReLU(),
                                          torch.nn.Conv2d(self.keep, 2 * self.change, 3, padding=1))
        self.scale = torch.nn.Parameter(torch.full((1, channels, 1, 1), 2.0 * math.log(math.exp(5.0) - 1.0)))
        self.offset = torch.nn.Parameter(torch.zeros(1, channels, 1, 1))
        matrix = torch.eye(channels)[torch.randperm(channels, generator=generator)]
        self.register_buffer("permutation", matrix[:, :, None, None].clone())

    def parts(self, x1):
        a = 0.1 * self.subnet(x1)
        s = 2.0 * torch.tanh(a[:, : self.change])
        g = 0.1 * torch.nn.functional.softplus(self.scale, beta=0.5)
        return s, a[:, self.change:], g

    def forward(self, x):
        x1, x2 = x[:, : self.keep], x[:, self.keep:]
        s, t, g = self.parts(x1)
        y = torch.cat([x1, x2 * torch.exp(s) + t], 1) * g + self.offset
        logdet = s.sum((1, 2, 3)) + x.shape[2] * x.shape[3] * torch.log(g).sum()
        return torch.nn.functional.conv2d(y, self.permutation), logdet

    def inverse(self, y):
        u = torch.nn.functional.conv2d(y, self.permutation.transpose(0, 1))
        g = 0.1 * torch.nn.functional.softplus(self.scale, beta=0.5)
        u = (u - self.offset) / g
        x1, y2 = u[:, : self.keep], u[:, self.keep:]
        s, t, _ = self.parts(x1)
        return torch.cat([x1, (y2 - t) * torch.exp(-s)], 1)


class Flows(torch.nn.Module):
    """One chain of blocks for each map."""

    def __init__(self, maps, blocks):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.chains = torch.nn.ModuleList(torch.nn.ModuleList(AllInOneBlock(c, generator) for _ in range(blocks)) for c, _ in maps)

    def forward(self, maps):
        latents, logdets = [], []
        for chain, x in zip(self.chains, maps):
            logdet = torch.zeros(len(x), device=x.device)
            for block in chain:
                x, part = block(x)
                logdet = logdet + part
            latents.append(x)
            logdets.append(logdet)
        return latents, logdets

    def loss(self, maps):
        latents, logdets = self(maps)
        return sum((0.5 * z.square().sum((1, 2, 3)) - logdet).mean() for z, logdet in zip(latents, logdets))


def flow(b):
    torch.manual_seed(2)
    shapes, blocks = ([(6, 5), (7, 3)], 2) if b.tiny else (FLOW_MAPS, FLOW_BLOCKS)
    model = Flows(shapes, blocks).to(b.device)
    with torch.no_grad():
        for chain, (channels, side) in zip(model.chains, shapes):
            x = b.randn(2, channels, side, side)
            error = float((chain[0].inverse(chain[0](x)[0]) - x).abs().max())
            assert error < 2e-3, f"the inverse of a block is off by {error}"
    conv = sum(2.0 * 9 * (c - c // 2) * ((c - c // 2) + 2 * (c // 2)) * side * side * blocks for c, side in shapes)
    for batch in (1, 2) if b.tiny else (1, 32):
        maps = [b.randn(batch, c, side, side) for c, side in shapes]
        for precision, fast in (("fp32", False), ("tf32", True)):
            with tf32(fast):
                what = f"flow forward, batch {batch}, {precision}"
                with torch.no_grad():
                    b.eager_and_graph(what, "as the libraries do it", lambda: model(maps), flop=batch * conv)
                    if b.cuda and hasattr(torch, "compile"):
                        with b.allowed_to_fail(what, "compiled"):
                            compiled = torch.compile(model, mode="reduce-overhead")
                            b.row(what, "compiled", lambda: compiled(maps), flop=batch * conv)
                what = f"flow step, batch {batch}, {precision}"
                optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, weight_decay=1e-5, capturable=b.cuda)

                def step():
                    optimizer.zero_grad(set_to_none=False)
                    model.loss(maps).backward()
                    optimizer.step()

                b.eager_and_graph(what, "as the libraries do it", step, flop=3 * batch * conv)
                if b.cuda and hasattr(torch, "compile"):
                    with b.allowed_to_fail(what, "compiled"):
                        compiled_loss = torch.compile(model.loss, mode="reduce-overhead")

                        def compiled_step():
                            optimizer.zero_grad(set_to_none=False)
                            compiled_loss(maps).backward()
                            optimizer.step()

                        b.row(what, "compiled", compiled_step, flop=3 * batch * conv)


# ------------------------------------------------------------------------------------------------------------------------- 5. coreset
def coreset(b):
    points, dims, picks = (300, 8, 5) if b.tiny else (163856, 296, 200)
    x = b.randn(points, dims)
    squares = (x * x).sum(1)

    def anomalib():
        nearest, at, chosen = None, 0, []
        for _ in range(picks):
            chosen.append(at)
            distance = torch.linalg.norm(x - x[at : at + 1], ord=2, dim=1, keepdim=True)
            nearest = distance if nearest is None else torch.minimum(nearest, distance)
            at = int(torch.argmax(nearest).item())
        return torch.tensor(chosen)

    def matrix_vector():
        nearest, at = torch.full((points,), math.inf, device=b.device), torch.zeros(1, dtype=torch.long, device=b.device)
        chosen = torch.zeros(picks, dtype=torch.long, device=b.device)
        for i in range(picks):
            chosen[i] = at[0]
            centre = x.index_select(0, at)[0]
            nearest = torch.minimum(nearest, squares - 2.0 * torch.mv(x, centre) + squares.index_select(0, at))
            at = nearest.argmax(keepdim=True)
        return chosen

    note = f"{int((anomalib() == matrix_vector().cpu()).sum())} of {picks} picks the same"
    what, flop = f"coreset {points} x {dims}, {picks} picks", 2.0 * points * dims * picks
    b.row(what, "anomalib's loop", anomalib, flop=flop)
    b.eager_and_graph(what, "matrix-vector", matrix_vector, flop=flop, note=note)


# ----------------------------------------------------------------------------------------------------------------------- 6. backbones
def backbones(b):
    try:
        import torchvision
    except ImportError:
        print("backbones skipped: torchvision is not installed")
        return
    for name in ("resnet18",) if b.tiny else ("resnet18", "wide_resnet50_2"):
        whole = getattr(torchvision.models, name)()
        for batch in (1,) if b.tiny else (1, 32):
            size = 64 if b.tiny else 224
            for precision, dtype, fast in (("fp32", torch.float32, False), ("tf32", torch.float32, True), ("bf16", torch.bfloat16, False)):
                stages = [torch.nn.Sequential(whole.conv1, whole.bn1, whole.relu, whole.maxpool, whole.layer1), whole.layer2, whole.layer3]
                stages = [stage.eval().to(b.device, dtype).to(memory_format=torch.channels_last) for stage in stages]
                frame = b.randn(batch, 3, size, size, dtype=dtype).to(memory_format=torch.channels_last)

                def run(x):
                    outputs = []
                    for stage in stages:
                        x = stage(x)
                        outputs.append(x)
                    return outputs

                torch.backends.cudnn.benchmark = True
                with torch.no_grad(), tf32(fast):
                    what = f"{name} to layer3, batch {batch}, {precision}"
                    b.eager_and_graph(what, "channels last", lambda: run(frame))
                    if b.cuda and hasattr(torch, "compile"):
                        with b.allowed_to_fail(what, "compiled"):
                            compiled = torch.compile(run, mode="max-autotune")
                            b.row(what, "compiled", lambda: compiled(frame))


PARTS = {"ceilings": ceilings, "search": search, "covariance": covariance, "flow": flow, "coreset": coreset, "backbones": backbones}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="shapes that only prove that everything runs")
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--only: expected some of {', '.join(PARTS)}, found {', '.join(unknown)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"skipped: PyTorch {torch.__version__} sees no CUDA device")
        return 0
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{name}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}")
    torch.manual_seed(1)
    bench = Bench(options)
    for part in parts:
        PARTS[part](bench)
        if bench.cuda:
            torch.cuda.empty_cache()
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "tiny": options.tiny, "rows": bench.rows}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
