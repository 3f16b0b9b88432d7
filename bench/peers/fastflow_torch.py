"""FastFlow with ResNet-18 in PyTorch, written from the paper and the public codes' settings: what norma's is compared with.

    python3 fastflow_torch.py check MODEL.norma MAPS IMAGE...    norma's maps (norma predict --maps MAPS) against PyTorch's from the same model file;
                                                                 PNG images: JPEG decoders differ by more than the two
    python3 fastflow_torch.py time MODEL.norma IMAGE             milliseconds from the decoded image to the map, threads 1 and 2
    python3 fastflow_torch.py train WEIGHTS.safetensors DATA --epochs N [--seed S] [--batch 32]
                                                                 trains on DATA/train/good, prints the image AUROC on DATA/test after the last epoch

Made with PyTorch 1.13, torchvision 0.14, Pillow 9.4, scikit-learn 1.2.
"""
import argparse
import json
import pathlib
import statistics
import struct
import time

import numpy
import torch
import torchvision
from PIL import Image

SIZE = 256
LAYERS = ["layer1", "layer2", "layer3"]
DTYPES = {"F32": numpy.float32, "F16": numpy.float16, "I64": numpy.int64, "U8": numpy.uint8}


def read_safetensors(path):
    data = pathlib.Path(path).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] not in DTYPES:
            continue
        first, last = entry["data_offsets"]
        tensors[name] = torch.from_numpy(numpy.frombuffer(data[8 + size + first : 8 + size + last], DTYPES[entry["dtype"]]).reshape(entry["shape"]).copy())
    return tensors


class Features(torch.nn.Module):
    """ResNet-18's layers from a file whose batch norms are folded into biases, or as torchvision publishes it."""

    def __init__(self, tensors):
        super().__init__()
        net = torchvision.models.resnet18()
        if "bn1.weight" not in tensors:
            for name, module in list(net.named_modules()):
                if isinstance(module, torch.nn.Conv2d):
                    module.bias = torch.nn.Parameter(torch.zeros(module.out_channels))
                if isinstance(module, torch.nn.BatchNorm2d):
                    parent = net.get_submodule(name.rpartition(".")[0]) if "." in name else net
                    setattr(parent, name.rpartition(".")[2], torch.nn.Identity())
        state = net.state_dict()
        missing = [name for name in state if name not in tensors and not name.startswith(("layer4", "fc")) and "num_batches" not in name]
        assert not missing, missing
        net.load_state_dict({name: tensors[name].float() for name in state if name in tensors}, strict=False)
        self.net = net.eval()

    @torch.no_grad()
    def forward(self, x):
        n = self.net
        x = n.maxpool(n.relu(n.bn1(n.conv1(x))))
        maps = []
        for layer in LAYERS:
            x = getattr(n, layer)(x)
            maps.append(x)
        return maps


