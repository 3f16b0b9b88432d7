#!/usr/bin/env python3
"""Makes cross_scale_torch.safetensors: a cross-scale flow of two blocks forwards, its gradients and five training steps, by PyTorch in double.

    python3 tests/golden/cross_scale_torch.py tests/golden/cross_scale_torch.safetensors

Made with PyTorch 1.13.1 on the processor; numbers are stored as float32. cross_scale_torch_test.cpp reads them. The flow's tensors are named as in a
model file of CS-Flow; maps are stored channels first, as PyTorch has them.
"""
import json
import struct
import sys

import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(20240611)
torch.set_default_dtype(torch.float64)

CHANNELS, HIDDEN, KERNELS, BATCH, SIDES = 4, 4, (3, 5), 2, (8, 4, 2)
ALPHA = 3.0
stored = {}


def store(name, tensor):
    stored[name] = tensor.detach().to(torch.float32 if tensor.is_floating_point() else torch.int64).contiguous()


class Subnet(nn.Module):
    def __init__(self, inputs, outputs, kernel):
        super().__init__()

        def convolution(a, b, stride=1):
            return nn.Conv2d(a, b, kernel, stride, kernel // 2)

        for level in range(3):
            setattr(self, "in%d" % level, convolution(inputs, HIDDEN))
            setattr(self, "same%d" % level, convolution(HIDDEN, outputs))
        for level in (1, 2):
            setattr(self, "up%d" % level, convolution(HIDDEN, outputs))
        for level in (0, 1):
            setattr(self, "down%d" % level, convolution(HIDDEN, outputs, 2))
        self.gamma = nn.Parameter(torch.rand(3) + 0.5)

    def forward(self, x):
        def twice(h):
            return F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=False)

        h = [F.leaky_relu(getattr(self, "in%d" % level)(x[level]), 0.1) for level in range(3)]
        o = [getattr(self, "same%d" % level)(h[level]) for level in range(3)]
        o[0] = o[0] + self.up1(twice(h[1]))
        o[1] = o[1] + self.up2(twice(h[2])) + self.down0(h[0])
        o[2] = o[2] + self.down1(h[1])
        return [self.gamma[level] * o[level] for level in range(3)]


class Block(nn.Module):
    def __init__(self, kernel):
        super().__init__()
        first = CHANNELS // 2
        self.subnet0 = Subnet(CHANNELS - first, 2 * first, kernel)
        self.subnet1 = Subnet(first, 2 * (CHANNELS - first), kernel)
        for level in range(3):
            self.register_buffer("permutation%d" % level, torch.randperm(CHANNELS))

    def forward(self, x, logdet):
        first = CHANNELS // 2
        x = [x[level][:, getattr(self, "permutation%d" % level)] for level in range(3)]
        halves = [[t[:, :first] for t in x], [t[:, first:] for t in x]]
        for step, subnet in enumerate((self.subnet0, self.subnet1)):
            for level, st in enumerate(subnet(halves[1 - step])):
                s, t = st.chunk(2, 1)
                scale = ALPHA * 0.636 * torch.atan(s / ALPHA)
                logdet = logdet + scale.sum((1, 2, 3))
                halves[step][level] = halves[step][level] * scale.exp() + t
        return [torch.cat((a, b), 1).clamp(-1e6, 1e6) for a, b in zip(*halves)], logdet


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        for number, kernel in enumerate(KERNELS):
            setattr(self, str(number), Block(kernel))

    def forward(self, x):
        logdet = torch.zeros(x[0].shape[0])
        for number in range(len(KERNELS)):
            x, logdet = getattr(self, str(number))(x, logdet)
        return x, logdet


flow = Flow()
flow.load_state_dict({name: t.to(torch.float32).to(t.dtype) for name, t in flow.state_dict().items()})
for name, tensor in flow.state_dict().items():
    store("estimator." + name, tensor)
x = [torch.randn(BATCH, CHANNELS, side, side).to(torch.float32).double() for side in SIDES]
dims = CHANNELS * sum(side * side for side in SIDES)


def loss_of(z, logdet):
    return (0.5 * sum((t**2).sum((1, 2, 3)) for t in z) - logdet).mean() / dims


inputs = [t.clone().requires_grad_() for t in x]
z, logdet = flow(inputs)
loss = loss_of(z, logdet)
loss.backward()
store("loss", loss.reshape(1))
store("logdet", logdet)
for level in range(3):
    store("x%d" % level, x[level])
    store("z%d" % level, z[level])
    store("dx%d" % level, inputs[level].grad)
for name, parameter in flow.named_parameters():
    store("gradient." + name, parameter.grad)
    parameter.grad = None

# Five steps as CS-Flow trains; a small bound so that the gradients are clipped.
adam = torch.optim.Adam(flow.parameters(), lr=2e-4, eps=1e-4, weight_decay=1e-5)
norms = []
for _ in range(5):
    adam.zero_grad()
    loss_of(*flow(x)).backward()
    norms.append(nn.utils.clip_grad_norm_(flow.parameters(), 0.05))
    adam.step()
store("norms", torch.stack(norms))
for name, parameter in flow.named_parameters():
    store("trained." + name, parameter)

header, body = {}, b""
for name, tensor in stored.items():
    raw = tensor.numpy().tobytes()
    kind = "F32" if tensor.dtype == torch.float32 else "I64"
    header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [len(body), len(body) + len(raw)]}
    body += raw
text = json.dumps(header, separators=(",", ":")).encode()
text += b" " * (-len(text) % 8)
with open(sys.argv[1], "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text + body)
