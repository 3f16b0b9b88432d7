"""PyTorch on the shapes of bench_training: forward + input gradient + weight gradient, 1 and 2 threads.

    python3 training_torch.py        milliseconds: best, median, least processor time

Each round times both thread counts in turn, so that a busy minute hits both. Made with PyTorch 1.13, torchvision 0.14.
"""
import statistics
import time

import torch
import torchvision

ROUNDS, CALLS = 5, 5
BATCH = 8
LAYERS = [(32, 32, 64), (32, 64, 64), (64, 64, 32), (64, 128, 32), (128, 128, 16), (128, 256, 16)]


def measure(name, call):
    times = {1: [], 2: []}
    cpu = []
    for _ in range(ROUNDS):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            call()
            for _ in range(CALLS):
                start, start_cpu = time.perf_counter(), time.process_time()
                call()
                times[threads].append(time.perf_counter() - start)
                if threads == 1:
                    cpu.append(time.process_time() - start_cpu)
    text = "  ".join("%d thread%s best %8.2f median %8.2f" % (t, " " if t == 1 else "s", 1e3 * min(v), 1e3 * statistics.median(v)) for t, v in times.items())
    print("%-40s %s  cpu %8.2f" % (name, text, 1e3 * min(cpu)), flush=True)


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

weights = torch.nn.Parameter(torch.zeros(4 << 20))
weights.grad = torch.randn(4 << 20)
for foreach in (False, True):
    optimiser = torch.optim.Adam([weights], foreach=foreach)
    measure("adam 4M, foreach=%s" % foreach, optimiser.step)
