#!/usr/bin/env python3
"""AUROC and average precision of scikit-learn at the sizes of bench_metrics, for comparison.

Needs numpy and scikit-learn.  Prints one line a size: processor seconds (best of the repeats) and samples a second.
Scores and labels are drawn like those of bench_metrics (sum of two uniforms, positives half a unit higher), float32.

    python3 bench/peers/metrics_sklearn.py [repeats]
"""
import sys
import time

import numpy as np
import sklearn
from sklearn.metrics import average_precision_score, roc_auc_score


def best(function, repeats):
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def main():
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print("numpy", np.__version__, "scikit-learn", sklearn.__version__)
    for n, percent in ((10_000, 3), (4_164_608, 3), (10_000_000, 3), (10_000_000, 50)):
        random = np.random.default_rng(1)
        labels = (random.integers(0, 100, n) < percent).astype(np.uint8)
        scores = (random.random(n) + random.random(n) + 0.5 * labels).astype(np.float32)
        for name, function in (("auroc", roc_auc_score), ("average_precision", average_precision_score)):
            seconds = best(lambda: function(labels, scores), repeats)
            print(f"{name} n:{n} percent:{percent} {1e3 * seconds:.3f} ms {n / seconds / 1e6:.2f} M samples/s")


if __name__ == "__main__":
    main()
