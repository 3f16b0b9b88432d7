"""The networks of norma/backbones in PyTorch, for the scripts beside this file.

torchvision's own models where it has them. Written here from their architectures, with the tensor names under which their weights are
published: the Vision Transformers (also with a distillation token), CaiT, EfficientNet-Lite, EfficientNet with the names and padding of
efficientnet-pytorch, the older ResNet-50 (stride on the first 1x1 convolution). VGG-19 with mirrored borders is torchvision's with another
padding mode. What is written here was checked against published parameter counts, not against the packages themselves.
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


class DistilledViT(ViT):
    """Two class tokens, a classifier each; the prediction is their mean."""

    def __init__(self, dim, heads, depth=12, patch=16, size=224):
        super().__init__(dim, heads, depth, patch, size)
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 2, dim))
        self.head_dist = nn.Linear(dim, 1000)

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.dist_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2


class TalkingHeads(Attention):
    """Scores are mixed over heads before the softmax, weights after it."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.proj_l = nn.Linear(heads, heads)
        self.proj_w = nn.Linear(heads, heads)

    def forward(self, x):
        n, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        weight = q * (dim // self.heads) ** -0.5 @ k.transpose(-2, -1)
        weight = self.proj_l(weight.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
        weight = self.proj_w(weight.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.proj((weight @ v).transpose(1, 2).reshape(n, tokens, dim))


class ClassAttention(nn.Module):
    """The first token asks all tokens."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x):
        n, tokens, dim = x.shape
        self.tokens = tokens
        q = self.q(x[:, 0]).reshape(n, 1, self.heads, dim // self.heads).permute(0, 2, 1, 3)
        k = self.k(x).reshape(n, tokens, self.heads, dim // self.heads).permute(0, 2, 1, 3)
        v = self.v(x).reshape(n, tokens, self.heads, dim // self.heads).permute(0, 2, 1, 3)
        weight = (q * (dim // self.heads) ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weight @ v).transpose(1, 2).reshape(n, 1, dim))


class CaiTBlock(ViTBlock):
    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.attn = TalkingHeads(dim, heads)
        self.gamma_1 = nn.Parameter(torch.ones(dim))
        self.gamma_2 = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        x = x + self.gamma_1 * self.attn(self.norm1(x))
        return x + self.gamma_2 * self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class CaiTClassBlock(CaiTBlock):
    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.attn = ClassAttention(dim, heads)

    def forward(self, x, cls):
        cls = cls + self.gamma_1 * self.attn(self.norm1(torch.cat([cls, x], 1)))
        return cls + self.gamma_2 * self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(cls))))


class CaiT(nn.Module):
    def __init__(self, dim, heads, depth, size, patch=16):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // patch) ** 2, dim))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, dim, patch, patch)
        self.blocks = nn.ModuleList(CaiTBlock(dim, heads) for _ in range(depth))
        self.blocks_token_only = nn.ModuleList(CaiTClassBlock(dim, heads) for _ in range(2))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, 1000)

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        cls = self.cls_token.expand(len(x), -1, -1)
        for block in self.blocks_token_only:
            cls = block(x, cls)
        return self.head(self.norm(torch.cat([cls, x], 1))[:, 0])


class StaticConv(nn.Conv2d):
    """SAME padding computed once for an input of `side`, then used for all sizes."""

    def __init__(self, side, cin, cout, kernel, stride=1, groups=1):
        super().__init__(cin, cout, kernel, stride, groups=groups, bias=False)
        total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        self.pads = [total // 2, total - total // 2] * 2

    def forward(self, x):
        return F.conv2d(F.pad(x, self.pads), self.weight, None, self.stride, 0, 1, self.groups)


class StaticBlock(nn.Module):
    def __init__(self, side, cin, cout, kernel, stride, expand):
        super().__init__()
        wide = cin * expand
        self.residual = stride == 1 and cin == cout
        self.expand = expand != 1
        if self.expand:
            self._expand_conv = StaticConv(side, cin, wide, 1)
            self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv = StaticConv(side, wide, wide, kernel, stride, wide)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._se_reduce = nn.Conv2d(wide, max(1, int(0.25 * cin)), 1)
        self._se_expand = nn.Conv2d(max(1, int(0.25 * cin)), wide, 1)
        self._project_conv = StaticConv(side, wide, cout, 1)
        self._bn2 = nn.BatchNorm2d(cout, eps=1e-3)

    def forward(self, x):
        y = x
        if self.expand:
            y = F.silu(self._bn0(self._expand_conv(y)))
        y = F.silu(self._bn1(self._depthwise_conv(y)))
        y = y * torch.sigmoid(self._se_expand(F.silu(self._se_reduce(F.adaptive_avg_pool2d(y, 1)))))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetStatic(nn.Module):
    """EfficientNet as efficientnet-pytorch publishes it: B5 for 456 x 456."""

    STAGES = [(3, 3, 1, 1, 24), (5, 3, 2, 6, 40), (5, 5, 2, 6, 64), (7, 3, 2, 6, 128), (7, 5, 1, 6, 176), (9, 5, 2, 6, 304), (3, 3, 1, 6, 512)]

    def __init__(self, side=456):
        super().__init__()
        self._conv_stem = StaticConv(side, 3, 48, 3, 2)
        self._bn0 = nn.BatchNorm2d(48, eps=1e-3)
        side = math.ceil(side / 2)
        blocks, cin, self.ends = [], 48, []
        for repeats, kernel, stride, expand, cout in self.STAGES:
            for r in range(repeats):
                blocks.append(StaticBlock(side, cin, cout, kernel, stride if r == 0 else 1, expand))
                side = math.ceil(side / blocks[-1]._depthwise_conv.stride[0])
                cin = cout
            self.ends.append(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = StaticConv(side, cin, 2048, 1)
        self._bn1 = nn.BatchNorm2d(2048, eps=1e-3)
        self._fc = nn.Linear(2048, 1000)

    def forward(self, x):
        x = F.silu(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = F.silu(self._bn1(self._conv_head(x)))
        return self._fc(x.mean((2, 3)))


def vgg19_reflect():
    network = torchvision.models.vgg19(weights=None)
    for layer in network.features:
        if isinstance(layer, nn.Conv2d):
            layer.padding_mode = "reflect"
    return network


def resnet50_caffe():
    network = torchvision.models.resnet50(weights=None)
    for layer in (network.layer2, network.layer3, network.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    return network


RESNETS = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet50_caffe", "wide_resnet50_2", "wide_resnet101_2"]
LITES = [f"efficientnet_lite{i}" for i in range(5)]
VITS = {"vit_tiny_patch16_224": (192, 3), "vit_small_patch16_224": (384, 6), "vit_base_patch16_224": (768, 12)}
EFFICIENTNETS = [f"efficientnet_b{i}" for i in range(8)]
VGGS = ["vgg16", "vgg16_bn", "vgg19", "vgg19_bn", "vgg19_reflect"]
DEITS = {"deit_tiny_distilled_patch16_224": (192, 3, 224), "deit_base_distilled_patch16_384": (768, 12, 384)}
CAITS = {"cait_xxs24_224": (192, 4, 24, 224), "cait_m48_448": (768, 16, 48, 448)}
TRANSFORMERS = list(VITS) + list(DEITS) + list(CAITS)
NAMES = (RESNETS + ["mobilenet_v2"] + LITES + EFFICIENTNETS[:6] + ["efficientnet_b5_same"] + EFFICIENTNETS[6:] + ["squeezenet1_1", "alexnet"] + VGGS
         + TRANSFORMERS)


def input_side(name):
    """Transformers run at their own size, convolutional networks at any."""
    return (DEITS.get(name) or CAITS.get(name) or (224,))[-1]


def build(name, depth=None):
    """The network in evaluation mode; a CaiT also with fewer blocks."""
    if name in DEITS:
        dim, heads, side = DEITS[name]
        return DistilledViT(dim, heads, size=side).eval()
    if name in CAITS:
        dim, heads, blocks, side = CAITS[name]
        return CaiT(dim, heads, depth or blocks, side).eval()
    if name == "efficientnet_b5_same":
        return EfficientNetStatic().eval()
    if name == "vgg19_reflect":
        return vgg19_reflect().eval()
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
    if name == "efficientnet_b5_same":
        taps = {f"block{i}": block for i, block in enumerate(network._blocks)}
        stages = {f"features.{i + 1}": network._blocks[end] for i, end in enumerate(network.ends)}
        return {"features.0": network._bn0, **taps, **stages, "features.8": network._bn1, "classifier": network._fc}
    if name in EFFICIENTNETS:
        blocks = [block for stage in network.features[1:8] for block in stage]
        return {**{f"features.{i}": m for i, m in enumerate(network.features)}, **{f"block{i}": m for i, m in enumerate(blocks)},
                "avgpool": network.avgpool, "classifier": network.classifier}
    if name in VGGS:
        taps, stage, index = {}, 1, 1
        for module in network.features:
            if isinstance(module, nn.ReLU):
                taps[f"relu{stage}_{index}"] = module
                index += 1
            elif isinstance(module, nn.MaxPool2d):
                taps[f"pool{stage}"] = module
                stage, index = stage + 1, 1
        return {**taps, "avgpool": network.avgpool, "classifier": network.classifier}
    if name == "alexnet":
        taps = {f"features.{i}": m for i, m in enumerate(network.features) if not isinstance(m, nn.Conv2d)}
        return {**taps, "avgpool": network.avgpool, "classifier": network.classifier}
    if name in DEITS or name in CAITS:
        return {**{f"block{i + 1}": block for i, block in enumerate(network.blocks)}, "norm": network.norm, "head": network.head}
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
        output = network(x)
        for hook in hooks:
            hook.remove()
        if name in DEITS or name in CAITS:
            tokens = 2 if name in DEITS else 0
            for tap in [tap for tap in found if tap.startswith("block")]:
                found[tap + ".norm"] = network.norm(found[tap])
            normed = found.pop("norm")
            found["cls"] = normed[:, 0]
            if name in DEITS:
                found["dist"], found["head"] = normed[:, 1], output
    result = {}
    for tap, value in found.items():
        if name == "efficientnet_b5_same" and tap in ("features.0", "features.8"):
            value = F.silu(value)
        if name in LITES and tap in ("stem", "head"):
            value = F.relu6(value)
        value = value[0].numpy()
        if value.ndim == 3:
            value = value.transpose(1, 2, 0)
        elif value.ndim == 2:
            first = 1 if name in VITS else tokens
            height, width = (n // 16 for n in x.shape[2:])
            value = value[first:].reshape(height, width, -1)
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
