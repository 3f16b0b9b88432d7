"""The networks of tests/golden/backbones_reference.py, cut after the second of PatchCore's outputs."""
import torch

import backbones_reference as reference


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
