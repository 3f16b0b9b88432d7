#!/usr/bin/env python3
"""Regenerates the golden metric vectors of this folder.

Needs numpy, scikit-learn and scipy (Debian: python3-numpy python3-sklearn
python3-scipy).  Run it inside this folder:  python3 generate.py
It is deterministic: a second run must leave the JSON files byte-identical.

Every number is computed twice wherever two independent ways exist
(scikit-learn against a brute-force loop, scipy.ndimage against a breadth-first
labelling) and the script stops if they disagree.
Definitions: docs/concepts/metrics.md
"""
import json
import math
import os
import warnings
from collections import deque
from fractions import Fraction

import numpy as np
import scipy.ndimage as ndi
from sklearn import metrics as skm

HERE = os.path.dirname(os.path.abspath(__file__))
TOL = 1e-12


# --------------------------------------------------------------------------
# ranking metrics, brute force
# --------------------------------------------------------------------------
def auroc_pairs(scores, labels):
    """Mann-Whitney: P(pos > neg) + 0.5 P(pos == neg), exact rational."""
    pos = [s for s, y in zip(scores, labels) if y]
    neg = [s for s, y in zip(scores, labels) if not y]
    if not pos or not neg:
        return None
    twice = 0
    for p in pos:
        for n in neg:
            twice += 2 if p > n else (1 if p == n else 0)
    return float(Fraction(twice, 2 * len(pos) * len(neg)))


def operating_points(scores, labels):
    """[(threshold, tp, fp)] for prediction = score >= threshold,
    one entry per distinct score, thresholds descending."""
    out = []
    for t in sorted(set(scores), reverse=True):
        tp = sum(1 for s, y in zip(scores, labels) if y and s >= t)
        fp = sum(1 for s, y in zip(scores, labels) if not y and s >= t)
        out.append((t, tp, fp))
    return out


def average_precision_steps(scores, labels):
    n_pos = sum(1 for y in labels if y)
    if n_pos == 0:
        return None
    ap, prev = 0.0, 0.0
    for _, tp, fp in operating_points(scores, labels):
        rec, prec = tp / n_pos, tp / (tp + fp)
        ap += (rec - prev) * prec
        prev = rec
    return ap


def pr_trapezoid(scores, labels):
    """Area under the linearly interpolated PR polyline, drawn from the
    anchor (recall 0, precision 1) through the operating points in order of
    falling threshold.  Kept only for comparison with tools that report it."""
    n_pos = sum(1 for y in labels if y)
    if n_pos == 0:
        return None
    area, r0, p0 = 0.0, 0.0, 1.0
    for _, tp, fp in operating_points(scores, labels):
        r1, p1 = tp / n_pos, tp / (tp + fp)
        area += (r1 - r0) * 0.5 * (p0 + p1)
        r0, p0 = r1, p1
    return area


def f1_max(scores, labels):
    """(best F1, smallest threshold reaching it, largest threshold reaching it)"""
    n_pos = sum(1 for y in labels if y)
    if n_pos == 0:
        return None, None, None
    best, lo, hi = Fraction(-1), None, None
    for t, tp, fp in operating_points(scores, labels):
        f1 = Fraction(2 * tp, n_pos + tp + fp)
        if f1 > best:
            best, lo, hi = f1, t, t
        elif f1 == best:
            lo = t
    return float(best), lo, hi


