"""The networks of norma/backbones in PyTorch, for the scripts beside this file.

torchvision's own models where it has them; a Vision Transformer, EfficientNet-Lite and the older ResNet-50 (stride on the first 1x1
convolution) are written here from their architectures, with the tensor names under which their weights are published.
Made with PyTorch 1.13 and torchvision 0.14.
"""
import math

import numpy
import torch
import torchvision
from torch import nn
from torch.nn import functional as F


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: the smaller half first."""

    def forward(self, x):
        pads = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1]):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class LiteBlock(nn.Module):
    def __init__(self, cin, cout, kernel, stride, expand):
        super().__init__()
        wide = cin * expand
        self.residual = stride == 1 and cin == cout
        self.expand = expand != 1
        if self.expand:
            self._expand_conv = SameConv(cin, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv = SameConv(wide, cout, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(cout, eps=1e-3)

    def forward(self, x):
        y = x
        if self.expand:
            y = F.relu6(self._bn0(self._expand_conv(y)))
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    STAGES = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)]
    SCALES = [(1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8)]

    def __init__(self, version):
        super().__init__()
        width, depth = self.SCALES[version]
        self._conv_stem = SameConv(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks, cin = [], 32
        for i, (repeats, kernel, stride, expand, channels) in enumerate(self.STAGES):
            cout = self.rounded(channels * width)
            inner = 0 < i < len(self.STAGES) - 1
            for r in range(math.ceil(repeats * depth) if inner else repeats):
                blocks.append(LiteBlock(cin, cout, kernel, stride if r == 0 else 1, expand))
                cin = cout
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv(cin, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    @staticmethod
    def rounded(channels):
        result = max(8, int(channels + 4) // 8 * 8)
        return result + 8 if result < 0.9 * channels else result

    def forward(self, x):
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        return self._fc(x.mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        n, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        weight = (q @ k.transpose(-2, -1) * (dim // self.heads) ** -0.5).softmax(-1)
        return self.proj((weight @ v).transpose(1, 2).reshape(n, tokens, dim))


class ViTBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Module()
        self.mlp.fc1 = nn.Linear(dim, 4 * dim)
        self.mlp.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self, dim, heads, depth=12, patch=16, size=224):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, dim))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, dim, patch, patch)
        self.blocks = nn.ModuleList(ViTBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, 1000)

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def resnet50_caffe():
    network = torchvision.models.resnet50(weights=None)
    for layer in (network.layer2, network.layer3, network.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    return network


RESNETS = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet50_caffe", "wide_resnet50_2", "wide_resnet101_2"]
LITES = [f"efficientnet_lite{i}" for i in range(5)]
VITS = {"vit_tiny_patch16_224": (192, 3), "vit_small_patch16_224": (384, 6), "vit_base_patch16_224": (768, 12)}
NAMES = RESNETS + ["mobilenet_v2"] + LITES + ["squeezenet1_1"] + list(VITS)


def build(name):
    """The network in evaluation mode."""
    if name in VITS:
        return ViT(*VITS[name]).eval()
    if name in LITES:
        return EfficientNetLite(int(name[-1])).eval()
    if name == "resnet50_caffe":
        return resnet50_caffe().eval()
    return getattr(torchvision.models, name)(weights=None).eval()


def modules_of_taps(name, network):
    """Tap name -> module whose output it is."""
    if name in RESNETS:
        return {t: getattr(network, t) for t in ["maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"]}
    if name in LITES:
        taps = {f"block{i}": block for i, block in enumerate(network._blocks)}
        return {"stem": network._bn0, **taps, "head": network._bn1, "fc": network._fc}
    if name in VITS:
        return {**{f"block{i + 1}": block for i, block in enumerate(network.blocks)}, "head": network.head}
    features = {f"features.{i}": m for i, m in enumerate(network.features)}
    if name == "squeezenet1_1":
        del features["features.0"]  # its ReLU works in place
    return {**features, "classifier": network.classifier}


def run(name, network, x):
    """Tap name -> array [height, width, channels] for one image; a vector is 1 x 1, tokens lose the class token and become a grid."""
    found = {}
    hooks = [m.register_forward_hook(lambda _m, _i, out, t=t: found.__setitem__(t, out)) for t, m in modules_of_taps(name, network).items()]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    result = {}
    for tap, value in found.items():
        if name in LITES and tap in ("stem", "head"):
            value = F.relu6(value)
        value = value[0].numpy()
        if value.ndim == 3:
            value = value.transpose(1, 2, 0)
        elif value.ndim == 2:
            side = math.isqrt(len(value) - 1)
            value = value[1:].reshape(side, side, -1)
        else:
            value = value.reshape(1, 1, -1)
        result[tap] = numpy.ascontiguousarray(value)
    return result


def uniform(name, count):
    """`count` numbers of [0, 1) that depend on (name, index) only: FNV-1a of the name, then SplitMix64, 24 bits each."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    with numpy.errstate(over="ignore"):
        z = numpy.arange(1, count + 1, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15) + numpy.uint64(seed)
        z = (z ^ z >> numpy.uint64(30)) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> numpy.uint64(27)) * numpy.uint64(0x94D049BB133111EB)
        z ^= z >> numpy.uint64(31)
    return (z >> numpy.uint64(40)).astype(numpy.float64) * 2.0**-24


def formula_gains(name):
    """Factors on the norms' weights and on the biases. Networks with ReLU6 get larger ones: so 2 % of the values clip at 6. Larger norm
    weights alone would do so too, but make the network chaotic: every layer then multiplies rounding errors."""
    return (1.5, 16.0) if name in LITES + ["mobilenet_v2"] else (1.0, 1.0)


def formula_weight(name, shape, gains):
    """The value of one tensor by its name: any program can make it, so no weight file is needed. float32, exactly rounded once.

    running_var 0.5 + u; a norm's weight gains[0] (0.25 + 0.5 u); a bias gains[1] (u - 0.5) / 4; other vectors (u - 0.5) / 4;
    matrices and kernels (2 u - 1) sqrt(6 / fan_in).
    """
    u = uniform(name, int(numpy.prod(shape, dtype=numpy.int64)))
    if name.endswith("running_var"):
        value = 0.5 + u
    elif len(shape) == 1 and name.endswith("weight"):
        value = gains[0] * (0.25 + 0.5 * u)
    elif len(shape) == 1 and name.endswith("bias"):
        value = gains[1] * (0.25 * u - 0.125)
    elif len(shape) == 1 or name in ("cls_token", "pos_embed"):
        value = 0.25 * u - 0.125
    else:
        value = (2.0 * u - 1.0) * math.sqrt(6.0 / int(numpy.prod(shape[1:], dtype=numpy.int64)))
    return value.astype(numpy.float32).reshape(shape)
