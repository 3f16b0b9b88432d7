"""Writes ../data/backbones_formula.txt: what PyTorch computes, in float64, for every backbone with formula weights and input; and
../data/backbones_resized.txt: the same for transformers at other sizes, whose position embedding is resampled as timm does (bicubic with
antialiasing).

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
    side = reference.input_side(name)
    return numbers(*((side, side) if name in reference.TRANSFORMERS else SIZE))


def numbers(height, width):
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


def kept(name, tap):
    """Of large networks fewer outputs: the test then loads and runs only what they need."""
    if name in reference.EFFICIENTNETS and name not in ("efficientnet_b0", "efficientnet_b5"):
        return not tap.startswith("block")
    if name in reference.VGGS and name != "vgg16":
        return tap != "classifier"
    if name == "deit_base_distilled_patch16_384":
        return tap in ("block1", "block6", "block8", "block8.norm", "block10")
    if name == "cait_m48_448":
        return tap in ("block1", "block2", "block2.norm")
    if name == "cait_xxs24_224":
        return tap in ("block1", "block6", "block12", "block20", "block24", "block24.norm", "cls", "head")
    return True


# (network, height, width, outputs): larger and smaller than its own size, and not square
RESIZED = [("vit_tiny_patch16_224", 160, 288, ["block1", "block12", "head"]), ("deit_tiny_distilled_patch16_224", 96, 128, ["block2", "dist"]),
           ("cait_xxs24_224", 256, 160, ["block2", "cls"])]


def resized():
    lines = []
    for name, height, width, wanted in RESIZED:
        network = reference.build(name)
        load_formula(name, network)
        network = network.double()
        rows = network.pos_embed.shape[1] - 14 * 14
        grid = network.pos_embed[:, rows:].reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
        grid = torch.nn.functional.interpolate(grid, size=(height // 16, width // 16), mode="bicubic", antialias=True, align_corners=False)
        grid = grid.permute(0, 2, 3, 1).flatten(1, 2)
        network.pos_embed = torch.nn.Parameter(torch.cat([network.pos_embed[:, :rows], grid], 1))
        x = numbers(height, width)
        taps = reference.run(name, network, torch.from_numpy(x.transpose(2, 0, 1)[None].astype(numpy.float64)))
        lines.append(f"network {name} {height} {width} 1 1")
        lines += [describe(tap, taps[tap]) for tap in wanted]
    return "\n".join(lines) + "\n"


def main():
    target = Path(__file__).parent.parent / "data" / "backbones_formula.txt"
    names = sys.argv[1:] or reference.NAMES
    lines = []
    if not sys.argv[1:]:
        target.with_name("backbones_resized.txt").write_text(resized())
    for name in names:
        network = reference.build(name, depth=2 if name == "cait_m48_448" else None)
        load_formula(name, network)
        x = make_input(name)
        taps = reference.run(name, network.double(), torch.from_numpy(x.transpose(2, 0, 1)[None].astype(numpy.float64)))
        gains = reference.formula_gains(name)
        lines.append(f"network {name} {x.shape[0]} {x.shape[1]} {gains[0]:g} {gains[1]:g}")
        taps = {tap: value for tap, value in taps.items() if kept(name, tap)}
        lines += [describe(tap, value) for tap, value in taps.items()]
        print(name, {t: f"{numpy.sqrt((v ** 2).mean()):.3g}" for t, v in taps.items()}, flush=True)
    text = "\n".join(lines) + "\n"
    if sys.argv[1:]:
        print(text)
    else:
        target.write_text(text)


if __name__ == "__main__":
    main()
