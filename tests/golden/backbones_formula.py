"""Writes ../data/backbones_formula.txt: what PyTorch computes, in float64, for every backbone with formula weights and input.

    python3 backbones_formula.py [NAME...]

Weights and input are functions of (tensor name, index) (backbones_reference.py), so the test makes the same ones without any weight file.
Of each tap the file keeps size, norm, four projections on signs that the same formula gives (a projection sees an error anywhere in
the map), and four values. Made with PyTorch 1.13, torchvision 0.14, seedless; test tolerance: 1e-5 of the norm.
"""
import sys
from pathlib import Path

import numpy
import torch

import backbones_reference as reference

SIZE = (67, 94)  # odd and even sizes down to the last stage: SAME padding and ceil-mode pools show there


def make_input(name):
    height, width = (224, 224) if name in reference.VITS else SIZE
    x = 4.0 * reference.uniform("input", height * width * 3) - 2.0
    return x.astype(numpy.float32).reshape(height, width, 3)


def load_formula(name, network):
    state = network.state_dict()
    gains = reference.formula_gains(name)
    for key, tensor in state.items():
        if not key.endswith("num_batches_tracked"):
            tensor.copy_(torch.from_numpy(reference.formula_weight(key, tuple(tensor.shape), gains)))


def describe(tap, value):
    flat = value.reshape(-1)
    signs = [numpy.where(reference.uniform(f"projection{k}", flat.size) < 0.5, -1.0, 1.0) for k in range(4)]
    numbers = [numpy.linalg.norm(flat)] + [flat @ s for s in signs] + [flat[(k * 2654435761 + 12345) % flat.size] for k in range(4)]
    return f"tap {tap} " + " ".join(str(s) for s in value.shape) + " " + " ".join(f"{x:.8g}" for x in numbers)


def main():
    target = Path(__file__).parent.parent / "data" / "backbones_formula.txt"
    names = sys.argv[1:] or reference.NAMES
    lines = []
    for name in names:
        network = reference.build(name)
        load_formula(name, network)
        x = make_input(name)
        taps = reference.run(name, network.double(), torch.from_numpy(x.transpose(2, 0, 1)[None].astype(numpy.float64)))
        gains = reference.formula_gains(name)
        lines.append(f"network {name} {x.shape[0]} {x.shape[1]} {gains[0]:g} {gains[1]:g}")
        lines += [describe(tap, value) for tap, value in taps.items()]
        print(name, {t: f"{numpy.sqrt((v ** 2).mean()):.3g}" for t, v in taps.items()}, flush=True)
    text = "\n".join(lines) + "\n"
    if sys.argv[1:]:
        print(text)
    else:
        target.write_text(text)


if __name__ == "__main__":
    main()
