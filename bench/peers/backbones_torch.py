"""PyTorch on the shapes of bench_backbones: every backbone to PatchCore's two outputs, batch 1, 1 and 2 threads.

    python3 backbones_torch.py [NAME...]     milliseconds (best, median, least processor time): eager, and traced + frozen + optimized

Linear layers run on whatever BLAS PyTorch was given: with netlib's reference BLAS (Debian without libopenblas) the transformers' and the eager
figures say nothing about PyTorch; the frozen convolutional ones run in oneDNN. Each round times both thread counts of both ways in turn, so that a busy minute hits all of them. Made with PyTorch 1.13, torchvision 0.14.
"""
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "golden"))
import backbones_reference as reference

SIZES = {"efficientnet_lite1": 240, "efficientnet_lite2": 260, "efficientnet_lite3": 280, "efficientnet_lite4": 300}
ROUNDS, CALLS = 6, 5


def levels(name, network):
    """The modules up to the second of PatchCore's outputs, as one that gives both. Later layers are not run."""
    children = []
    if name in reference.RESNETS:
        children, ends = [network.conv1, network.bn1, network.relu, network.maxpool, network.layer1, network.layer2, network.layer3], (5, 6)
    elif name == "mobilenet_v2":
        children, ends = list(network.features[:14]), (6, 13)
    elif name == "squeezenet1_1":
        children, ends = list(network.features), (7, 12)
    elif name in reference.LITES:
        ends = {"0": (4, 10), "1": (6, 14), "2": (6, 14), "3": (6, 16), "4": (8, 20)}[name[-1]]
        ends = (ends[0] + 3, ends[1] + 3)
        children = [network._conv_stem, network._bn0, torch.nn.ReLU6()] + list(network._blocks)[: ends[1] - 2]
    else:
        return ViTLevels(network)
    return Levels(children, ends)


class Levels(torch.nn.Module):
    def __init__(self, children, ends):
        super().__init__()
        self.layers, self.ends = torch.nn.ModuleList(children), ends

    def forward(self, x):
        outputs = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.ends:
                outputs.append(x)
        return tuple(outputs)


class ViTLevels(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        n = self.network
        x = n.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([n.cls_token.expand(len(x), -1, -1), x], 1) + n.pos_embed
        outputs = []
        for i, block in enumerate(n.blocks[:10]):
            x = block(x)
            if i in (5, 9):
                outputs.append(x)
        return tuple(outputs)


def main():
    for name in sys.argv[1:] or reference.NAMES:
        module = levels(name, reference.build(name)).eval()
        size = SIZES.get(name, 224)
        x = torch.randn(1, 3, size, size)
        with torch.no_grad():
            ways = {"eager": module, "frozen": torch.jit.optimize_for_inference(torch.jit.trace(module, x))}
            times, cpu_times = {}, {}
            for _ in range(ROUNDS):
                for threads in (1, 2):
                    torch.set_num_threads(threads)
                    for way, function in ways.items():
                        function(x)
                        for _ in range(CALLS):
                            start, cpu = time.perf_counter(), time.process_time()
                            function(x)
                            times.setdefault((way, threads), []).append(1e3 * (time.perf_counter() - start))
                            cpu_times.setdefault((way, threads), []).append(1e3 * (time.process_time() - cpu))
        cells = []
        for (way, threads), t in sorted(times.items()):
            cells.append(f"{way} {threads} thread(s): best {min(t):.1f} median {statistics.median(t):.1f} cpu {min(cpu_times[way, threads]):.1f}")
        print(f"{name} {size}: " + "; ".join(cells), flush=True)


if __name__ == "__main__":
    main()
