"""Writes backbones_state_dicts.txt: every tensor of every backbone under the name and with the shape of PyTorch's state dict.

Compact: one line a module. `NAME O I H W` has a weight only, `NAME O I H W +` also a bias [O], `NAME C norm` weight and bias,
`NAME C batch_norm` also running_mean and running_var, `NAME = SIZES` is a tensor by itself; `network NAME PARAMETERS MACS` begins a network,
with the trainable parameters and the multiply-adds of its convolutions and matrix products for a 224 x 224 input.
Made with PyTorch 1.13 and torchvision 0.14.
"""
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "golden"))
import backbones_reference as reference


def multiply_adds(name, network):
    """Counted while PyTorch runs: outputs x inputs of each, for convolutions and linear layers; attention's two products added."""
    total = 0

    def count(module, _inputs, output):
        nonlocal total
        if isinstance(module, torch.nn.Conv2d):
            total += output.numel() * module.weight[0].numel()
        elif isinstance(module, torch.nn.Linear):
            total += output.numel() * module.in_features
        elif isinstance(module, reference.Attention):
            total += 2 * output.shape[1] * output.shape[1] * output.shape[2]

    hooks = [m.register_forward_hook(count) for m in network.modules()]
    with torch.no_grad():
        network(torch.zeros(1, 3, 224, 224))
    for hook in hooks:
        hook.remove()
    return total


def describe(network):
    modules = dict(network.named_modules())
    own = set(network.state_dict())
    for name, tensor in network.state_dict().items():
        parent, _, leaf = name.rpartition(".")
        module = modules[parent]
        if isinstance(module, torch.nn.BatchNorm2d):
            if leaf == "weight":
                yield f"{parent} {len(tensor)} batch_norm"
        elif isinstance(module, torch.nn.LayerNorm):
            if leaf == "weight":
                yield f"{parent} {len(tensor)} norm"
        elif leaf == "weight":
            yield f"{parent} " + " ".join(map(str, tensor.shape)) + (" +" if f"{parent}.bias" in own else "")
        elif leaf != "bias":
            yield f"{name} = " + " ".join(map(str, tensor.shape))


def main():
    lines = []
    for name in reference.NAMES:
        network = reference.build(name)
        lines.append(f"network {name} {sum(p.numel() for p in network.parameters())} {multiply_adds(name, network)}")
        lines += describe(network)
        print(lines[-1 - len(list(describe(network)))])
    Path(__file__).with_suffix(".txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
