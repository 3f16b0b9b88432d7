"""PyTorch on the shapes of bench_training: forward + input gradient + weight gradient, 1 and 2 threads.

    python3 training_torch.py [word [threads]]     milliseconds: best, median, processor time on one thread; rows whose name has the word

Each round times both thread counts in turn, so that a busy minute hits both; `threads` 1 leaves out the second, whose waiting threads spin
on a machine that others use. Made with PyTorch 1.13, torchvision 0.14.
"""
import statistics
import sys
import time

import torch
import torchvision

ROUNDS, CALLS = 5, 5
WORD = sys.argv[1] if len(sys.argv) > 1 else ""
THREADS = (1,) if sys.argv[2:] == ["1"] else (1, 2)
BATCH = 8
LAYERS = [(32, 32, 64), (32, 64, 64), (64, 64, 32), (64, 128, 32), (128, 128, 16), (128, 256, 16)]


def measure(name, call):
    if WORD not in name:
        return
    times = {threads: [] for threads in THREADS}
    cpu = []
    for _ in range(ROUNDS):
        for threads in THREADS:
            torch.set_num_threads(threads)
            start_cpu = time.process_time()
            call()
            for _ in range(CALLS if time.process_time() - start_cpu < 0.25 else 1):
                start, start_cpu = time.perf_counter(), time.process_time()
                call()
                times[threads].append(time.perf_counter() - start)
                if threads == 1:
                    cpu.append(time.process_time() - start_cpu)
    text = "  ".join("%d thread%s best %8.2f median %8.2f" % (t, " " if t == 1 else "s", 1e3 * min(v), 1e3 * statistics.median(v)) for t, v in times.items())
    print("%-40s %s  cpu least %8.2f median %8.2f" % (name, text, 1e3 * min(cpu), 1e3 * statistics.median(cpu)), flush=True)


for memory_format in (torch.contiguous_format, torch.channels_last):
    kind = "channels first" if memory_format == torch.contiguous_format else "channels last"
    for inputs, outputs, size in LAYERS:
        layer = torch.nn.Conv2d(inputs, outputs, 3, padding=1).to(memory_format=memory_format)
        x = torch.randn(BATCH, inputs, size, size).to(memory_format=memory_format).requires_grad_()
        dy = torch.randn(BATCH, outputs, size, size).to(memory_format=memory_format)

        def call():
            x.grad = layer.weight.grad = layer.bias.grad = None
            layer(x).backward(dy)

        measure("conv %d->%d@%d, %s" % (inputs, outputs, size, kind), call)

    network = torchvision.models.resnet18(weights=None)
    network = torch.nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool, network.layer1, network.layer2, network.layer3)
    network = network.train().to(memory_format=memory_format)
    x = torch.randn(4, 3, 224, 224).to(memory_format=memory_format)
    dy = torch.randn(4, 256, 14, 14).to(memory_format=memory_format)

    def call():
        for parameter in network.parameters():
            parameter.grad = None
        network(x).backward(dy)

    measure("resnet18 to layer3, batch 4, %s" % kind, call)

vit = torchvision.models.VisionTransformer(image_size=224, patch_size=16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768).train()
vit.heads = torch.nn.Identity()
x, dy = torch.randn(4, 3, 224, 224), torch.randn(4, 192)


def call():
    for parameter in vit.parameters():
        parameter.grad = None
    vit(x).backward(dy)


measure("vit_tiny to the class token, batch 4", call)


def attention(name, heads, dim, talking):
    qkv = torch.randn(4, 197, 3 * heads * dim, requires_grad=True)
    dy = torch.randn(4, 197, heads * dim)
    first, second = torch.nn.Linear(heads, heads), torch.nn.Linear(heads, heads)

    def call():
        qkv.grad = first.weight.grad = first.bias.grad = second.weight.grad = second.bias.grad = None
        q, k, v = qkv.reshape(4, 197, 3, heads, dim).permute(2, 0, 3, 1, 4)
        weights = q @ k.transpose(-2, -1) * dim**-0.5
        if talking:
            weights = first(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        weights = weights.softmax(-1)
        if talking:
            weights = second(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        (weights @ v).transpose(1, 2).reshape(4, 197, heads * dim).backward(dy)

    measure(name, call)


attention("attention 6x64", 6, 64, False)
attention("talking_heads 4x48", 4, 48, True)


def optimisers(count, name, parts):
    """One tensor, whose temporaries come from and go back to the system at every step; or parts, as a network has them."""
    name = "%s in %d" % (name, parts)
    if not any(WORD in kind + name for kind in ("adam ", "sgd ", "clip ")):
        return
    weights = [torch.nn.Parameter(torch.zeros(count // parts)) for _ in range(parts)]
    for weight in weights:
        weight.grad = 1e-3 * (torch.arange(count // parts) % 1000 - 500).float()
    for foreach in (None, True):
        for kind, make in (("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)):
            arguments = {"lr": 1e-3} if kind == "adam" else {"lr": 1e-3, "momentum": 0.9}
            optimiser = make(weights, foreach=foreach, **arguments)
            measure("%s %s, %s" % (kind, name, "default" if foreach is None else "foreach"), optimiser.step)
    measure("clip %s" % name, lambda: torch.nn.utils.clip_grad_norm_(weights, 1e-3))


for count, name in ((5_000_000, "5M"), (80_000_000, "80M")):
    for parts in (1, 100):
        optimisers(count, name, parts)
