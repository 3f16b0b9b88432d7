"""Writes backbones_state_dicts.txt: every tensor of every backbone under the name and with the shape of PyTorch's state dict.

Compact: one line a module. `NAME O I H W` has a weight only, `NAME O I H W +` also a bias [O], `NAME C norm` weight and bias,
`NAME C batch_norm` also running_mean and running_var, `NAME = SIZES` is a tensor by itself; `network NAME PARAMETERS MACS SIDE` begins a
network, with the trainable parameters and the multiply-adds of its convolutions and matrix products for a SIDE x SIDE input. Of most
variants of a family only `digest TENSORS HASH` follows: how many tensors there are, and FNV-1a (64 bits) of the lines "NAME SIZES", sorted.
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
        elif isinstance(module, reference.ClassAttention):
            total += 2 * module.tokens * output.shape[2]
        elif isinstance(module, reference.Attention):
            total += 2 * output.shape[1] * output.shape[1] * output.shape[2]

    hooks = [m.register_forward_hook(count) for m in network.modules()]
    with torch.no_grad():
        network(torch.zeros(1, 3, reference.input_side(name), reference.input_side(name)))
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


# One of each family is listed in full, with both namings of EfficientNet and both kinds of VGG.
LISTED = reference.RESNETS + reference.LITES + list(reference.VITS) + [
    "mobilenet_v2", "squeezenet1_1", "efficientnet_b0", "efficientnet_b5_same", "alexnet", "vgg19", "vgg16_bn", "deit_tiny_distilled_patch16_224",
    "cait_xxs24_224"]


def digest(network):
    tensors = sorted((k, v.shape) for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked"))
    value = 0xCBF29CE484222325
    for byte in "".join(f"{name} {' '.join(map(str, shape))}\n" for name, shape in tensors).encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"digest {len(tensors)} {value:016x}"


def main():
    lines = []
    for name in reference.NAMES:
        network = reference.build(name)
        lines.append(f"network {name} {sum(p.numel() for p in network.parameters())} {multiply_adds(name, network)} "
                     f"{reference.input_side(name)}")
        print(lines[-1], flush=True)
        lines += describe(network) if name in LISTED else [digest(network)]
    Path(__file__).with_suffix(".txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
