#!/usr/bin/env python3
"""Makes training_torch.safetensors: gradients of four small networks and ten optimisation steps of one, by PyTorch in double.

    python3 tests/golden/training_torch.py tests/golden/training_torch.safetensors

Made with PyTorch 1.13.1 on the processor; numbers are stored as float32. training_torch_test.cpp builds the same networks.
Maps are stored channels first, as PyTorch has them.
"""
import json
import struct
import sys

import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(20240507)
torch.set_default_dtype(torch.float64)
stored = {}


def store(name, tensor):
    stored[name] = tensor.detach().to(torch.float32).contiguous()


class Block(nn.Module):
    def __init__(self, inputs, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5, 2, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.layer1 = Block(6, 6, 1)
        self.layer2 = Block(6, 10, 2)
        self.fc = nn.Linear(10, 4)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer2(self.layer1(x))
        return self.fc(x.mean((2, 3)))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.e1 = nn.Conv2d(3, 6, 3, 1, 1)
        self.n1 = nn.BatchNorm2d(6)
        self.e2 = nn.Conv2d(6, 8, 3, 2, 1)
        self.e3 = nn.Conv2d(8, 8, 3, 1, 2, dilation=2, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 5, 1, 2, groups=8, bias=False)
        self.up1 = nn.ConvTranspose2d(8, 5, 4, 2, 1)
        self.up2 = nn.ConvTranspose2d(8, 4, 2, 2, bias=False)
        self.out = nn.Conv2d(5 + 4 + 8 + 6, 2, 3, 1, 1)

    def forward(self, x):
        a = F.leaky_relu(self.n1(self.e1(x)), 0.2)
        b = F.silu(self.e2(a))
        c = F.gelu(self.e3(b))
        d = F.hardswish(self.depthwise(c)) + F.instance_norm(b)
        up = F.interpolate(c, scale_factor=2, mode="bilinear", align_corners=True) + F.interpolate(d, scale_factor=2, mode="bilinear", align_corners=False)
        up = up * torch.sigmoid(F.interpolate(b, scale_factor=2, mode="nearest"))
        y = torch.cat([torch.tanh(self.up1(d)), self.up2(b), up, F.avg_pool2d(a, 3, 1, 1)], 1)
        return torch.sigmoid(self.out(y))


class Attention(nn.Module):
    """timm's; `talking` adds CaiT's mixes."""

    def __init__(self, channels, heads, talking):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.talking = talking
        if talking:
            self.proj_l = nn.Linear(heads, heads)
            self.proj_w = nn.Linear(heads, heads)

    def forward(self, x):
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5
        if self.talking:
            scores = self.proj_l(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        weights = scores.softmax(-1)
        if self.talking:
            weights = self.proj_w(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, t, c))


class ClassAttention(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x):
        n, t, c = x.shape
        split = lambda y: y.reshape(n, -1, self.heads, c // self.heads).transpose(1, 2)
        q, k, v = split(self.q(x[:, :1])), split(self.k(x)), split(self.v(x))
        weights = (q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, 1, c))


class Mlp(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc1 = nn.Linear(channels, 2 * channels)
        self.fc2 = nn.Linear(2 * channels, channels)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class TransformerBlock(nn.Module):
    def __init__(self, channels, attention, scaled):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = attention
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels)
        self.scaled = scaled
        if scaled:
            self.gamma_1 = nn.Parameter(torch.rand(channels) + 0.5)
            self.gamma_2 = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x, cls=None):
        """With a class token, only that one is changed."""
        y = self.attn(self.norm1(x if cls is None else torch.cat([cls, x], 1)))
        x = (x if cls is None else cls) + (self.gamma_1 * y if self.scaled else y)
        y = self.mlp(self.norm2(x))
        return x + (self.gamma_2 * y if self.scaled else y)


