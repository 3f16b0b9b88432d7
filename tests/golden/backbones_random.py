"""Writes weights, an input and PyTorch's feature maps of backbones with random weights: NAME.safetensors and NAME_taps.safetensors.

    python3 backbones_random.py DIR [NAME...]       then: NORMA_BACKBONE_GOLDEN_DIR=DIR <test program>

Not kept in the repository (6 GB for all); backbones_formula.py makes the small files that are. Inputs are 64 x 64 (transformers 224 x 224),
(DeiT-base 384 x 384, CaiT-M48 448 x 448), float32 on both sides; maps as [1, C, H, W]. Made with PyTorch 1.13, torchvision 0.14; seed 20 + index of the network; tolerance 2e-5.
"""
import json
import struct
import sys
from pathlib import Path

import numpy
import torch

import backbones_reference as reference


def save(path, tensors):
    header, offset = {}, 0
    for name, value in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [offset, offset + value.nbytes]}
        offset += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for value in tensors.values():
            file.write(numpy.ascontiguousarray(value, numpy.float32).tobytes())


def randomize(network):
    """Default initialisation leaves norms as the identity: give them statistics of their own."""
    for module in network.modules():
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.LayerNorm)):
            module.weight.data.uniform_(0.25, 1.0)
            module.bias.data.normal_(0.0, 0.1)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    for name, parameter in network.named_parameters():
        if name in ("cls_token", "dist_token", "pos_embed"):
            parameter.data.normal_(0.0, 0.1)
        if name.endswith(("gamma_1", "gamma_2")):
            parameter.data.uniform_(0.1, 0.5)


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or reference.NAMES:
        torch.manual_seed(20 + reference.NAMES.index(name))
        network = reference.build(name)
        randomize(network)
        side = reference.input_side(name) if name in reference.TRANSFORMERS else 64
        x = torch.randn(1, 3, side, side)
        taps = {tap: value.transpose(2, 0, 1)[None] for tap, value in reference.run(name, network, x).items()}
        save(folder / f"{name}.safetensors", {k: v.numpy() for k, v in network.state_dict().items() if v.dtype == torch.float32})
        save(folder / f"{name}_taps.safetensors", {"input": x.numpy(), **taps})
        print(name, flush=True)


if __name__ == "__main__":
    main()
