"""FAISS, torch and numpy on the shapes of bench_search, bench_k_centre and bench_covariance: best and median milliseconds, and processor time
(all threads together), which is what says something on a shared machine.

    python3 search_faiss.py [search] [k_centre] [covariance]

Each round times every peer and thread count in turn, so that a busy minute hits all of them. FAISS is only as good as its BLAS: give it the
OpenMP flavour of OpenBLAS, or it fights over the cores with its own threads (OMP_WAIT_POLICY=passive helps otherwise).
Made with FAISS 1.7.3, PyTorch 1.13, numpy 1.24.
"""
import statistics
import sys
import time

import numpy as np
import torch

try:
    import faiss
except ImportError:
    faiss = None

ROUNDS = 7


def measure(ways):
    """ways: name -> function. Interleaved; the first round warms up and is not counted. Milliseconds: (wall, processor) of every round."""
    times = {name: [] for name in ways}
    for round_number in range(ROUNDS + 1):
        for name, way in ways.items():
            wall, processor = time.perf_counter(), time.process_time()
            way()
            if round_number > 0:
                times[name].append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - processor)))
    return times


def report(title, ways, flop):
    for name, times in measure(ways).items():
        walls, processors = zip(*times)
        print(f"{title:34s} {name:32s} best {min(walls):9.2f} ms  median {statistics.median(walls):9.2f} ms  processor {min(processors):9.2f} ms"
              f"  {flop / min(walls) * 1e-6:7.1f} GFLOP/s at best", flush=True)


def search():
    for queries, bank, dims in [(784, 1640, 1024), (784, 16400, 1024), (3136, 16400, 1024), (784, 16400, 384)]:
        rng = np.random.default_rng(1)
        b = rng.standard_normal((bank, dims), dtype=np.float32)
        q = rng.standard_normal((queries, dims), dtype=np.float32)
        ways = {}
        for threads in (1, 2):
            for k in (1, 9):
                if faiss is not None:
                    index = faiss.IndexFlatL2(dims)
                    index.add(b)

                    def by_faiss(threads=threads, k=k, index=index):
                        faiss.omp_set_num_threads(threads)
                        index.search(q, k)

                    ways[f"faiss flat, k={k}, {threads} thr"] = by_faiss

                tb, tq = torch.from_numpy(b), torch.from_numpy(q)

                def by_torch(threads=threads, k=k, tb=tb, tq=tq):
                    torch.set_num_threads(threads)
                    torch.cdist(tq, tb).topk(k, largest=False)

                ways[f"torch cdist+topk, k={k}, {threads} thr"] = by_torch
        report(f"search {queries} x {bank} x {dims}", ways, 2.0 * queries * bank * dims)


def k_centre():
    points, dims, picks = 163856, 128, 40
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((points, dims), dtype=np.float32))

    def differences(threads):
        """The subtraction, norm, minimum and argmax of the published loops."""
        torch.set_num_threads(threads)
        nearest = torch.linalg.norm(x - x[0], dim=1)
        for _ in range(picks - 1):
            centre = x[int(torch.argmax(nearest))]
            nearest = torch.minimum(nearest, torch.linalg.norm(x - centre, dim=1))

    def products(threads):
        torch.set_num_threads(threads)
        squares = (x * x).sum(1)
        nearest = squares - 2 * (x @ x[0]) + squares[0]
        for _ in range(picks - 1):
            best = int(torch.argmax(nearest))
            nearest = torch.minimum(nearest, squares - 2 * (x @ x[best]) + squares[best])

    ways = {}
    for threads in (1, 2):
        ways[f"differences, {threads} thr"] = lambda threads=threads: differences(threads)
        ways[f"matrix-vector, {threads} thr"] = lambda threads=threads: products(threads)
    report(f"k-centre {points} x {dims}, {picks} picks", ways, 2.0 * points * dims * picks)


def covariance():
    positions, dims, images = 3136, 100, 209
    x = np.random.default_rng(1).standard_normal((positions, images, dims), dtype=np.float32)
    t = torch.from_numpy(x)

    def by_cov():
        for p in range(positions):
            np.cov(x[p], rowvar=False)

    def by_numpy():
        centred = x - x.mean(1, keepdims=True)
        return np.matmul(centred.transpose(0, 2, 1), centred) / (images - 1)

    def by_torch(threads):
        torch.set_num_threads(threads)
        centred = t - t.mean(1, keepdim=True)
        return torch.bmm(centred.transpose(1, 2), centred) / (images - 1)

    flop = positions * dims * (dims + 1) * images
    report(f"covariance {positions} x {images} x {dims}",
           {"np.cov a position": by_cov, "numpy matmul": by_numpy, "torch bmm, 1 thr": lambda: by_torch(1), "torch bmm, 2 thr": lambda: by_torch(2)}, flop)
    sigma = by_torch(2) + 0.01 * torch.eye(dims)
    inverse = torch.linalg.inv(sigma)
    one = t[:, 0, :].contiguous()

    def score(threads):
        torch.set_num_threads(threads)
        return torch.einsum("pd,pde,pe->p", one, inverse, one).sqrt()

    def cholesky(threads):
        torch.set_num_threads(threads)
        return torch.linalg.cholesky(sigma)

    report("factors", {f"torch cholesky, {n} thr": lambda n=n: cholesky(n) for n in (1, 2)}, positions * dims**3 / 3)
    report("distances of one image", {f"torch einsum, {n} thr": lambda n=n: score(n) for n in (1, 2)}, 2.0 * positions * dims * dims)


if __name__ == "__main__":
    if faiss is None:
        print("faiss is not installed: its rows are left out", file=sys.stderr)
    for name in sys.argv[1:] or ["search", "k_centre", "covariance"]:
        {"search": search, "k_centre": k_centre, "covariance": covariance}[name]()