def ranking_reference(scores, labels):
    scores = [float(s) for s in scores]
    labels = [int(y) for y in labels]
    ref = {
        "auroc": auroc_pairs(scores, labels),
        "average_precision": average_precision_steps(scores, labels),
        "pr_auc_trapezoid": pr_trapezoid(scores, labels),
    }
    f1, lo, hi = f1_max(scores, labels)
    ref["f1_max"], ref["f1_threshold_smallest"], ref["f1_threshold_largest"] = f1, lo, hi
    ref["n_pos"] = int(sum(labels))
    ref["n_neg"] = int(len(labels) - sum(labels))
    # cross-check with scikit-learn
    if ref["auroc"] is not None:
        assert abs(skm.roc_auc_score(labels, scores) - ref["auroc"]) < TOL
    if ref["n_pos"]:
        assert abs(skm.average_precision_score(labels, scores) - ref["average_precision"]) < TOL
        p, r, t = skm.precision_recall_curve(labels, scores)
        with np.errstate(divide="ignore", invalid="ignore"):
            f = np.nan_to_num(2 * p * r / (p + r))
        assert abs(f.max() - f1) < TOL
        if ref["n_neg"]:
            assert abs(skm.auc(r, p) - ref["pr_auc_trapezoid"]) < 1e-9
        assert abs(skm.f1_score(labels, np.asarray(scores) >= lo) - f1) < TOL
        assert abs(skm.f1_score(labels, np.asarray(scores) >= hi) - f1) < TOL
    return ref