class Patches(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.proj = nn.Conv2d(3, channels, 4, 4)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class DeiT(nn.Module):
    def __init__(self, channels=12, heads=2):
        super().__init__()
        self.patch_embed = Patches(channels)
        self.cls_token = nn.Parameter(0.5 * torch.randn(1, 1, channels))
        self.dist_token = nn.Parameter(0.5 * torch.randn(1, 1, channels))
        self.pos_embed = nn.Parameter(0.5 * torch.randn(1, 3 * 4 + 2, channels))
        self.blocks = nn.ModuleList([TransformerBlock(channels, Attention(channels, heads, False), False) for _ in range(2)])
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.head = nn.Linear(channels, 4)
        self.head_dist = nn.Linear(channels, 4)

    def forward(self, x):
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.dist_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2


class CaiT(nn.Module):
    def __init__(self, channels=12, heads=3):
        super().__init__()
        self.patch_embed = Patches(channels)
        self.cls_token = nn.Parameter(0.5 * torch.randn(1, 1, channels))
        self.pos_embed = nn.Parameter(0.5 * torch.randn(1, 3 * 4, channels))
        self.blocks = nn.ModuleList([TransformerBlock(channels, Attention(channels, heads, True), True) for _ in range(2)])
        self.blocks_token_only = nn.ModuleList([TransformerBlock(channels, ClassAttention(channels, heads), True) for _ in range(2)])
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.head = nn.Linear(channels, 4)

    def forward(self, x):
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        cls = self.cls_token.expand(len(x), -1, -1)
        for block in self.blocks_token_only:
            cls = block(x, cls)
        return self.head(self.norm(cls)[:, 0])


def save_state(prefix, net):
    for name, tensor in net.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            store(prefix + name, tensor)


def save_gradients(prefix, net, x):
    for name, parameter in net.named_parameters():
        store(prefix + name, parameter.grad)
        parameter.grad = None
    store(prefix + "input", x.grad)
    x.grad = None


def randomise(net):
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.3, 0.3)


labels = torch.tensor([0, 2, 3, 1])
resnet = ResNet()
randomise(resnet)
start = {name: tensor.clone() for name, tensor in resnet.state_dict().items()}
x = torch.randn(4, 3, 19, 17, requires_grad=True)
store("resnet/input", x)
save_state("resnet/start/", resnet)
for mode in ("training", "evaluation"):
    resnet.load_state_dict(start)
    resnet.train(mode == "training")
    loss = F.cross_entropy(resnet(x), labels)
    loss.backward()
    store("resnet/%s/loss" % mode, loss.reshape(1))
    save_gradients("resnet/%s/gradient/" % mode, resnet, x)
    if mode == "training":
        for name, tensor in resnet.state_dict().items():
            if "running" in name:
                store("resnet/training/" + name, tensor)

optimisers = {
    "adam": lambda p: torch.optim.Adam(p, lr=2e-3, betas=(0.8, 0.99), eps=1e-4, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=2e-3, eps=1e-4, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
}
for name, make in optimisers.items():
    resnet.load_state_dict(start)
    resnet.train()
    optimiser = make(resnet.parameters())
    for step in range(10):
        optimiser.zero_grad()
        F.cross_entropy(resnet(x), labels).backward()
        if name == "sgd":
            torch.nn.utils.clip_grad_norm_(resnet.parameters(), 0.5)
        optimiser.step()
    save_state("resnet/%s/" % name, resnet)

unet = UNet()
randomise(unet)
x = torch.randn(2, 3, 8, 12, requires_grad=True)
target = torch.rand(2, 2, 8, 12)
save_state("unet/start/", unet)
store("unet/input", x)
store("unet/target", target)
unet.train()
loss = F.mse_loss(unet(x), target)
loss.backward()
store("unet/loss", loss.reshape(1))
save_gradients("unet/gradient/", unet, x)

for name, net in (("deit", DeiT()), ("cait", CaiT())):
    x = torch.randn(4, 3, 12, 16, requires_grad=True)
    for module in net.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.3, 0.3)
    save_state(name + "/start/", net)
    store(name + "/input", x)
    loss = F.cross_entropy(net(x), labels)
    loss.backward()
    store(name + "/loss", loss.reshape(1))
    save_gradients(name + "/gradient/", net, x)

header, data = {}, b""
for name in sorted(stored):
    payload = stored[name].numpy().tobytes()
    header[name] = {"dtype": "F32", "shape": list(stored[name].shape), "data_offsets": [len(data), len(data) + len(payload)]}
    data += payload
text = json.dumps(header, separators=(",", ":")).encode()
text += b" " * (-len(text) % 8)
with open(sys.argv[1], "wb") as f:
    f.write(struct.pack("<Q", len(text)) + text + data)