class Block(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        first = channels - channels // 2
        self.first = torch.nn.Conv2d(first, first, 3, padding=1)
        self.second = torch.nn.Conv2d(first, 2 * (channels // 2), 3, padding=1)
        self.scale = torch.nn.Parameter(torch.full((1, channels, 1, 1), 2.0 * float(numpy.log(numpy.expm1(5.0)))))
        self.offset = torch.nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.register_buffer("permutation", torch.randperm(channels))

    def load(self, tensors, prefix):
        with torch.no_grad():
            for layer, name in ((self.first, "subnet0.0"), (self.second, "subnet0.1")):
                layer.weight.copy_(tensors[prefix + name + ".weight"])
                layer.bias.copy_(tensors[prefix + name + ".bias"])
            self.scale.copy_(tensors[prefix + "scale"].reshape(1, -1, 1, 1))
            self.offset.copy_(tensors[prefix + "offset"].reshape(1, -1, 1, 1))
            self.permutation.copy_(tensors[prefix + "permutation"])

    def forward(self, x):
        first = self.first.in_channels
        passive, active = x[:, :first], x[:, first:]
        s, t = (0.1 * self.second(torch.relu(self.first(passive)))).chunk(2, dim=1)
        s = 2.0 * torch.tanh(s)
        g = 0.1 * torch.nn.functional.softplus(self.scale, beta=0.5)
        y = torch.cat((passive, active * torch.exp(s) + t), dim=1) * g + self.offset
        return y[:, self.permutation], s.sum(dim=(1, 2, 3)) + x.shape[2] * x.shape[3] * torch.log(g).sum()


class FastFlow(torch.nn.Module):
    def __init__(self, channels=(64, 128, 256), blocks=8):
        super().__init__()
        self.flows = torch.nn.ModuleList(torch.nn.ModuleList(Block(c) for _ in range(blocks)) for c in channels)

    def load(self, tensors):
        for l, flow in enumerate(self.flows):
            for b, block in enumerate(flow):
                block.load(tensors, f"estimator.level{l}.{b}.")
        return self

    def forward(self, maps):
        latents, loss = [], 0.0
        for x, flow in zip(maps, self.flows):
            x = torch.nn.functional.layer_norm(x, x.shape[1:])
            total = 0.0
            for block in flow:
                x, logdet = block(x)
                total = total + logdet
            latents.append(x)
            loss = loss + (0.5 * (x**2).sum(dim=(1, 2, 3)) - total).mean()
        return latents, loss


def anomaly_map(latents):
    maps = [-torch.exp(-0.5 * (z**2).mean(dim=1, keepdim=True)) for z in latents]
    return torch.cat([torch.nn.functional.interpolate(m, size=(SIZE, SIZE), mode="bilinear", align_corners=False) for m in maps]).mean(dim=0)[0]


def read_image(path):
    x = numpy.asarray(Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.BILINEAR), numpy.float32)
    x = (x - numpy.float32([123.675, 116.28, 103.53])) / numpy.float32([58.395, 57.12, 57.375])
    return torch.from_numpy(x.transpose(2, 0, 1)[None].copy())


def check(arguments):
    tensors = read_safetensors(arguments.model)
    features, flow = Features(tensors), FastFlow().load(tensors)
    worst = 0.0
    for path in arguments.image:
        with torch.no_grad():
            expected = anomaly_map(flow(features(read_image(path)))[0])
        image = Image.open(path)
        expected = torch.nn.functional.interpolate(expected[None, None], size=(image.height, image.width), mode="bilinear", align_corners=False)[0, 0].numpy()
        # norma predict joins the parts of a path with underscores
        name = "_".join(pathlib.Path(path).with_suffix(".tiff").parts[-2:])
        found = numpy.asarray(Image.open(next(pathlib.Path(arguments.maps).glob("*" + name))))
        difference = float(numpy.abs(found - expected).max())
        worst = max(worst, difference)
        print(f"{path}: score {expected.max():.6f}, norma {found.max():.6f}, largest difference in the map {difference:.2e}")
    print(f"largest difference {worst:.2e}")
    return 0 if worst < 1e-4 else 1


def measure(arguments):
    tensors = read_safetensors(arguments.model)
    features, flow = Features(tensors), FastFlow().load(tensors)
    x = read_image(arguments.image[0])
    for threads in (1, 2):
        torch.set_num_threads(threads)
        times = []
        for _ in range(15):
            start = time.perf_counter()
            with torch.no_grad():
                anomaly_map(flow(features(x))[0])
            times.append(1e3 * (time.perf_counter() - start))
        print(f"{threads} threads: {statistics.median(times[3:]):.1f} ms from the network's input to the map")
    return 0


def train(arguments):
    from sklearn.metrics import roc_auc_score

    torch.manual_seed(arguments.seed)
    torch.set_num_threads(2)
    features = Features(read_safetensors(arguments.weights))
    images = sorted((pathlib.Path(arguments.data) / "train" / "good").iterdir())
    cached = [features(read_image(path)) for path in images]
    flow = FastFlow()
    optimiser = torch.optim.Adam(flow.parameters(), lr=1e-3, weight_decay=1e-5)
    start = time.perf_counter()
    for epoch in range(arguments.epochs):
        order, losses = torch.randperm(len(cached)), []
        for first in range(0, len(cached) - arguments.batch + 1, arguments.batch):
            chosen = [cached[i] for i in order[first : first + arguments.batch]]
            loss = flow([torch.cat(level) for level in zip(*chosen)])[1]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss))
        print(f"epoch {epoch + 1}: loss {statistics.mean(losses):.0f}, {time.perf_counter() - start:.0f} s", flush=True)
    scores, labels = [], []
    for folder in sorted((pathlib.Path(arguments.data) / "test").iterdir()):
        for path in sorted(folder.iterdir()):
            with torch.no_grad():
                scores.append(float(anomaly_map(flow(features(read_image(path)))[0]).max()))
            labels.append(folder.name != "good")
    print(f"image AUROC after the last epoch {100 * roc_auc_score(labels, scores):.2f}")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("check")
    one.add_argument("model")
    one.add_argument("maps")
    one.add_argument("image", nargs="+")
    one.set_defaults(run=check)
    one = commands.add_parser("time")
    one.add_argument("model")
    one.add_argument("image", nargs=1)
    one.set_defaults(run=measure)
    one = commands.add_parser("train")
    one.add_argument("weights")
    one.add_argument("data")
    one.add_argument("--epochs", type=int, required=True)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--batch", type=int, default=32)
    one.set_defaults(run=train)
    arguments = parser.parse_args()
    return arguments.run(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