# --------------------------------------------------------------------------
# regions
# --------------------------------------------------------------------------
def label_bfs(mask, eight=True):
    """Labels 1..n in raster order of the first pixel met."""
    h, w = mask.shape
    lab = np.zeros((h, w), dtype=np.int64)
    steps = [(-1, 0), (1, 0), (0, -1), (0, 1)]
    if eight:
        steps += [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    n = 0
    for y in range(h):
        for x in range(w):
            if mask[y, x] and not lab[y, x]:
                n += 1
                lab[y, x] = n
                todo = deque([(y, x)])
                while todo:
                    cy, cx = todo.popleft()
                    for dy, dx in steps:
                        ny, nx = cy + dy, cx + dx
                        if 0 <= ny < h and 0 <= nx < w and mask[ny, nx] and not lab[ny, nx]:
                            lab[ny, nx] = n
                            todo.append((ny, nx))
    return lab, n


def regions_of(maps, masks):
    """List of score arrays, one per ground-truth region; array of all scores
    on normal pixels; region sizes per image."""
    regions, normal, sizes = [], [], []
    for a, m in zip(maps, masks):
        lab, n = label_bfs(m > 0)
        ref, n_ref = ndi.label(m > 0, np.ones((3, 3), int))
        assert n == n_ref and np.array_equal(lab > 0, ref > 0)
        sizes.append([int((lab == k).sum()) for k in range(1, n + 1)])
        assert sorted(sizes[-1]) == sorted(int((ref == k).sum()) for k in range(1, n + 1))
        for k in range(1, n + 1):
            regions.append(np.sort(a[lab == k].astype(np.float64)))
        normal.append(a[lab == 0].astype(np.float64))
    return regions, np.sort(np.concatenate(normal)), sizes


def area_up_to(xs, ys, limit):
    """Trapezoid area of the polyline (xs ascending) over [0, limit]; the
    ordinate at the limit is interpolated linearly."""
    area = 0.0
    for x0, y0, x1, y1 in zip(xs, ys, xs[1:], ys[1:]):
        if x1 <= limit:
            area += 0.5 * (y0 + y1) * (x1 - x0)
        else:
            if x0 < limit:
                yl = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
                area += 0.5 * (y0 + yl) * (limit - x0)
            break
    return area


def pro_curve_exact(regions, normal):
    """One point per distinct score (prediction = score >= t), plus (0,0) and
    (1,1).  This is the rule of the evaluation code of the 2D dataset."""
    ts = np.unique(np.concatenate(regions + [normal]))[::-1]
    xs, ys = [0.0], [0.0]
    for t in ts:
        xs.append((len(normal) - np.searchsorted(normal, t, "left")) / len(normal))
        ys.append(float(np.mean([(len(r) - np.searchsorted(r, t, "left")) / len(r)
                                 for r in regions])))
    xs.append(1.0)
    ys.append(1.0)
    return xs, ys


def pro_curve_sampled(regions, normal, count):
    """`count` thresholds taken at equally spaced ranks of the sorted normal
    scores, FPR taken from the rank, prediction = score > t, plus (1,1).
    This is the rule of the evaluation code of the 3D dataset."""
    n = len(normal)
    ranks = [int(v) for v in np.linspace(0, n - 1, num=count)]
    xs, ys = [1.0], [1.0]
    for k in ranks:
        t = normal[k]
        xs.append(1.0 - (k + 1) / n)
        ys.append(float(np.mean([(len(r) - np.searchsorted(r, t, "right")) / len(r)
                                 for r in regions])))
    return xs[::-1], ys[::-1]


def pro_reference(maps, masks, keep_curve=False):
    maps = [np.asarray(a, dtype=np.float64) for a in maps]
    masks = [np.asarray(m) for m in masks]
    regions, normal, sizes = regions_of(maps, masks)
    ref = {
        "n_regions_8": int(sum(len(s) for s in sizes)),
        "n_regions_4": int(sum(label_bfs(m > 0, eight=False)[1] for m in masks)),
        "region_sizes_8_per_image": sizes,
        "n_normal_pixels": int(len(normal)),
    }
    if not regions or len(normal) == 0:
        ref["au_pro_exact"] = None
        ref["au_pro_sampled"] = None
    else:
        xs, ys = pro_curve_exact(regions, normal)
        ref["au_pro_exact"] = {str(l): area_up_to(xs, ys, l) / l for l in (0.05, 0.3, 1.0)}
        # second way: the FPR axis depends on normal pixels only, so the area
        # equals the mean over regions of that region's own partial area
        for l in (0.05, 0.3, 1.0):
            own = [area_up_to(*pro_curve_exact([r], normal), l) / l for r in regions]
            assert abs(float(np.mean(own)) - ref["au_pro_exact"][str(l)]) < 1e-12
        ref["au_pro_sampled"] = {}
        for c in (100, 10):
            xs3, ys3 = pro_curve_sampled(regions, normal, c)
            ref["au_pro_sampled"][str(c)] = {
                str(l): area_up_to(xs3, ys3, l) / l for l in (0.05, 0.3)}
        if keep_curve:
            ref["curve_exact"] = {"fpr": xs, "pro": ys}
            ref["curve_sampled_10"] = dict(zip(("fpr", "pro"), pro_curve_sampled(regions, normal, 10)))
    flat_s = np.concatenate([a.ravel() for a in maps])
    flat_y = np.concatenate([(m > 0).ravel() for m in masks]).astype(int)
    ref["pixel"] = pixel_reference(flat_s, flat_y)
    ref["image_max_score"] = [float(a.max()) for a in maps]
    ref["image_label"] = [int((m > 0).any()) for m in masks]
    ref["image"] = ranking_reference(ref["image_max_score"], ref["image_label"])
    return ref


def pixel_reference(s, y):
    """As ranking_reference, vectorised for larger sets."""
    if len(s) <= 400:
        return ranking_reference(s, y)
    n_pos = int(y.sum())
    n_neg = int(len(y) - n_pos)
    ref = {"n_pos": n_pos, "n_neg": n_neg, "auroc": None, "average_precision": None,
           "f1_max": None, "f1_threshold_smallest": None, "f1_threshold_largest": None}
    ts = np.unique(s)[::-1]
    ps, ns = np.sort(s[y == 1]), np.sort(s[y == 0])
    tp = len(ps) - np.searchsorted(ps, ts, "left")
    fp = len(ns) - np.searchsorted(ns, ts, "left")
    if n_pos and n_neg:
        tpr = np.r_[0.0, tp / n_pos]
        fpr = np.r_[0.0, fp / n_neg]
        ref["auroc"] = float(np.sum(0.5 * (tpr[1:] + tpr[:-1]) * np.diff(fpr)))
        assert abs(ref["auroc"] - skm.roc_auc_score(y, s)) < 1e-10
    if n_pos:
        rec = np.r_[0.0, tp / n_pos]
        ref["average_precision"] = float(np.sum(np.diff(rec) * tp / (tp + fp)))
        assert abs(ref["average_precision"] - skm.average_precision_score(y, s)) < 1e-10
        f1 = 2 * tp / (n_pos + tp + fp)
        best = f1.max()
        hit = np.nonzero(f1 == best)[0]
        ref["f1_max"] = float(best)
        ref["f1_threshold_largest"] = float(ts[hit[0]])
        ref["f1_threshold_smallest"] = float(ts[hit[-1]])
    return ref


# --------------------------------------------------------------------------
# AUPIMO
# --------------------------------------------------------------------------
def aupimo_reference(maps, masks, count, bounds):
    maps = [np.asarray(a, dtype=np.float64) for a in maps]
    masks = [np.asarray(m) > 0 for m in masks]
    normal = [a for a, m in zip(maps, masks) if not m.any()]
    lo, hi = min(a.min() for a in normal), max(a.max() for a in normal)
    th = np.linspace(lo, hi, count)
    fpr = np.mean([[np.count_nonzero(a >= t) / a.size for t in th] for a in normal], axis=0)
    low, up = bounds
    i_low = int(np.argmin(np.abs(fpr - up)))     # threshold index of the upper FPR bound
    i_up = int(np.argmin(np.abs(fpr - low)))
    out = []
    x = np.log(fpr[i_low:i_up + 1])[::-1]
    for a, m in zip(maps, masks):
        if not m.any():
            out.append(None)
            continue
        v = np.sort(a[m])
        tpr = (len(v) - np.searchsorted(v, th, "left")) / len(v)
        y = tpr[i_low:i_up + 1][::-1]
        area = float(np.sum(0.5 * (y[1:] + y[:-1]) * np.diff(x)))
        out.append(min(1.0, max(0.0, area / math.log(up / low))))
    return {"num_thresholds": count, "fpr_bounds": list(bounds),
            "threshold_first_last": [float(th[0]), float(th[-1])],
            "index_at_upper_fpr": i_low, "index_at_lower_fpr": i_up,
            "fpr_at_indices": [float(fpr[i_low]), float(fpr[i_up])],
            "points_integrated": int(i_up - i_low + 1),
            "aupimo_per_image": out,
            "aupimo_mean": float(np.mean([v for v in out if v is not None]))}


# --------------------------------------------------------------------------
# data
# --------------------------------------------------------------------------
def q(a, step=256):
    """Multiples of 1/256: exact in float32, and rich in ties."""
    return np.round(np.asarray(a) * step) / step


def f32(a):
    return np.asarray(a, dtype=np.float32).astype(np.float64)


def ranking_cases():
    g = np.random.default_rng(20220501)
    c = []

    def add(name, scores, labels, note=""):
        scores = [float(v) for v in scores]
        labels = [int(v) for v in labels]
        c.append({"name": name, "note": note, "scores": scores, "labels": labels,
                  "float32_exact": all(float(np.float32(v)) == v for v in scores),
                  "expected": ranking_reference(scores, labels)})

    add("worked_example", [0.1, 0.4, 0.35, 0.8, 0.4], [0, 0, 1, 1, 1],
        "the example worked by hand in metrics.md; one tie between classes")
    add("perfect", [0.0, 0.25, 0.5, 0.75], [0, 0, 1, 1])
    add("inverted", [0.75, 0.5, 0.25, 0.0], [0, 0, 1, 1])
    add("all_equal", [0.5] * 6, [0, 1, 0, 0, 1, 0], "AUROC must be exactly 0.5")
    add("all_equal_negative_value", [-3.0] * 4, [1, 0, 0, 1])
    add("only_negatives", [0.1, 0.2, 0.3], [0, 0, 0],
        "every metric undefined: null here; the toolkit returns an empty optional")
    add("only_positives", [0.25, 0.5, 0.125], [1, 1, 1],
        "AUROC undefined; AP and F1 are 1")
    add("single_positive_top", [0.9, 0.1, 0.2, 0.3], [1, 0, 0, 0])
    add("single_positive_bottom", [0.05, 0.1, 0.2, 0.3], [1, 0, 0, 0])
    add("single_negative", [0.9, 0.1, 0.2, 0.3], [0, 1, 1, 1])
    add("two_samples_tie", [1.0, 1.0], [0, 1])
    add("f1_tie_two_thresholds", [4.0, 3.0, 2.0, 1.0, 0.0], [1, 0, 1, 0, 0],
        "F1 0.8 at 2.0; checks the reported threshold")
    add("f1_plateau", [5.0, 4.0, 3.0, 2.0, 1.0, 0.0], [1, 0, 0, 1, 0, 0],
        "F1 is 2/3 at threshold 5 and at threshold 2")
    add("negative_zero", [0.0, -0.0, 1.0, -1.0], [1, 0, 1, 0], "-0.0 equals 0.0: a tie")
    add("huge_range", [1e-30, 1e30, -1e30, 3.0, 1e-30], [1, 1, 0, 0, 0])
    add("alternating", [0.0, 1.0, 2.0, 3.0], [0, 1, 0, 1])
    for n, pp in ((50, 0.3), (200, 0.05), (400, 0.5)):
        y = (g.random(n) < pp).astype(int)
        y[0], y[1] = 0, 1
        s = g.normal(size=n) + 0.8 * y
        add("random_%d_no_ties" % n, f32(s), y)
        add("random_%d_ties" % n, q(np.clip(0.5 + 0.15 * s, 0, 1), 16), y,
            "scores are multiples of 1/16")
    return c


def blob(h, w, cy, cx, ry, rx):
    y, x = np.mgrid[0:h, 0:w]
    return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1.0


def pro_cases():
    g = np.random.default_rng(20211209)
    c = []

    def add(name, maps, masks, note="", curve=False):
        maps = [np.asarray(a, dtype=np.float64) for a in maps]
        masks = [np.asarray(m).astype(int) for m in masks]
        c.append({"name": name, "note": note,
                  "maps": [a.tolist() for a in maps], "masks": [m.tolist() for m in masks],
                  "expected": pro_reference(maps, masks, curve)})

    # worked by hand in metrics.md
    m = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    a = np.array([[9, 4, 8, 3], [2, 1, 0, 5], [2, 3, 1, 7]], float)
    add("worked_example", [a], [m], "two regions (2 px and 1 px), 9 normal pixels", True)
    # diagonal contact: one region under 8-connectivity, two under 4
    m = np.zeros((4, 4), int)
    m[0, 0] = m[1, 1] = 1
    m[3, 3] = 1
    a = np.arange(16, dtype=float).reshape(4, 4)
    add("diagonal_contact", [a], [m], "8-connectivity: 2 regions; 4-connectivity: 3", True)
    # all scores equal
    m = np.zeros((5, 5), int)
    m[1:3, 1:3] = 1
    add("all_equal", [np.full((5, 5), 0.25)], [m],
        "exact rule gives limit/2; the sampled rule gives 0: they treat ties differently", True)
    # perfect / inverted
    add("perfect", [m * 1.0], [m], "", True)
    add("inverted", [1.0 - m], [m], "", True)
    # no anomaly, everything anomalous
    add("no_region", [a], [np.zeros((4, 4), int)], "undefined: null")
    add("no_normal_pixel", [a], [np.ones((4, 4), int)], "undefined: null")
    # a good image with no region contributes normal pixels only
    g1 = q(g.random((6, 7)))
    m1 = np.zeros((6, 7), int)
    m1[2:4, 2:5] = 1
    g2 = q(g.random((6, 7)))
    add("one_good_one_bad", [g1 + 0.5 * m1, g2], [m1, m1 * 0], "", True)
    # several regions of very different sizes, ties
    maps, masks = [], []
    for i in range(4):
        h, w = 24, 32
        m = np.zeros((h, w), bool)
        if i:
            m |= blob(h, w, 6, 7, 4.2, 5.1)
            m[20, 28] = True
        if i > 1:
            m |= blob(h, w, 17, 15, 2.1, 8.3)
            m[2, 30] = m[3, 29] = True        # touches diagonally
        if i > 2:
            m[23, 0:5] = True
        s = ndi.gaussian_filter(g.normal(size=(h, w)) + 1.1 * m, 1.0)
        maps.append(q(s, 64))
        masks.append(m.astype(int))
    add("four_images_ties", maps, masks, "region sizes from 1 to about 70 pixels; scores multiples of 1/64")
    # same without ties, different sizes per image
    maps, masks = [], []
    for i, (h, w) in enumerate([(16, 16), (20, 12), (9, 31)]):
        m = np.zeros((h, w), bool)
        m[h // 2 - 2:h // 2 + 2, w // 2 - 3:w // 2 + 1] = True
        m[0, 0] = True
        if i == 1:
            m[:] = False
        s = g.normal(size=(h, w)) + 1.5 * m
        maps.append(f32(s))
        masks.append(m.astype(int))
    add("mixed_sizes_no_ties", maps, masks, "images of different shapes; the middle one is normal")
    # small region lost by a smooth map
    h = w = 32
    m = blob(h, w, 10, 10, 6, 6)
    m[28, 28] = True
    s = f32(ndi.gaussian_filter(blob(h, w, 10, 10, 6, 6) * 1.0, 3.0) + 0.01 * g.random((h, w)))
    add("tiny_region_missed", [s], [m.astype(int)], "pixel AUROC is high, AU-PRO is not")
    return c


def aupimo_cases():
    g = np.random.default_rng(20240103)
    maps, masks = [], []
    for i in range(6):
        h, w = 20, 20
        m = np.zeros((h, w), bool)
        if i >= 3:
            m |= blob(h, w, 9 + i % 2, 8, 3.2, 4.1)
        if i == 5:
            m[18, 18] = True
        maps.append(f32(g.normal(size=(h, w)) + (1.0 + 0.8 * (i - 3)) * m))
        masks.append(m.astype(int))
    return [{"name": "six_images", "note": "three normal, three anomalous; the bounds are far "
             "looser than the default 1e-5..1e-4 because the maps are tiny",
             "maps": [a.tolist() for a in maps], "masks": [m.tolist() for m in masks],
             "expected": [aupimo_reference(maps, masks, 2000, (0.01, 0.1)),
                          aupimo_reference(maps, masks, 500, (0.005, 0.3))]}]


def smoothing_cases():
    """Gaussian smoothing as scipy.ndimage.gaussian_filter does it by default
    (reflect border, radius int(4*sigma+0.5)), checked against a direct sum."""
    g = np.random.default_rng(4)
    out = []
    for sigma, shape in ((4.0, (20, 24)), (1.0, (7, 5)), (2.5, (9, 40))):
        a = f32(g.random(shape))
        r = int(4.0 * sigma + 0.5)
        k = np.exp(-0.5 * (np.arange(-r, r + 1) / sigma) ** 2)
        k /= k.sum()

        def reflect(i, n):
            i = i % (2 * n)
            return i if i < n else 2 * n - 1 - i

        t = np.zeros_like(a)
        for y in range(shape[0]):
            for j in range(-r, r + 1):
                t[y] += k[j + r] * a[reflect(y + j, shape[0])]
        b = np.zeros_like(a)
        for x in range(shape[1]):
            for j in range(-r, r + 1):
                b[:, x] += k[j + r] * t[:, reflect(x + j, shape[1])]
        ref = ndi.gaussian_filter(a, sigma)
        assert np.abs(b - ref).max() < 1e-12
        out.append({"sigma": sigma, "radius": r, "border": "reflect (d c b a | a b c d | d c b a)",
                    "input": a.tolist(), "expected": ref.tolist()})
    return out


def write(name, obj):
    path = os.path.join(HERE, name)
    with open(path, "w") as f:
        json.dump(obj, f, separators=(",", ":"), sort_keys=True)
        f.write("\n")
    print("%-22s %8d bytes" % (name, os.path.getsize(path)))


def main():
    warnings.simplefilter("ignore")
    write("ranking.json", {"schema": 1, "cases": ranking_cases()})
    write("pro.json", {"schema": 1, "cases": pro_cases()})
    write("aupimo.json", {"schema": 1, "cases": aupimo_cases()})
    write("smoothing.json", {"schema": 1, "cases": smoothing_cases()})


if __name__ == "__main__":
    main()
