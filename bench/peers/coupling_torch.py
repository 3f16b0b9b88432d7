"""PyTorch on the shapes of bench_coupling: the all-in-one blocks of FastFlow with ResNet-18, eight a scale, written as lean as the formulas allow
(permutation as an index; no matrix product, no module per operation).

    python3 coupling_torch.py        milliseconds of one thread: best on the wall, least processor time

Memory formats, oneDNN and TorchScript are tried; a row's best is what to compare with. Made with PyTorch 1.13.
"""
import statistics
import sys
import time

import torch

torch.set_num_threads(1)
CALLS = int(sys.argv[1]) if len(sys.argv) > 1 else 7
SCALES = [(64, 64), (128, 32), (256, 16)]
BLOCKS = 8


class Block(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        half = channels // 2
        self.first = torch.nn.Conv2d(half, half, 3, padding=1)
        self.second = torch.nn.Conv2d(half, channels, 3, padding=1)
        self.scale = torch.nn.Parameter(torch.full((1, channels, 1, 1), 9.9864785))
        self.offset = torch.nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.register_buffer("permutation", torch.randperm(channels))

    def forward(self, x):
        passive, active = x.chunk(2, dim=1)
        s, t = (0.1 * self.second(torch.relu(self.first(passive)))).chunk(2, dim=1)
        s = 2.0 * torch.tanh(s)
        g = 0.1 * torch.nn.functional.softplus(self.scale, beta=0.5)
        y = torch.cat((passive, active * torch.exp(s) + t), dim=1) * g + self.offset
        logdet = s.sum(dim=(1, 2, 3)) + x.shape[2] * x.shape[3] * torch.log(g).sum()
        return y[:, self.permutation], logdet


class Flow(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block(channels) for _ in range(BLOCKS))

    def forward(self, x):
        logdet = torch.zeros(x.shape[0])
        for block in self.blocks:
            x, share = block(x)
            logdet = logdet + share
        return x, logdet


def measure(call):
    wall, cpu = [], []
    call()
    call()
    for _ in range(CALLS):
        start, start_cpu = time.perf_counter(), time.process_time()
        call()
        wall.append(1e3 * (time.perf_counter() - start))
        cpu.append(1e3 * (time.process_time() - start_cpu))
    return min(wall), statistics.median(wall), min(cpu)


for batch in (1, 8):
    for channels, size in SCALES:
        for layout in (torch.contiguous_format, torch.channels_last):
            for script in (False, True):
                torch.manual_seed(0)
                flow = Flow(channels).to(memory_format=layout)
                x = torch.randn(batch, channels, size, size).to(memory_format=layout)
                run = torch.jit.script(flow) if script else flow

                def forward():
                    with torch.no_grad():
                        run(x)

                def step():
                    for parameter in flow.parameters():
                        parameter.grad = None
                    z, logdet = run(x)
                    (0.5 * (z * z).sum(dim=(1, 2, 3)) - logdet).mean().div(z[0].numel()).backward()

                order = "nchw" if layout == torch.contiguous_format else "nhwc"
                name = "%d@%d batch %d %s%s" % (channels, size, batch, order, " script" if script else "")
                for what, call in (("forward", forward), ("forward_and_backward", step)):
                    print("%-32s %-22s best %8.2f median %8.2f cpu %8.2f" % ((name, what) + measure(call)), flush=True)
